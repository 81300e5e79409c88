"""Electrodes: total charges, or charges of two or more groups of atoms, at given potentials.

    U = ∂E/∂Q   in V (eV/e),      Ω = E − Σ_e U_e Q_e,      ∂Ω/∂r at constant U = ∂E/∂r at constant Q

with the sign of :func:`kqeq.charges.solve_at_potential`: **the higher the potential, the more positive the electrode**
(−U is the chemical potential of its electrons in eV).  Charges are at the minimum of Ω, so that forces and stress of E at
the charges that are found belong to Ω.

One system has a potential of its own where ∂²E/∂Q² > 0.  A slab has none: its energy is defined for a neutral cell, or
with a background, and the potential far away is not zero.  There the charge of the cell is held, and charge is exchanged
between electrodes: Ω depends on differences of their potentials only.  The atoms of each electrode share its charge,
and all others keep theirs: fragment by fragment where the structure has fragments, else together.

Dimensions: N atoms, k electrodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kqeq.backend import asarray_like, to_numpy
from kqeq.charges import ACKS2, AtomicDipoles, QEq
from kqeq.charges.base import ChargeModel
from kqeq.charges.equilibrium import Equilibrium
from kqeq.charges.fragments import fragment_reference
from kqeq.errors import ConvergenceError, InputError, NotPositiveDefiniteError, UnsupportedError
from kqeq.frames.conditions import as_numbers
from kqeq.frames.structures import Structure
from kqeq.potential.fixed_geometry import FixedGeometry
from kqeq.potential.potential import Potential, in_threads_for
from kqeq.typing import FloatArray, IntArray

TOLERANCE = 1e-9
"""Largest error of a potential, V, at which the search for a total charge ends."""

MAX_STEPS = 50
"""Newton steps; one is enough where the energy is a parabola in the charge."""

MAX_POTENTIAL = 1e3
"""Potentials beyond this (V) are refused."""


def check_potential(value: Any, name: str = "potential") -> float:
    """Validate a potential: one finite number in V.

    Raises
    ------
    InputError
    """
    array = as_numbers(value)
    if array is None or isinstance(value, str) or array.size != 1 or not np.isfinite(array).all():
        raise InputError(f"{name} is {value!r}; expected one finite number (V), for example -4.5")
    if np.abs(array).max() > MAX_POTENTIAL:
        raise InputError(f"{name} is {value!r} V, beyond {MAX_POTENTIAL:g} V; it is ∂E/∂Q in V")
    return float(array.reshape(()))


@dataclass(frozen=True, eq=False)
class Electrodes:
    """Groups of atoms at potentials of their own.

    Attributes
    ----------
    groups : dict of str to (n,) int array
        Atoms of each electrode.
    potentials : dict of str to float
        V, of the same electrodes.
    """

    groups: Mapping[str, IntArray]
    potentials: Mapping[str, float]

    @classmethod
    def of(cls, potentials: Any, groups: Any) -> Electrodes:
        """Validate ``potentials={"left": -4.5, "right": -3.5}`` and ``electrodes={"left": [...], "right": [...]}``.

        Raises
        ------
        InputError
        """
        if not isinstance(potentials, Mapping) or len(potentials) < 2:
            raise InputError(
                f"potentials is {potentials!r}; expected a dict of at least two electrodes and their potentials in V, "
                'for example {"left": 0.0, "right": 1.0}'
            )
        if not isinstance(groups, Mapping) or set(groups) != set(potentials):
            raise InputError(
                f"electrodes is {groups!r}; expected a dict of the atoms of each electrode, by the names of potentials "
                f"({', '.join(map(str, potentials))}): {{{', '.join(f'{n!r}: [0, 1, ...]' for n in potentials)}}}"
            )
        checked: dict[str, IntArray] = {}
        for name, members in groups.items():
            array = np.asarray(members)
            if array.dtype == bool:
                array = np.flatnonzero(array)
            if array.ndim != 1 or array.dtype.kind not in "iu" or len(array) == 0 or (array < 0).any():
                raise InputError(
                    f"electrode {name!r} is {members!r}; expected indices of atoms (or a mask), at least one"
                )
            checked[str(name)] = np.unique(array).astype(np.int64)
        everything = np.concatenate(list(checked.values()))
        if len(np.unique(everything)) < len(everything):
            raise InputError("electrodes share atoms; every atom belongs to one electrode at most")
        return cls(checked, {str(n): check_potential(v, f"potentials[{n!r}]") for n, v in potentials.items()})

    def on(self, structure: Structure) -> Structure:
        """The structure with a fragment for each electrode, the first k ones in their order.

        The charge that the other atoms do not hold is divided evenly among the electrodes' atoms, to begin with.

        Raises
        ------
        InputError
            For atoms that the structure does not have, and electrodes that cut through fragments.
        """
        atoms, members = len(structure), list(self.groups.values())
        if max(int(own.max()) for own in members) >= atoms:
            raise InputError(
                f"electrodes name atom {max(int(own.max()) for own in members)}, but the structure has the atoms 0 to "
                f"{atoms - 1}"
            )
        if structure.reference_charges is not None:
            raise InputError(
                'the structure has atoms.arrays["reference_charges"], and electrodes find theirs; remove one of them'
            )
        labels = np.full(atoms, -1, dtype=np.int64)
        for number, own in enumerate(members):
            labels[own] = number
        rest = np.flatnonzero(labels < 0)
        held: list[float] = []
        old = np.zeros(atoms, dtype=np.int64) if structure.fragments is None else structure.fragments
        for fragment in np.unique(old[rest]):
            inside = rest[old[rest] == fragment]
            charge = 0.0
            if structure.fragments is not None and structure.fragment_charges is not None:
                charge = float(structure.fragment_charges[fragment])
                if len(inside) < int((old == fragment).sum()) and abs(charge) > 1e-8:
                    raise InputError(
                        f"fragment {int(fragment)} (charge {charge:g} e) lies partly in an electrode; give the other "
                        "atoms a fragment of their own"
                    )
            labels[inside] = len(members) + len(held)
            held.append(charge)
        size = np.array([len(own) for own in members], dtype=np.float64)
        free = structure.total_charge - sum(held)
        charges = np.concatenate([free * size / size.sum(), held])
        return replace(structure, fragments=labels, fragment_charges=charges)


@dataclass(frozen=True, eq=False)
class AtPotential:
    """A geometry at the charges that belong to given potentials.

    Attributes
    ----------
    geometry : FixedGeometry
        Ready to predict.
    work : float
        Σ U Q, eV: what the grand energy is below the energy.
    charges : dict of str to float
        Of each electrode, e: the sum over its atoms; empty for one potential of the whole.
    """

    geometry: FixedGeometry
    work: float
    charges: Mapping[str, float]


def check_model(potential: Potential) -> None:
    """Refuse models that have no energy as a function of fractional charges.

    Raises
    ------
    UnsupportedError
    """
    if potential.charges is None or potential.electronegativity is None:
        raise UnsupportedError(
            "a potential acts on charges, and the model has none; fit with charges=kqeq.QEq() or kqeq.ACKS2()"
        )
    if "charge" in potential.conditions:
        raise UnsupportedError(
            'kernels with condition="charge" make an energy of whole charges, not one as a function of a charge '
            "that follows "
            "a potential; fit without them"
        )
    if potential.holds_charge:
        raise UnsupportedError(
            f"the baseline {potential.baseline.name if potential.baseline is not None else ''} holds the total charge "
            'and knows whole charges only, so ∂E/∂Q is not that of the model; fit with charge_from="model", or '
            "without this baseline"
        )


def with_electrodes(potential: Potential) -> Potential:
    """The same model with charges that fragments keep.

    Raises
    ------
    UnsupportedError
        For charge models that do not know fragments, and short-range energies that see the charges.
    """
    check_model(potential)
    if potential.charge_kernel is not None:
        raise UnsupportedError(
            "potentials of electrodes with a short-range energy that sees the charges (charge_aware) are not supported: "
            "charges are not at the minimum of that energy; fit without charge_aware"
        )
    assert potential.charges is not None
    return replace(potential, charges=_keeping(potential.charges))


def _keeping(model: ChargeModel) -> ChargeModel:
    """A charge model with the same parameters in which fragments keep their charges."""
    if isinstance(model, AtomicDipoles):
        inner = _keeping(model.charge_model)
        return AtomicDipoles(inner, model.polarizability, model.damping)  # type: ignore[arg-type]
    if isinstance(model, QEq):
        return QEq(**{**model.get_params(deep=False), "fragments": True})
    if isinstance(model, ACKS2) and model.reference_charges in (None, "uniform", "fragments"):
        return ACKS2(**{**model.get_params(deep=False), "reference_charges": "fragments"})
    raise UnsupportedError(
        f"potentials of electrodes need a charge model whose fragments keep their charges: kqeq.QEq(), kqeq.ACKS2(), or "
        f"kqeq.AtomicDipoles() on one of them; this model has {type(model).__name__}"
    )


def at_potential(geometry: FixedGeometry, potential: float) -> AtPotential:
    """Find the total charge at which ∂E/∂Q is the potential.

    Raises
    ------
    NotPositiveDefiniteError
        If the energy has no minimum with respect to the total charge, and for slabs.
    UnsupportedError
        For models without charges or with a baseline that holds them.
    """
    check_model(geometry.potential)
    structure = geometry.structure
    if structure.pbc.sum() == 2:
        raise NotPositiveDefiniteError(
            "a slab has no potential of its own: far from a charged slab the potential grows without limit, and the "
            "energy of the cell has no minimum with respect to its charge. Hold the charge of the cell and "
            "give two electrodes: "
            'potentials={"left": U1, "right": U2}, electrodes={"left": [...], "right": [...]}'
        )
    if structure.fragment_charges is not None or structure.reference_charges is not None:
        raise InputError(
            "the structure has fragment or reference charges, and at a constant potential the total charge changes: "
            "nothing says which of them the change belongs to; remove them"
        )
    charge, here = 0.0, geometry.under(0.0)
    for _ in range(MAX_STEPS):
        found = here.predict(("energy", "charges"))
        assert found.chemical_potential is not None and here.system is not None
        # systems without a matrix do not come with it; a short-range energy that sees the charges adds little to it
        curvature = here.system.hardness() if found.hardness is None else found.hardness
        missing = potential - found.chemical_potential
        if not curvature > 0.0:
            raise NotPositiveDefiniteError(
                f"the energy has no minimum with respect to the total charge (∂²E/∂Q² = {curvature:.3g} eV/e² at "
                f"{charge:.3g} e), so there is none at a potential of {potential:g} V; fix the total charge instead"
            )
        if abs(missing) < TOLERANCE * max(1.0, abs(potential)):
            return AtPotential(here, potential * charge, {})
        charge += missing / curvature
        here = geometry.under(charge)
    raise ConvergenceError(
        f"no total charge was found at which ∂E/∂Q is {potential:g} V: the last one is {charge:.3g} e, "
        f"{missing:.2g} V away"
    )


def at_potentials(geometry: FixedGeometry, electrodes: Electrodes) -> AtPotential:
    """Find the charges of electrodes at their potentials, the total charge held.

    The energy is a parabola in the charges of fragments: k solutions determine it.

    Parameters
    ----------
    geometry : FixedGeometry
        Of a potential from :func:`with_electrodes` and a structure from :meth:`Electrodes.on`.
    electrodes : Electrodes

    Raises
    ------
    NotPositiveDefiniteError
        If the energy has no minimum with respect to an exchange of charge.
    """
    structure, system = geometry.structure, geometry.system
    assert isinstance(system, Equilibrium) and structure.fragment_charges is not None
    base = np.asarray(structure.fragment_charges, dtype=np.float64)
    k = len(electrodes.groups)
    wanted = np.array(list(electrodes.potentials.values()))

    def placed(charges: FloatArray) -> FixedGeometry:
        own = replace(structure, fragment_charges=charges)
        reference = asarray_like(fragment_reference(own, "electrodes"), system.device.like)
        return replace(geometry, structure=own, system=replace(system, structure=own, reference=reference))

    def differences(charges: FloatArray) -> tuple[FloatArray, FixedGeometry]:
        """(∂E/∂Q_e − ∂E/∂Q_k) of the first k − 1 electrodes."""
        here = placed(charges)
        found = here.potential.charged(here.structure, here.similarities, here.system, device=here.device)
        assert found is not None
        gradient = to_numpy(found[0].state.reference_gradient())
        means = np.array([gradient[own_labels == f].mean() for f in range(k)])
        return means[:-1] - means[-1], here

    own_labels = structure.fragments
    assert own_labels is not None
    with in_threads_for(structure):
        start, _ = differences(base)
        steps = np.zeros((k - 1, len(base)))
        steps[np.arange(k - 1), np.arange(k - 1)] = 1.0
        steps[:, k - 1] = -1.0
        curvature = np.stack([differences(base + step)[0] - start for step in steps], axis=1)
        values = np.linalg.eigvalsh(0.5 * (curvature + curvature.T))
        if not values[0] > 0.0:
            raise NotPositiveDefiniteError(
                f"the energy has no minimum with respect to charge that moves between the electrodes (lowest curvature "
                f"{values[0]:.3g} eV/e²); check which atoms belong to them"
            )
        missing = (wanted[:-1] - wanted[-1]) - start
        charges = base + np.linalg.solve(curvature, missing) @ steps
        here = placed(charges)
        found = here.potential.charged(here.structure, here.similarities, here.system, device=here.device)
    assert found is not None
    atoms = to_numpy(found[0].state.charges)
    own = {name: float(atoms[members].sum()) for name, members in electrodes.groups.items()}
    return AtPotential(here, float(wanted @ charges[:k]), own)


__all__ = [
    "AtPotential",
    "Electrodes",
    "at_potential",
    "at_potentials",
    "check_model",
    "check_potential",
    "with_electrodes",
]
