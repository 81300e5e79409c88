"""The state of each fragment, which an environment does not show: its spin, its charge.

================================  =======  ====================================================================
key                               shape    meaning
================================  =======  ====================================================================
``info["spin"]``                  ()       number of unpaired electrons of the structure
``info["multiplicity"]``          ()       that number plus one; must not contradict it
``info["fragment_spins"]``        (k,)     number of unpaired electrons of each fragment, where there are fragments
================================  =======  ====================================================================

A structure without fragments is one: it has to hang together, because nothing else says which of two separated pieces the
unpaired electrons, or the charge, belong to.  So what depends on a state is the same for a molecule alone and for the
molecule among others, far away.

Dimensions: N atoms, k fragments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from ase.data import chemical_symbols

from kqeq.errors import ExtrapolationWarning, InputError, warn
from kqeq.frames.grouping import composition_and_charge
from kqeq.frames.neighbours import Pairs, find_pairs
from kqeq.frames.structures import Structure
from kqeq.typing import FloatArray

CONDITIONS: Mapping[str, tuple[str, int]] = {
    "spin": ("spin", 1),
    "spin^2": ("spin", 2),
    "charge": ("charge", 1),
    "charge^2": ("charge", 2),
}
"""What a kernel may depend on besides the environment: a state, and the power of it that multiplies the kernel."""

KnownStates = Mapping[str, Mapping[int, tuple[float, ...]]]
"""By state and element, the values that training frames had."""

_SMALL = 1e-9


def state_of(condition: str | None) -> str | None:
    """The state that a condition is a power of."""
    return None if condition is None else CONDITIONS[condition][0]


def known_states(
    structures: Iterable[Structure], states: Iterable[str], before: KnownStates | None = None
) -> dict[str, dict[int, tuple[float, ...]]]:
    """In which states of their fragment some structures have atoms of each element, those known before included.

    Raises
    ------
    InputError
        If nothing says the state of one, or all of them have the same: nothing tells then what it does.
    """
    structures = list(structures)
    found: dict[str, dict[int, tuple[float, ...]]] = {}
    for state in states:
        earlier = {} if before is None else before.get(state, {})
        values: dict[int, set[float]] = {z: set(own) for z, own in earlier.items()}
        for index, structure in enumerate(structures):
            own = fragment_states(structure, state, f"frame {index}")
            labels = np.zeros(len(structure), int) if structure.fragments is None else structure.fragments
            for z, label in set(zip(structure.numbers.tolist(), labels.tolist(), strict=True)):
                values.setdefault(z, set()).add(round(float(own[label]), 6))
        if len(set().union(*values.values())) < 2:
            raise InputError(
                f'a kernel has condition="{state}", but every fragment of the training frames has the {state} '
                f"{next(iter(set().union(*values.values()))):g}: nothing says what another one does. Add frames "
                f"of another "
                f"{state}, or take the kernel away"
            )
        found[state] = {z: tuple(sorted(own)) for z, own in sorted(values.items())}
    return found


def check_known(
    structure: Structure, state: str, known: Mapping[int, tuple[float, ...]], where: object
) -> None:
    """Refuse states of which the training frames say nothing: other spins of an element, charges beyond those seen.

    Raises
    ------
    InputError
    """
    own = fragment_states(structure, state, where)
    labels = np.zeros(len(structure), int) if structure.fragments is None else structure.fragments
    for z, label in sorted(set(zip(structure.numbers.tolist(), labels.tolist(), strict=True))):
        value, seen = float(own[label]), known.get(z, ())
        if not seen:
            continue  # refused as an unknown element
        between = min(seen) - 1e-6 <= value <= max(seen) + 1e-6
        if not between or (state == "spin" and not np.isclose(value, seen).any()):
            raise InputError(
                f"{where} has {chemical_symbols[z]} in a fragment of {state} {value:g}; the training frames have it at "
                f"{', '.join(f'{v:g}' for v in seen)} only, so nothing determines this {state}. Add frames of it to the "
                "training set and fit again"
            )


def charged_sizes(structures: Iterable[Structure], before: Iterable[int] = ()) -> tuple[int, ...]:
    """Numbers of atoms of the fragments that carry charge, those known before included."""
    found = set(before)
    for structure in structures:
        found |= set(_charged_atoms(structure))
    return tuple(sorted(found))


def check_size(structure: Structure, sizes: Sequence[int], where: object) -> None:
    """Warn of charged fragments that are larger or smaller than all of those that were fitted.

    What a kernel by charge says is a sum over the atoms of the fragment, each of which learned a share of what the charge
    does to all of them: in a cell twice as large it does so twice.
    """
    least, most = min(sizes), max(sizes)
    other = [n for n in _charged_atoms(structure) if not least <= n <= most]
    if other:
        fitted = f"{least}" if least == most else f"{least} to {most}"
        warn(
            f"{where}: a charged fragment has {other[0]} atoms; those of the training frames have {fitted}. Kernels by "
            "charge sum what the charge does over all atoms, and do not carry over to other sizes: add such frames "
            'to the training set, or fit without kernels by charge (charges=kqeq.QEq(hardness="kernel"))',
            ExtrapolationWarning,
        )


def _charged_atoms(structure: Structure) -> list[int]:
    """Number of atoms of each fragment that carries charge."""
    charges = fragment_states(structure, "charge")
    if structure.fragments is None:
        return [len(structure)] if abs(charges[0]) > _SMALL else []
    counts = np.bincount(structure.fragments, minlength=len(charges))
    return [int(n) for n, charge in zip(counts, charges, strict=True) if abs(charge) > _SMALL]


def several_charges(structures: Iterable[Structure]) -> set[float]:
    """All total charges, e, where one composition has several; else none."""
    charges: dict[tuple[int, ...], set[float]] = {}
    for numbers, charge in map(composition_and_charge, structures):
        charges.setdefault(numbers, set()).add(charge)
    return set().union(*charges.values()) if any(len(own) > 1 for own in charges.values()) else set()


def pairs_up(structure: Structure, unpaired: float) -> bool:
    """Whether all but so many electrons can be paired; charges that are not whole say nothing."""
    others = int(structure.numbers.sum()) - structure.total_charge - unpaired
    return abs(others % 2.0 - 1.0) >= 1e-6


def spin_of(structure: Structure, where: object = "the structure") -> float:
    """Number of unpaired electrons of a structure.

    Raises
    ------
    InputError
        If nothing says it, or it is no whole number that goes with the number of electrons.
    """
    spin = structure.multiplicity
    if spin is None:
        raise InputError(
            f'the model depends on spin, and nothing says the spin of {where}; set atoms.info["spin"] to the number of '
            'unpaired electrons (0 for a closed shell), or atoms.info["multiplicity"] to that plus one'
        )
    value = float(spin) - 1.0
    _check_spin(value, structure, where)
    return value


def _check_spin(value: float, structure: Structure, where: object) -> None:
    if not np.isfinite(value) or value < 0.0 or value != round(value):
        raise InputError(
            f"the spin of {where} is {value:g}; expected a number of unpaired electrons, 0, 1, 2 ... "
            f"(multiplicity 2S + 1 "
            "is that plus one)"
        )
    charge = structure.total_charge
    if not pairs_up(structure, value):
        electrons = int(structure.numbers.sum()) - round(charge)
        raise InputError(
            f"the spin of {where} is {value:g} unpaired electrons, but it has {electrons} electrons (total charge "
            f"{charge:g} e); an {'even' if electrons % 2 == 0 else 'odd'} number of electrons has an "
            f"{'even' if electrons % 2 == 0 else 'odd'} number of unpaired ones. If this is a multiplicity, call it so"
        )


def fragment_states(structure: Structure, state: str, where: object = "the structure") -> FloatArray:
    """Spin or charge (e) of each fragment, (k,); one where the structure has no fragments.

    Raises
    ------
    InputError
        If nothing says it.
    """
    if structure.fragments is None:
        return np.array([spin_of(structure, where) if state == "spin" else structure.total_charge])
    count = int(structure.fragments.max()) + 1
    if state == "charge":
        if structure.fragment_charges is not None:
            return structure.fragment_charges
        if abs(structure.total_charge) < _SMALL or count == 1:
            return np.full(count, structure.total_charge / count)
        raise InputError(
            f'the model depends on the charge of each fragment; set atoms.info["fragment_charges"] of {where} to '
            f"{count} numbers that sum to {structure.total_charge:g} e"
        )
    if structure.fragment_spins is not None:
        return structure.fragment_spins
    if structure.multiplicity is not None and (spin_of(structure, where) == 0.0 or count == 1):
        return np.full(count, spin_of(structure, where))
    raise InputError(
        f'the model depends on the spin of each fragment; set atoms.info["fragment_spins"] of {where} to '
        f"{count} numbers of "
        "unpaired electrons"
    )


def weights(
    structure: Structure, condition: str, cutoff: float, pairs: Pairs | None = None, derivative: int = 0
) -> FloatArray:
    """What a condition multiplies the kernel of each atom with, (N,): a power of the state of its fragment.

    Parameters
    ----------
    structure : Structure
    condition : str
        One of :data:`CONDITIONS`.
    cutoff : float
        Pieces farther apart than this, Å, are separate.
    pairs : Pairs, optional
        A neighbour list that reaches ``cutoff``.
    derivative : int
        With respect to the state.

    Raises
    ------
    InputError
        As :func:`fragment_states`, and for separated pieces that are no fragments where the state is not zero.
    """
    state, power = CONDITIONS[condition]
    values = fragment_states(structure, state)
    if (
        structure.fragments is None
        and abs(values[0]) > _SMALL
        and not _hangs_together(structure, cutoff, pairs)
    ):
        raise InputError(
            f"the structure falls into pieces more than {cutoff:g} Å apart, and has the {state} {values[0]:g}: "
            f"nothing says "
            f'which piece it belongs to. Name them, atoms.arrays["fragments"], and give '
            f'atoms.info["fragment_{"spins" if state == "spin" else "charges"}"] (kqeq.charges.assign_fragments)'
        )
    if derivative > power:
        result = np.zeros_like(values)
    else:
        factor = {0: 1.0, 1: float(power), 2: 2.0}[derivative]
        result = factor * values ** (power - derivative)
    return result[np.zeros(len(structure), dtype=int) if structure.fragments is None else structure.fragments]


def _hangs_together(structure: Structure, cutoff: float, pairs: Pairs | None) -> bool:
    """Whether every atom is reached from every other in steps within the cutoff."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    if len(structure) == 1:
        return True
    pairs = find_pairs(structure, cutoff, full=False) if pairs is None else pairs
    near = np.einsum("pa,pa->p", pairs.vectors, pairs.vectors) < cutoff**2
    i, j = pairs.indices[near, 0], pairs.indices[near, 1]
    graph = sparse.csr_array((np.ones(len(i)), (i, j)), shape=(len(structure),) * 2)
    return bool(connected_components(graph, directed=False)[0] == 1)


__all__ = [
    "CONDITIONS",
    "KnownStates",
    "charged_sizes",
    "check_known",
    "check_size",
    "fragment_states",
    "known_states",
    "pairs_up",
    "several_charges",
    "spin_of",
    "state_of",
    "weights",
]
