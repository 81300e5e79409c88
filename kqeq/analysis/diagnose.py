"""Does this model over-polarise, does charge leak, does it extrapolate, and what repairs it.

Charge equilibration moves charge over any distance at no cost.  Its known failures (theory section 6; Vondrák, Reuter &
Margraf 2025, *npj Comput. Mater.* 11, 288) are looked for with geometries made for the purpose and with the user's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from kqeq.analysis.dissociation import DissociationScan, connected_fragments, dissociation_scan
from kqeq.analysis.entry import conditions_of, fix, formula, potential_of, without_fragments
from kqeq.analysis.findings import FLAGGED, NOTE, OK, UNTESTED, ChainGrowth, Diagnosis, Finding
from kqeq.analysis.novelty import Novelty, novelty
from kqeq.analysis.on_baseline import baseline_findings
from kqeq.analysis.phases import phase_findings
from kqeq.analysis.probes import alkane, atom_chain, chains_for, polar_pair
from kqeq.analysis.ranges import bond_ranges, charge_ranges
from kqeq.charges import ACKS2, AtomicDipoles, LatentCharges, QEq
from kqeq.charges.site_values import CHARGE
from kqeq.constants import COULOMB
from kqeq.errors import InputError, KQEqError
from kqeq.frames.structures import Structure, read_structure
from kqeq.potential.determination import TOLERANCE
from kqeq.potential.potential import Potential, Prediction
from kqeq.typing import FloatArray

MAX_EXPONENT = 1.3
"""Growth exponent d ln α / d ln n at the end of a chain of insulating units beyond which a model over-polarises.

