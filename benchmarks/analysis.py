"""Whether the analysis is right, and what it says about good models beside DFT.

    python benchmarks/analysis.py [--quick] [--json FILE] [--only SECTION ...]

``differences``  every quantity against finite differences of energy or dipole, three charge models
``diagnosis``    growth exponents of alkanes and leakage of salt, by charge model
``repeated``     what a repeated question costs: same geometry, new field or charge
``nve``          10 ps of a charged cluster in a field: drift of the conserved energy
``relaxation``   ions in fields to 0.01 eV/Å, centre of mass held
``geometries``   relaxed Ag3 and Zn3O3 by charge state, bond lengths against DFT
``ionization``   vertical ionization energy and electron affinity of Zn3O3 on test frames, against DFT
``infrared``     spectra and Born charges of water and N-methylacetamide against DFT

Sections whose DFT data are not there say so and are skipped.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

import kqeq
from common import Row, main, row
from kqeq import analysis
from kqeq.analysis.optimization import optimize
from kqeq.analysis.vibrations import Infrared
from kqeq.cli.demo import ag3_settings
from kqeq.constants import COULOMB

LEARN = "learn"
CHARGES = {"QEq": kqeq.QEq(), "ACKS2": kqeq.ACKS2(), "ACKS2 + dipoles": kqeq.AtomicDipoles()}
LEARNED = kqeq.AtomicDipoles(kqeq.ACKS2(LEARN, LEARN, LEARN), LEARN)
FIELD = np.array([0.03, -0.02, 0.05])  # V/Å


def missing(name: str, why: str = "") -> bool:
    """Whether a data set is not there, with a message."""
    if name in kqeq.datasets.names():
        return False
    print(f"skipped: there is no data set {name!r}{why}")
    return True


def bare(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, atoms.positions)


def small(r_cut: float, **options: float) -> kqeq.SOAPKernel:
    return kqeq.SOAPKernel(**{"r_cut": r_cut, "n_max": 5, "l_max": 4, "n_representatives": 40, **options})


# --------------------------------------------------------------------------------------------- differences


def derivative(function, step: float) -> np.ndarray:
    """Sixth-order central difference."""
    weights = (45.0 / 60.0, -9.0 / 60.0, 1.0 / 60.0)
    return sum(w * (function(k * step) - function(-k * step)) for k, w in enumerate(weights, 1)) / step


def differences(quick: bool) -> Iterator[Row]:
    train = [a for a in kqeq.datasets.load("water") if a.info["seed"] == 0]
    frame = next(a for a in kqeq.datasets.load("water") if a.info["system"] == "hydronium")
    ion = bare(frame)
    for name, charges in CHARGES.items():
        model = kqeq.KQEq(small(3.5), small(4.0, zeta=4), charges=charges).fit(train[:: 6 if quick else 3])
        yield from _differences(name, model, ion)


def _differences(name: str, model: kqeq.KQEq, ion: Atoms) -> Iterator[Row]:
    def predict(atoms=ion, charge=1.0, field=FIELD):
        return model.predict(atoms, total_charge=charge, external_field=field, properties=["energy"])

    given = {"total_charge": 1, "external_field": FIELD}

    def relative(found, numeric) -> float:
        return float(np.abs(found - numeric).max() / np.abs(numeric).max())

    def moved(k, b, t):
        copy = ion.copy()
        copy.positions[k, b] += t
        return copy

    alpha = analysis.polarizability(model, ion, **given)
    numeric = np.array(
        [derivative(lambda t, a=a: predict(field=FIELD + t * np.eye(3)[a]).dipole, 0.05) for a in range(3)]
    ).T
    yield row(
        f"{name}: polarizability, relative to d dipole/dfield", relative(alpha.total, numeric), "", "< 1e-6"
    )
    lost = float(np.abs(alpha.atomic.sum(axis=0) - alpha.total).max() / np.abs(alpha.total).max())
    yield row(f"{name}:   sum of the atomic ones", lost, "", "< 1e-6")
    born = analysis.born_charges(model, ion, **given)
    numeric = np.array(
        [
            np.array(
                [derivative(lambda t, k=k, b=b: predict(moved(k, b, t)).dipole, 2e-3) for b in range(3)]
            ).T
            for k in range(len(ion))
        ]
    )
    yield row(f"{name}: Born charges, relative to d dipole/dr", relative(born.tensors, numeric), "", "< 1e-6")
    yield row(f"{name}:   sum rule", born.sum_rule_error, "e", "< 1e-8")
    response = analysis.charge_response(model, ion, **given)
    slope = derivative(lambda t: predict(charge=1 + t).energy, 0.05)
    curvature = derivative(lambda t: predict(charge=1 + t).chemical_potential, 0.05)
    fukui = derivative(lambda t: predict(charge=1 + t).charges, 0.05)
    yield row(f"{name}: dE/dQ, relative", abs(response.chemical_potential / slope - 1), "", "< 1e-6")
    yield row(f"{name}: d²E/dQ², relative", abs(response.hardness / curvature - 1), "", "< 1e-6")
    yield row(f"{name}: Fukui function, relative", relative(response.fukui, fukui), "", "< 1e-6")
    second = analysis.hessian(model, ion, **given, step=2e-3)
    forces = np.array(
        [
            derivative(
                lambda t, i=i: (
                    -model.predict(moved(*divmod(i, 3), t), **given, properties=["forces"]).forces.ravel()
                ),
                4e-3,
            )
            for i in range(3 * len(ion))
        ]
    )
    yield row(f"{name}: Hessian, relative", relative(second, forces), "", "< 1e-4")
    scan = analysis.field_scan(model, ion, (-1.0, 1.0), total_charge=1)
    numeric = -derivative(lambda t: predict(field=np.array([0, 0, 1.0 + t])).energy, 0.05)
    yield row(f"{name}: dipole at 1 V/Å, relative", abs(scan.dipoles[1, 2] / numeric - 1), "", "< 1e-6")
    points = ion.positions + np.array([0.7, 1.1, -0.9])
    found = analysis.electrostatic_potential(model, ion, points, **given)
    numeric = np.array(
        [
            -derivative(
                lambda t, a=a: (
                    analysis.electrostatic_potential(model, ion, points + t * np.eye(3)[a], **given).potential
                ),
                1e-2,
            )
            for a in range(3)
        ]
    ).T
    yield row(f"{name}: electrostatic field, relative", relative(found.field, numeric), "", "< 1e-6")


# ----------------------------------------------------------------------------------------------- diagnosis


def diagnosis(quick: bool) -> Iterator[Row]:
    alkanes = [a for a in kqeq.datasets.load("polarizability") if 2 <= sum(a.numbers == 6) <= 5]
    for name, charges in {"QEq": kqeq.QEq(), "ACKS2 + dipoles, learned": LEARNED}.items():
        targets = ["dipole", "polarizability"] if charges.to_learn else ["dipole"]
        model = kqeq.KQEq(small(4.0), None, charges=charges, targets=targets).fit(alkanes)
        found = analysis.diagnose(model)
        target = "< 1.3" if charges.to_learn else ">= 1.3"
        yield row(
            f"{name}, fitted on C2 to C5: growth exponent at C12", found.growth.exponents[-1], "", target
        )
        yield row(f"{name}:   polarizability along C12", found.growth.polarizabilities[-1], "Å³")
    train, test = kqeq.datasets.split("nacl")
    geometry = next(a for a in test if len(a) == 17)
    for name, charges in CHARGES.items():
        model = kqeq.KQEq(small(4.0), small(4.5, zeta=4), charges=charges).fit(train)
        found = analysis.diagnose(model, geometry)
        target = ">= 0.05" if name == "QEq" else "< 0.05"
        for pulled, scan in found.dissociations.items():
            last = scan.fragment_charges[-1]
            yield row(
                f"{name}, {pulled}: fraction of a charge apart",
                float(np.abs(last - np.round(last)).max()),
                "e",
                target,
            )


# ------------------------------------------------------------------------------------------------ repeated


def repeated(quick: bool) -> Iterator[Row]:
    """Processor times of single questions (other work on the machine does not count); fastest of several."""
    train, test = kqeq.datasets.split("nacl")
    model = kqeq.KQEq(small(4.0), small(4.5, zeta=4)).fit(train)
    atoms = next(a for a in test if len(a) == 17)
    atoms = bare(atoms)
    atoms.calc = kqeq.KQEqCalculator(model, total_charge=1)
    count = 5 if quick else 40
    rng = np.random.default_rng(0)

    def fastest(prepare, ask) -> float:
        times = []
        for _ in range(count):
            prepare()
            started = time.process_time()
            ask()
            times.append(time.process_time() - started)
        return 1e3 * min(times)

    def move() -> None:
        atoms.positions += rng.normal(scale=1e-3, size=atoms.positions.shape)

    def other_field() -> None:
        atoms.calc.external_field = rng.normal(scale=0.01, size=3)

    def other_charge() -> None:
        atoms.calc.total_charge = float(rng.normal(scale=0.1))

    def energy_known() -> None:
        move()
        atoms.get_potential_energy()

    fresh = fastest(move, atoms.get_forces)
    yield row("17 atoms: energy and forces, new geometry", fresh, "ms")
    yield row("17 atoms: forces after the energy", fastest(energy_known, atoms.get_forces), "ms")
    field = fastest(other_field, atoms.get_potential_energy)
    yield row("17 atoms: energy and dipole, new field", field, "ms")
    yield row("17 atoms: forces, new field", fastest(other_field, atoms.get_forces), "ms")
    yield row("17 atoms: energy, new charge", fastest(other_charge, atoms.get_potential_energy), "ms")
    yield row("17 atoms: dipole after the energy", fastest(lambda: None, atoms.get_dipole_moment), "ms")
    new = fastest(move, atoms.get_potential_energy)
    yield row("17 atoms: energy, new geometry / new field", new / field, "", ">= 2")
    predict = fastest(
        lambda: None, lambda: model.predict(atoms, total_charge=1, properties=["energy", "forces"])
    )
    scan = fastest(
        lambda: None, lambda: analysis.field_scan(model, atoms, np.linspace(-1, 1, 21), total_charge=1)
    )
    yield row(
        "17 atoms: field scan of 21 points with forces / 21 predictions", scan / 21 / predict, "", "<= 0.8"
    )
    born = fastest(lambda: None, lambda: analysis.born_charges(model, atoms, total_charge=1))
    yield row("17 atoms: Born charges / one prediction", born / predict, "")


# ----------------------------------------------------------------------------------------------------- nve


@lru_cache
def salt() -> kqeq.KQEq:
    train, _ = kqeq.datasets.split("nacl")
    return kqeq.KQEq(small(4.5, n_representatives=100), small(5.0, zeta=4, n_representatives=100)).fit(train)


def nve(quick: bool) -> Iterator[Row]:
    """Na9Cl8(+) at 300 K, 1 fs steps, 0.05 V/Å; momentum grows, since the field pulls on the charge."""
    _, test = kqeq.datasets.split("nacl")
    start = optimize(salt(), bare(next(a for a in test if len(a) == 17)), total_charge=1, fmax=0.02)
    atoms = start.atoms
    atoms.info = {}
    field = np.array([0.0, 0.0, 0.05])
    atoms.calc = kqeq.KQEqCalculator(salt(), total_charge=1, external_field=field)
    spread = np.sqrt(2.0 * atoms.get_masses() * units.kB * 300.0)  # half of it goes into potential energy
    atoms.set_momenta(np.random.default_rng(0).normal(size=(len(atoms), 3)) * spread[:, None])
    steps = 500 if quick else 10_000
    total, work, kinetic = [], [], []
    started = time.perf_counter()
    for _ in VelocityVerlet(atoms, 1.0 * units.fs).irun(steps):
        total.append(atoms.get_total_energy())
        work.append(-atoms.get_dipole_moment() @ field)
        kinetic.append(atoms.get_kinetic_energy())
    seconds = time.perf_counter() - started
    values = 1e3 * (np.array(total) - total[0]) / len(atoms)
    part = max(1, len(values) // 20)
    slope = np.polyfit(np.arange(len(values)) * 1e-3, values, 1)[0]
    change = abs(values[-part:].mean() - values[:part].mean())
    yield row("Na9Cl8(+) in 0.05 V/Å: length of the trajectory", 1e-3 * steps, "ps")
    yield row("  change of the conserved energy, last against first 5 %", change, "meV/atom", "< 1")
    yield row("  slope of a straight line", abs(slope), "meV/atom/ps")
    yield row("  largest excursion", float(np.abs(values).max()), "meV/atom")
    yield row("  range of -dipole·field in that time", 1e3 * float(np.ptp(work)) / len(atoms), "meV/atom")
    centre = atoms.get_momenta().sum(axis=0)
    yield row("  momentum of the centre / (Q field time)", float(_gained(atoms, centre, field, steps)), "")
    internal = np.mean(kinetic[: max(1, steps // 10)]) / (1.5 * len(atoms) * units.kB)
    yield row("  mean temperature of the first tenth", float(internal), "K")
    reach = atoms.positions - atoms.get_center_of_mass()
    yield row(
        "  largest distance from the centre of mass at the end",
        float(np.linalg.norm(reach, axis=1).max()),
        "Å",
    )
    yield row("  time of a step", 1e3 * seconds / steps, "ms")


def _gained(atoms: Atoms, momentum: np.ndarray, field: np.ndarray, steps: int) -> float:
    """Momentum along the field that was gained, in units of what the field gives to the charge."""
    spread = np.sqrt(2.0 * atoms.get_masses() * units.kB * 300.0)
    start = (np.random.default_rng(0).normal(size=(len(atoms), 3)) * spread[:, None]).sum(axis=0)
    return float((momentum - start) @ field / (field @ field * steps * units.fs))


# ---------------------------------------------------------------------------------------------- relaxation


def relaxation(quick: bool) -> Iterator[Row]:
    train, test = kqeq.datasets.split("water")
    model = kqeq.KQEq(small(4.0, n_representatives=100), small(4.5, zeta=4, n_representatives=100)).fit(train)
    cases = [
        ("H3O(+)", next(a for a in test if a.info["system"] == "hydronium"), 1),
        ("OH(-)", next(a for a in test if a.info["system"] == "hydroxide"), -1),
        ("(H2O)3", next(a for a in test if a.info["system"] == "water3"), 0),
        ("Na9Cl8(+)", next(a for a in kqeq.datasets.split("nacl")[1] if len(a) == 17), 1),
    ]
    for name, atoms, charge in cases:
        fitted = salt() if "Na" in name else model
        for strength in (0.0, 0.1):
            field = np.array([0.0, 0.0, strength])
            end = optimize(fitted, bare(atoms), total_charge=charge, external_field=field, fmax=0.01)
            state = f"{name} in {strength:g} V/Å"
            yield row(f"{state}: largest force after {end.steps} steps", end.max_force, "eV/Å", "<= 0.01")
            moved = np.linalg.norm(end.atoms.get_center_of_mass() - bare(atoms).get_center_of_mass())
            if end.held_centre_of_mass:
                yield row(f"{state}: motion of the centre of mass", float(moved), "Å", "< 1e-6")


# ---------------------------------------------------------------------------------------------- geometries


def bond_deviation(atoms: Atoms, reference: Atoms) -> tuple[float, int]:
    """Largest difference of bond lengths, by element pair in ascending order, and the number of bonds.

    Bonds are distances below 1.3 sums of covalent radii in the reference; as many of the shortest are compared.
    """
    from ase.data import covalent_radii

    upper = np.triu_indices(len(atoms), 1)
    pairs = np.sort(reference.numbers[np.stack(upper)], axis=0)
    limits = 1.3 * covalent_radii[pairs].sum(axis=0)
    worst, count = 0.0, 0
    for pair in np.unique(pairs, axis=1).T:
        own = (pairs == pair[:, None]).all(axis=0)
        found, expected = (np.sort(a.get_all_distances()[upper][own]) for a in (atoms, reference))
        bonds = int((expected < limits[own]).sum())
        count += bonds
        worst = max(worst, float(np.abs(found - expected)[:bonds].max(initial=0.0)))
    return worst, count


def one_method(frames: Sequence[Atoms]) -> bool:
    """Whether all labels come from one method."""
    return len({str(a.info["method"]).lower() for a in frames}) == 1


_WIDE = {"r_cut": 5.0, "n_max": 6, "l_max": 4, "sigma": 0.5, "zeta": 2}
ZNO = {
    "electronegativity": kqeq.SOAPKernel(**_WIDE),
    "short_range": kqeq.SOAPKernel(r_cut=5.0, n_max=8, l_max=6, sigma=0.7, zeta=4),
    "site_kernel": kqeq.SOAPKernel(**_WIDE, delta=0.5),
    "charges": kqeq.QEq(hardness="kernel"),
    "baseline": "zbl",
}
"""Chosen by the errors of vertical energies in a fourfold cross-validation over training geometries of Zn3O3; the
baseline, zero in all frames, keeps relaxations from atoms on top of each other."""


def geometries(quick: bool) -> Iterator[Row]:
    """Models of the packaged sets; each charge state is relaxed from the shaken DFT minimum and from test frames.

    The cation of Zn3O3 is a Jahn-Teller system: its ring distorts in several ways of nearly the same energy, and where
    a relaxation ends depends on its start.
    """
    if missing("relaxed"):
        return
    minima = {a.info["system"]: a for a in kqeq.datasets.load("relaxed")}
    for names, systems, settings in (
        (("ag3",), ("ag3_plus", "ag3_minus"), ag3_settings()),
        (("zno", "zno_vertical"), ("zn3o3_plus", "zn3o3_neutral", "zn3o3_minus"), ZNO),
    ):
        train, test = kqeq.datasets.split(*names)
        for system in systems:
            if system not in minima:
                print(f"skipped: no relaxed geometry of {system}")
                continue
            reference = minima[system]
            # energies of two basis sets cannot be compared
            own = [a for a in train if a.info["system"] in systems and one_method([a, reference])]
            if not any(a.info["system"] == system for a in own):
                print(f"skipped: no training frames of {system} with the method {reference.info['method']}")
                continue
            model = _fitted(f"{names[0]} {reference.info['method']}", settings, own)
            charge = reference.info["total_charge"]
            near = bare(reference)
            near.rattle(0.02, seed=0)
            starts = [near, *(bare(a) for a in test if a.info["system"] == system)]
            deviations = []
            for atoms in starts[: 2 if quick else None]:
                if not (atoms.numbers == reference.numbers).all():
                    raise ValueError(f"{system}: the atoms of the relaxed geometry are in another order")
                end = optimize(model, atoms, total_charge=charge, fmax=0.01).atoms
                deviations.append(bond_deviation(end, reference))
            deviation, count = deviations[0]
            yield row(
                f"{system}: largest deviation of {count} bonds, from DFT's minimum", deviation, "Å", "<= 0.03"
            )
            others = np.array([x for x, _ in deviations[1:]])
            yield row(
                f"{system}:   the same, median from {len(others)} test frames",
                float(np.median(others)),
                "Å",
                "<= 0.03",
            )
            yield row(f"{system}:   fraction of these below 0.03 Å", float((others <= 0.03).mean()), "")


_MODELS: dict[str, kqeq.KQEq] = {}


def _fitted(name: str, settings: dict, frames: list[Atoms]) -> kqeq.KQEq:
    if name not in _MODELS:
        _MODELS[name] = kqeq.KQEq(**settings).fit(frames)
    return _MODELS[name]


# ---------------------------------------------------------------------------------------------- ionization


def ionization(quick: bool) -> Iterator[Row]:
    """Trained on Zn3O3 and Zn3O3(+) of their own dynamics and both ions at neutral geometries."""
    if missing("zno_vertical", ": DFT energies of Zn3O3(+) and Zn3O3(-) at neutral test geometries"):
        return
    # energies of two basis sets cannot be compared
    train, test = kqeq.datasets.split("zno", "zno_vertical", method="PBE0/def2-svp")
    neutral = [a for a in test if a.info["system"] == "zn3o3_neutral"]
    ions = [a for a in test if a.info.get("geometry") == "zn3o3_neutral"]
    variants = {
        "QEq": {"charges": kqeq.QEq()},
        "QEq, learned": {"charges": kqeq.QEq(LEARN, LEARN)},
        "QEq, hardness by kernel": ZNO,
        "QEq, hardness by kernel, charge-aware": ZNO | {"charge_aware": kqeq.ChargeKernel()},
        "ACKS2 + dipoles": {"charges": LEARNED},
    }
    for name, settings in variants.items():
        model = kqeq.KQEq(**settings).fit(train)
        errors: dict[int, list[float]] = {1: [], -1: []}
        for frame in neutral:
            for ion in ions:
                if np.abs(ion.get_all_distances() - frame.get_all_distances()).max() > 1e-4:
                    continue
                sign = round(float(ion.info["total_charge"]))
                reference = sign * (ion.get_potential_energy() - frame.get_potential_energy())
                found = analysis.ionization(model, bare(frame))
                value = found.vertical_ionization_energy if sign == 1 else found.vertical_electron_affinity
                errors[sign].append(value - reference)
        for sign, what in ((1, "ionization energy"), (-1, "electron affinity")):
            if errors[sign]:
                rmse = float(np.sqrt(np.mean(np.square(errors[sign]))))
                count = len(errors[sign])
                yield row(f"{name}: vertical {what}, RMSE over {count} test frames", rmse, "eV", "<= 0.05")
                yield row(f"{name}:   mean error", float(np.mean(errors[sign])), "eV")


# ------------------------------------------------------------------------------------------------ infrared


def reference_spectrum(frame: Atoms) -> Infrared:
    """The DFT spectrum of a labelled minimum, as a result of ours."""
    n = len(frame)
    return Infrared(
        frequencies=np.ravel(frame.info["frequencies"]),
        intensities=np.ravel(frame.info["intensities"]),
        modes=np.zeros((0, n, 3)),
        dipole_derivatives=np.zeros((0, 3)),
        born_charges=frame.arrays["born_charges"].reshape(n, 3, 3),
        numbers=frame.numbers,
        positions=frame.positions,
        cell=frame.cell.array,
        pbc=frame.pbc,
        total_charge=0.0,
        external_field=np.zeros(3),
        masses=frame.get_masses(),
        free_atoms=n,
        energy=frame.get_potential_energy(),
        max_force=0.0,
        zero_point_energy=0.0,
    )


NOISE = {"energy": 1e-4, "forces": 3e-3, "dipole": 1e-3}
"""eV/atom, eV/Å, e·Å: labels of one small molecule without noise."""


def infrared_settings(system: str) -> dict[str, dict]:
    """Settings of the models of a molecule, by what is added to the name of the molecule."""
    if system != "nma":
        return {"": {"noise": NOISE}}
    # chosen by the errors of a trajectory that was left out of the training frames
    small_molecule = {"r_cut": 4.0, "n_max": 6, "l_max": 4, "zeta": 2}
    own = {
        "electronegativity": kqeq.SOAPKernel(sigma=0.3, n_representatives=100, **small_molecule),
        "short_range": kqeq.SOAPKernel(sigma=0.5, n_representatives=200, **small_molecule),
        "noise": {"energy": 5e-4, "forces": 1e-2, "dipole": 1e-3},
    }
    found = {"": own}
    if importlib.util.find_spec("tblite"):
        from tblite.ase import TBLite

        found[" on GFN2-xTB"] = own | {"baseline": TBLite(method="GFN2-xTB", verbosity=0)}
    else:
        print("skipped: a baseline of GFN2-xTB needs tblite")
    return found


def infrared(quick: bool) -> Iterator[Row]:
    """Models of the packaged frames of the molecule (dynamics and fields); fitted without the minimum itself."""
    if missing("vibrations"):
        return
    for frame in kqeq.datasets.load("vibrations"):
        train = training_of(frame)
        if train is None:
            print(
                f"skipped: no training frames for {frame.info['system']} with the method {frame.info['method']}"
            )
            continue
        for addition, settings in infrared_settings(frame.info["system"]).items():
            model = kqeq.KQEq(charges=LEARNED, **settings).fit(train)
            yield from _infrared(f"{frame.info['system']}{addition}", model, frame, len(train))


def _infrared(name: str, model: kqeq.KQEq, frame: Atoms, count: int) -> Iterator[Row]:
    expected = reference_spectrum(frame)
    found = analysis.infrared(model, bare(frame))
    shift = np.abs(found.frequencies - expected.frequencies)
    weights = expected.intensities / expected.intensities.sum()
    yield row(f"{name}: training frames", count, "")
    yield row(f"{name}: largest shift of a mode", float(shift.max()), "1/cm", "<= 30")
    yield row(f"{name}:   of how many modes it exceeds 30, of {len(shift)}", int((shift > 30.0).sum()), "")
    yield row(f"{name}:   at the wavenumber", float(expected.frequencies[shift.argmax()]), "1/cm")
    yield row(f"{name}: mean shift", float(shift.mean()), "1/cm")
    yield row(f"{name}:   weighted by intensities", float(shift @ weights), "1/cm")
    born = analysis.born_charges(model, bare(frame))
    error = born.tensors - expected.born_charges
    yield row(f"{name}: RMSE of Born charges at the DFT minimum", float(np.sqrt(np.mean(error**2))), "e")
    yield row(f"{name}:   their RMS", float(np.sqrt(np.mean(expected.born_charges**2))), "e")
    for symbol in dict.fromkeys(frame.symbols):
        own = np.array(frame.symbols) == symbol
        traces = [
            np.trace(b, axis1=1, axis2=2)[own].mean() / 3 for b in (born.tensors, expected.born_charges)
        ]
        yield row(f"{name}:   a third of the trace, mean of {symbol}", float(traces[0]), "e")
        yield row(f"{name}:   the same, DFT", float(traces[1]), "e")
    yield row(
        f"{name}: relative error of the total intensity",
        float(abs(found.intensities.sum() / expected.intensities.sum() - 1)),
        "",
    )
    alpha = np.reshape(frame.info["polarizability"], (3, 3))
    error = COULOMB * (analysis.polarizability(model, bare(frame)).total - alpha)
    yield row(f"{name}: largest error of the polarizability", float(np.abs(error).max()), "Å³")


def training_of(frame: Atoms) -> list[Atoms] | None:
    """Packaged frames of the same atoms and method."""
    formula, method = frame.get_chemical_formula(), str(frame.info["method"]).lower()
    found = []
    for name in kqeq.datasets.names():
        if name in ("vibrations", "relaxed", "polarizability"):  # these are minima
            continue
        for atoms in kqeq.datasets.load(name):
            same = atoms.get_chemical_formula() == formula and not atoms.pbc.any()
            if same and str(atoms.info.get("method", "")).lower() == method:
                found.append(atoms)
    return found or None


SECTIONS = {
    "differences": differences,
    "diagnosis": diagnosis,
    "repeated": repeated,
    "nve": nve,
    "relaxation": relaxation,
    "geometries": geometries,
    "ionization": ionization,
    "infrared": infrared,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore", kqeq.errors.KQEqWarning)
    main(__doc__ or "", SECTIONS)