DFT (PBE0) gives 1.12 for all-trans alkanes at C8; 1 is additive, QEq tends to 3."""

MAX_LEAK = 0.05
"""Fractional charge (e) of a separated fragment that is tolerated."""

FAR = 15.0
"""Distance of the closest atoms of separated fragments, Å."""

NOVELTY_NOTE, NOVELTY_FLAG = 1.0, 2.0
"""Distance to the nearest representative in units of the largest such distance among the representatives."""

NOVELTY_LEAST = 0.05
"""Distances below this (similarities above 0.95) are not flagged, however dense the training environments lie."""


def diagnose(
    model: Any, atoms: Atoms | None = None, *, total_charge: Any = None, external_field: Any = None
) -> Diagnosis:
    """Look for the known failures of charge models.

    Parameters
    ----------
    model : KQEq
    atoms : ase.Atoms, optional
        A geometry of the kind that the model is meant for.  Without one, only probes made of the model's elements
        are looked at.  In a slab the pieces of metal are found, and looked at with :func:`kqeq.analysis.phases`.
    total_charge, external_field : optional
        Of that geometry; otherwise from ``atoms.info``.

    Returns
    -------
    Diagnosis
        Print it, or look at ``flagged``.

    Raises
    ------
    InputError, UnsupportedError, ModelNotFittedError
        For a geometry that the model cannot treat.
    """
    potential = potential_of(model)
    names = ", ".join(chemical_symbols[z] for z in potential.species)
    charges = "no charges" if potential.charges is None else describe_charges(potential.charges)
    if potential.baseline is not None:
        charges += f" on the baseline {potential.baseline.name}"
    findings: list[Finding] = []
    growth: ChainGrowth | None = None
    scans: dict[str, DissociationScan] = {}
    values = ranges = explained = distances = None
    if potential.charges is not None:
        findings += _response(potential)
        growth, finding = _polarisation(potential, atoms)
        findings.append(finding)
        scans, found = _leakage(model, potential, atoms, total_charge, external_field)
        findings += found
    elif not potential.has_charges:
        findings.append(
            Finding("charges", NOTE, None, None, "", "the model has none: fields and total charge do not act")
        )
    structure = None
    if atoms is not None:
        geometry = fix(model, atoms, total_charge, external_field)
        structure = geometry.structure
        here = geometry.predict(())
        findings.append(_determined(potential, structure, here))
        if potential.has_charges:
            values = here.charges
            ranges = charge_ranges(geometry.structure.numbers)
            explained = bond_ranges(geometry.structure)
            findings.append(_range(values, ranges, explained, geometry.structure))
        distances = novelty(geometry)
        findings.append(_extrapolation(model, atoms, distances, total_charge, external_field))
        if potential.charges is not None:
            findings += phase_findings(model, atoms)
    findings += baseline_findings(potential, atoms, structure)
    return Diagnosis(
        model=f"{charges} for {names}",
        findings=tuple(findings),
        growth=growth,
        dissociations=scans,
        charges=values,
        charge_ranges=ranges,
        novelty=distances,
        bond_ranges=explained,
    )


def describe_charges(charges: Any) -> str:
    """The charge model in a few words."""
    if isinstance(charges, AtomicDipoles):
        return f"{describe_charges(charges.charge_model)} with atomic dipoles"
    name = type(charges).__name__
    return f"{name} with fragments" if getattr(charges, "fragments", False) else name


# --------------------------------------------------------------- no response


def _response(potential: Potential) -> list[Finding]:
    """What charges that are functions of the environment cannot do."""
    if potential.learns_electronegativity:
        return []
    name = "response of the charges"
    charges = potential.charges
    inner = charges.charge_model if isinstance(charges, AtomicDipoles) else charges
    states = (
        f"what a change of the total charge costs is not learned (training frames had {_charges_of(potential)} e): use "
        "kqeq.QEq() or kqeq.ACKS2() for differences between charge states"
    )
    if not isinstance(inner, LatentCharges):
        text = (
            "permanent charges are functions of the environment, and flow along bonds in response to fields and to each "
            "other."
        )
        return [Finding(name, NOTE, None, None, "", text, states)]
    moved = "" if isinstance(charges, AtomicDipoles) else ", so that the polarizability is zero"
    text = (
        "charges are functions of the environment within the cutoff: they do not move in a field or because of charges "
        f"elsewhere{moved}, and nothing is transferred over a distance."
    )
    remedy = (
        'for response and charge transfer along bonds use kqeq.AtomicDipoles(kqeq.ACKS2(reference_charges="kernel")); '
        + states
    )
    return [Finding(name, NOTE, None, None, "", text, remedy)]


def _charges_of(potential: Potential) -> str:
    return ", ".join(f"{charge:+g}" for charge in potential.training_charges)


# ------------------------------------------------------------ over-polarisation


def _polarisation(potential: Potential, atoms: Atoms | None) -> tuple[ChainGrowth | None, Finding]:
    name = "over-polarisation (growth of the polarizability with length)"
    chains = chains_for(potential.species, atoms)
    assert potential.charges is not None
    values = []
    try:
        structures = [_with_fragment(read_structure(chains.build(int(n)))) for n in chains.units]
        for structure in structures:
            potential.check(structure)
        for prediction in potential.predict_many(structures, ("polarizability",)):
            assert prediction.polarizability is not None
            values.append(COULOMB * float(np.linalg.eigvalsh(prediction.polarizability)[-1]))
    except KQEqError as error:
        return None, Finding(name, UNTESTED, None, None, "", f"{chains.name}: {error}")
    alpha_n, n = np.array(values), chains.units
    if alpha_n[-1] < 1e-6:
        return None, Finding(name, UNTESTED, None, None, "", f"{chains.name}: they do not polarise at all")
    exponents = np.diff(np.log(alpha_n)) / np.diff(np.log(n))
    growth = ChainGrowth(chains.name, n, alpha_n, exponents)
    text = (
        f"{chains.name}, {n[0]} to {n[-1]}: along the chain {_short(alpha_n[0])} to {_short(alpha_n[-1])} Å³, per "
        f"unit {_short(alpha_n[0] / n[0])} to {_short(alpha_n[-1] / n[-1])}; at the end it grows as "
        f"n^{exponents[-1]:.2f}. Additive molecules have an exponent of 1"
    )
    text += ", DFT gives these chains 1.12 at C8." if chains.build is alkane else "."
    verdict, remedy = OK, ""
    if exponents[-1] > MAX_EXPONENT:
        verdict = FLAGGED if chains.insulating else NOTE
        remedy = (
            _polarisation_remedy(potential.charges)
            if chains.insulating
            else "for a metal such growth is physical; for an insulator it is not"
        )
    return growth, Finding(name, verdict, float(exponents[-1]), MAX_EXPONENT, "", text, remedy)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000.0 else f"{value:.3g}"


def _with_fragment(structure: Structure) -> Structure:
    """One neutral fragment, for models that insist on having fragments."""
    return replace(
        structure, fragments=np.zeros(len(structure), dtype=np.int64), fragment_charges=np.zeros(1)
    )


def _polarisation_remedy(charges: Any) -> str:
    inner = charges.charge_model if isinstance(charges, AtomicDipoles) else charges
    if isinstance(inner, QEq):
        return (
            "charge moves freely over any distance in QEq. Fit with "
            'charges=kqeq.AtomicDipoles(kqeq.ACKS2(softness="learn"), polarizability="learn") on frames that carry '
            "polarizabilities (charge flows along bonds only, atoms polarise on their own)"
        )
    if isinstance(inner, ACKS2) and not charges.to_learn:
        return (
            "the bond softness is too large for these chains: learn it, "
            'kqeq.ACKS2(softness="learn", hardness="learn"), from frames that carry polarizabilities (a few short '
            "molecules are enough), or give smaller values by element"
        )
    return "learn the element parameters from frames that carry polarizabilities"


# --------------------------------------------------------------------- leakage


def _leakage(
    model: Any, potential: Potential, atoms: Atoms | None, total_charge: Any, external_field: Any
) -> tuple[dict[str, DissociationScan], list[Finding]]:
    scans: dict[str, DissociationScan] = {}
    findings = []
    pair = polar_pair(potential.species)
    if pair is not None:
        probe = atom_chain(pair, 1)
        name = f"{chemical_symbols[pair[0]]}-{chemical_symbols[pair[1]]}"
        findings.append(_pull(model, potential, probe, [[0], [1]], 0.0, name, scans))
    if atoms is not None and not atoms.pbc.any() and len(atoms) > 1:
        charge, _ = conditions_of(model, atoms, total_charge, external_field)
        groups, how = _groups(atoms)
        name = f"{formula(atoms)}{f' {charge:+g}' if charge else ''}, {how}"
        findings.append(_pull(model, potential, without_fragments(atoms), groups, charge, name, scans))
    if not findings:
        text = "the model knows one element and no geometry was given: there is nothing to pull apart"
        findings.append(Finding("charge leakage on dissociation", UNTESTED, None, None, "", text))
    return scans, findings


def _groups(atoms: Atoms) -> tuple[list[list[int]], str]:
    """Fragments of the user's geometry: its own, those that bonds leave apart, or two halves."""
    if "fragments" in atoms.arrays:
        labels = np.asarray(atoms.arrays["fragments"])
        if len(np.unique(labels)) > 1:
            return [np.flatnonzero(labels == k).tolist() for k in np.unique(labels)], "its fragments"
    found = connected_fragments(atoms)
    if len(found) > 1:
        return found, f"its {len(found)} molecules"
    positions = atoms.positions - atoms.positions.mean(axis=0)
    axis = np.linalg.eigh(positions.T @ positions)[1][:, -1]
    order = np.argsort(positions @ axis)
    along = (positions @ axis)[order]
    # where the gap between neighbouring layers is widest, not at the very ends
    first, last = max(1, len(atoms) // 4), min(len(atoms) - 1, -(-3 * len(atoms) // 4))
    cuts = np.arange(first, last + 1)
    cut = int(cuts[np.argmax((along[cuts] - along[cuts - 1]).round(6))])
    return [sorted(order[:cut].tolist()), sorted(order[cut:].tolist())], "two halves"


def _pull(
    model: Any,
    potential: Potential,
    atoms: Atoms,
    groups: Sequence[Sequence[int]],
    charge: float,
    name: str,
    scans: dict[str, DissociationScan],
) -> Finding:
    title = f"charge leakage on dissociation of {name}"
    distances = [*np.linspace(0.0, 5.0, 21), *np.linspace(6.0, FAR, 10)]
    try:
        whole = dissociation_scan(
            model, atoms, groups, [0.0], fragment_charges=_spread(charge, groups), total_charge=charge
        )
        integers = _integers(whole.fragment_charges[0], charge)
        scan = dissociation_scan(
            model, atoms, groups, distances, fragment_charges=integers, total_charge=charge
        )
    except KQEqError as error:
        return Finding(title, UNTESTED, None, None, "", f"{error}")
    scans[name] = scan
    leak = _fraction(scan.fragment_charges[-1])
    text = (
        f"{len(groups)} fragments pulled {FAR:g} Å apart carry {_shown(scan.fragment_charges[-1])} e "
        f"({_shown(scan.fragment_charges[0])} e together); once separated, charges should be whole numbers."
    )
    if leak > MAX_LEAK:
        return Finding(title, FLAGGED, leak, MAX_LEAK, "e", text, _leakage_remedy(potential.charges))
    verdict, remedy = OK, ""
    if any(integers):
        text += f" The charges {', '.join(f'{q:+g}' for q in integers)} e were given with the fragments."
    if abs(charge) > 1e-6:
        plain = _without_fragments(model, atoms, groups, charge)
        if plain is not None and _fraction(plain) > MAX_LEAK:
            verdict = NOTE
            remedy = (
                "without them the total charge starts evenly spread and the fragments keep "
                + f"{_shown(plain)} e: use kqeq.charges.assign_fragments(atoms, groups, charges) where ions come apart"
            )
    return Finding(title, verdict, leak, MAX_LEAK, "e", text, remedy)


def _shown(charges: FloatArray) -> str:
    return ", ".join(f"{q:+.3f}" for q in np.round(charges, 3) + 0.0)


def _spread(charge: float, groups: Sequence[Sequence[int]]) -> list[float]:
    """The total charge in proportion to the number of atoms."""
    sizes = np.array([len(group) for group in groups])
    return [float(q) for q in charge * sizes / sizes.sum()]


def _integers(charges: FloatArray, total: float) -> list[float]:
    """Whole numbers close to the charges whose sum is the total (that of the last one need not be whole)."""
    floor = np.floor(charges + 1e-9)
    missing = round(total - floor.sum())
    order = np.argsort(floor - charges)
    floor[order[:missing]] += 1.0
    floor[-1] += total - floor.sum()
    return [float(q) for q in floor]


def _fraction(charges: FloatArray) -> float:
    return float(np.abs(charges - np.round(charges)).max())


def _without_fragments(
    model: Any, atoms: Atoms, groups: Sequence[Sequence[int]], charge: float
) -> FloatArray | None:
    try:
        scan = dissociation_scan(model, atoms, groups, [FAR], total_charge=charge)
    except InputError:  # a model that insists on fragments
        return None
    return np.asarray(scan.fragment_charges[0])


def _leakage_remedy(charges: Any) -> str:
    inner = charges.charge_model if isinstance(charges, AtomicDipoles) else charges
    if charges.quantity == CHARGE:
        return (
            "the charges of separated fragments are what the kernel says of them, shifted uniformly: add frames of the "
            "separated fragments to the training set, or give whole charges with kqeq.charges.assign_fragments(atoms, "
            "groups, charges)" + (" and fragments=True" if isinstance(inner, LatentCharges) else "")
        )
    if isinstance(inner, QEq):
        return (
            "QEq equalises chemical potentials over any distance. Use charges=kqeq.ACKS2() (no charge flows between "
            "atoms that do not touch), or kqeq.QEq(fragments=True) with kqeq.charges.assign_fragments(atoms, groups, "
            "charges)"
        )
    return (
        "no charge flows over this distance; the fraction is that of the reference charges: give whole charges with "
        "kqeq.charges.assign_fragments(atoms, groups, charges)"
    )


# ------------------------------------------------------- what data determine


def _determined(potential: Potential, structure: Structure, prediction: Prediction) -> Finding:
    name = "what the training data determine"
    stds = prediction.undetermined
    if potential.determination is None:
        return Finding(name, UNTESTED, None, None, "", "the model file is of a version that does not say")
    why = potential.why_undetermined(structure, prediction)
    remedy = "add frames of other compositions and of several charges of one composition to the training set"
    if why is not None:
        return Finding(name, FLAGGED, max(stds.values(), default=None), TOLERANCE, "eV", f"{why}.", remedy)
    if "chemical_potential" in stds:
        text = (
            "charge states of one geometry are set by the prior: the standard deviation of the chemical potential is "
            f"{stds['chemical_potential']:.2g} eV/e."
        )
        return Finding(name, NOTE, stds["chemical_potential"], TOLERANCE, "eV", text, remedy)
    text = "element energies and chemical potential behind the energy of this geometry follow from the data."
    return Finding(name, OK, None, TOLERANCE, "eV", text)


# ---------------------------------------------------------------- charge ranges


def _range(
    values: FloatArray | None, ranges: FloatArray, explained: FloatArray, structure: Structure
) -> Finding:
    assert values is not None
    beyond = _beyond(values, ranges)
    worst = int(np.argmax(beyond))
    low, high = ranges[worst]
    text = (
        f"charges from {values.min():+.3f} to {values.max():+.3f} e; closest to its limit is "
        f"{_atom(structure, worst)} with {values[worst]:+.3f} e, possible are {low:+g} to {high:+g}."
    )
    name, unit = "charges against physical ranges", "e beyond them"
    value = float(beyond[worst])
    if value > 0.0:
        remedy = (
            "raise the hardness or let the fit learn it (hardness='learn'), fit to dipoles as well, or add frames like "
            "this one to the training set"
        )
        return Finding(name, FLAGGED, value, 0.0, unit, text, remedy)
    unexplained = _beyond(values, explained)
    if unexplained.max() <= 0.0:
        return Finding(name, OK, value, 0.0, unit, text)
    worst = int(np.argmax(unexplained))
    low, high = explained[worst]
    text += (
        f" {(unexplained > 0.0).sum()} of {len(values)} atoms carry more than their bonds explain, most of all "
        f"{_atom(structure, worst)} with {values[worst]:+.3f} e: the ionic character of its bonds allows {low:+.2f} to "
        f"{high:+.2f}."
    )
    remedy = (
        "energies, forces and dipoles leave open how bonded atoms share their charge; where the charges themselves "
        "matter, label them: charges_key= an array of the frames with your DFT's charges, noise={'charges': 0.05}"
    )
    return Finding(name, NOTE, value, 0.0, unit, text, remedy)


def _beyond(values: FloatArray, ranges: FloatArray) -> FloatArray:
    return np.asarray(np.maximum(ranges[:, 0] - values, values - ranges[:, 1]))


def _atom(structure: Structure, index: int) -> str:
    return f"{chemical_symbols[structure.numbers[index]]} (atom {index})"


# ---------------------------------------------------------------- extrapolation


def _extrapolation(
    model: Any, atoms: Atoms, found: Novelty, total_charge: Any, external_field: Any
) -> Finding:
    far = np.where(found.distances > NOVELTY_LEAST, found.relative, np.minimum(found.relative, NOVELTY_FLAG))
    worst = int(np.argmax(far))
    value = float(found.relative[worst])
    symbol = chemical_symbols[found.numbers[worst]]
    beyond = int((far > NOVELTY_FLAG).sum())
    text = (
        "1 - max kernel similarity to the representatives, in units of the largest such distance among them; largest "
        f"for {symbol} (atom {worst}) with 1 - k = {found.distances[worst]:.2g}; {beyond} of {len(atoms)} atoms are far "
        f"(beyond {NOVELTY_FLAG:g} and 1 - k > {NOVELTY_LEAST:g})."
    )
    if model.posterior_ is not None:
        wanted = ["energy"]
        prediction = model.predict(
            atoms,
            total_charge=total_charge,
            external_field=external_field,
            properties=wanted,
            uncertainty=True,
        )
        parts = []
        if prediction.energy_std is not None:
            parts.append(f"energy {1e3 * prediction.energy_std / len(atoms):.2g} meV/atom")
        if prediction.dipole_std is not None:
            parts.append(f"dipole {np.linalg.norm(prediction.dipole_std):.2g} e·Å")
        text += f" Standard deviations of the model here: {', '.join(parts)}."
    remedy = (
        f"the model extrapolates for {formula(atoms)}: label such structures and add them to the training set "
        "(kqeq.select finds the most useful ones of a pool)"
    )
    verdict = FLAGGED if beyond else NOTE if value > NOVELTY_NOTE else OK
    name = "extrapolation (distance to the training environments)"
    return Finding(name, verdict, value, NOVELTY_FLAG, "", text, "" if verdict == OK else remedy)


__all__ = ["FAR", "MAX_EXPONENT", "MAX_LEAK", "NOVELTY_FLAG", "NOVELTY_LEAST", "describe_charges", "diagnose"]
