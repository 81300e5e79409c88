"""Models on top of a baseline that knows charge, field and dipole: derivatives of the whole energy, fits, files."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms

import kqeq
from baseline_checks import Electrons
from checks import assert_close, assert_forces, central_difference, strain_gradient
from kqeq import ACKS2, AtomicDipoles, ChargeKernel, KQEq
from kqeq.baselines import AtReferenceCharge, Sum
from kqeq.errors import ConvergenceError, InputError, LabelWarning, UnsupportedError
from kqeq.fitting.baseline_labels import subtract_baseline
from kqeq.fitting.minimisation import minimise_problem
from kqeq.fitting.problem import FitProblem
from kqeq.fitting.rows.targets import choose_labels
from kqeq.frames.labels import read_frames
from kqeq.frames.structures import read_structure

NOISE = {"energy": 0.02, "forces": 0.2, "dipole": 0.02}
FIELD = np.array([0.1, -0.07, 0.12])


@pytest.fixture(scope="module")
def frames(water_training):
    """Labels of charge −1, 0 and +1, some in a field: a baseline, and a smooth error of every charge state."""
    truth, result = Electrons(hardness=11.0), []
    for n, atoms in enumerate(water_training):
        frame = Atoms(atoms.numbers, atoms.positions)
        frame.info["total_charge"] = charge = atoms.info["total_charge"]
        frame.info["external_field"] = FIELD * (n % 3)
        found = truth.evaluate(read_structure(frame))
        frame.info["energy"] = found.energy + 0.3 * charge + 0.2 * charge**2
        frame.info["dipole"] = found.dipole
        frame.arrays["forces"] = -found.gradient
        result.append(frame)
    return result


def build(kernel, frames, **options):
    settings = {"baseline": Electrons(), "noise": NOISE, "max_iterations": 10, **options}
    chi, short = settings.pop("chi", kernel(3.5)), settings.pop("short", kernel(4.0))
    return KQEq(chi, short, **settings).fit(frames)


@pytest.fixture(scope="module")
def models(kernel, frames):
    """Every kind of model on top, once."""
    none = {"chi": None, "charges": None}
    return {
        "short range": build(kernel, frames, **none),
        "QEq": build(kernel, frames),
        "ACKS2": build(kernel, frames, charges=AtomicDipoles(ACKS2())),
        "sees charges": build(kernel, frames, charge_aware=ChargeKernel(2)),
        "short range sees charges": build(kernel, frames, charge_aware=ChargeKernel(2), **none),
        "charge from model": build(kernel, frames, charge_from="model"),
        "charge from model, aware": build(kernel, frames, charge_from="model", charge_aware=ChargeKernel(2)),
        "sum": build(kernel, frames, baseline=[Electrons(), "zbl:0.3:1.2"]),
    }


KINDS = (
    "short range",
    "QEq",
    "ACKS2",
    "sees charges",
    "short range sees charges",
    "charge from model",
    "charge from model, aware",
    "sum",
)


def ion():
    atoms = Atoms("OH3", [[1.0, 2, 3], [1.98, 2, 3], [0.51, 2.85, 3.2], [0.51, 1.15, 3.1]])
    atoms.info.update(total_charge=1.0, external_field=FIELD)
    return atoms


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_a_derivative_of_the_whole_energy(models, kind):
    model, atoms = models[kind], ion()
    here = model.predict(atoms)

    def energy(structure):
        return model.predict(structure, properties=["energy"]).energy

    assert_forces(here.forces, energy, atoms, rtol=1e-6, at_least=0.5)
    assert here.energy_baseline != 0.0

    def in_field(what, axis):
        def value(t):
            field = FIELD + t * np.eye(3)[axis]
            return np.asarray(getattr(model.predict(atoms, external_field=field, properties=[what]), what))

        return value

    atoms.info.pop("external_field")
    fields = [-central_difference(in_field("energy", a), 0.05) for a in range(3)]
    here = model.predict(atoms, external_field=FIELD)
    assert_close(here.dipole, np.array(fields), rtol=1e-7, at_least=0.5)
    slopes = np.stack([central_difference(in_field("dipole", a), 0.05) for a in range(3)], axis=1)
    assert_close(here.polarizability, slopes, rtol=1e-6, at_least=0.02)
    # an ion in a field: the net force is Q·field, the charges sum to Q
    np.testing.assert_allclose(here.forces.sum(axis=0), FIELD, atol=1e-7)
    assert here.charges.sum() == pytest.approx(1.0, abs=1e-9)
    torque = np.cross(atoms.positions, here.forces).sum(axis=0)
    np.testing.assert_allclose(torque, np.cross(here.dipole, FIELD), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_stress_is_the_strain_derivative(models, kind):
    rng = np.random.default_rng(2)
    atoms = Atoms("OH3", ion().positions, cell=[[5.5, 0, 0], [0.6, 5.0, 0.2], [-0.3, 0.4, 5.2]], pbc=True)
    atoms.positions += 0.05 * rng.normal(size=(4, 3))
    atoms.info["total_charge"] = 1.0
    model = models[kind]
    here = model.predict(atoms)

    def energy(structure):
        return model.predict(structure, properties=["energy"]).energy

    assert_close(here.stress * atoms.get_volume(), strain_gradient(energy, atoms), rtol=1e-5, at_least=0.1)
    assert here.dipole is None


def test_without_a_reason_nothing_is_undefined(models):
    here = models["QEq"].predict(ion())
    for name in ("chemical_potential", "hardness"):
        assert getattr(here, name) is None
        assert "whole electrons" in here.undefined[name]
    free = models["charge from model"].predict(ion())
    assert free.chemical_potential is not None
    assert not free.undefined


# ------------------------------------------------------------------------ fits


def on_truth(frames, baseline):
    """The frames with labels that are those of a baseline, and element energies."""
    result = []
    for atoms in frames:
        frame = atoms.copy()
        found = baseline.evaluate(read_structure(frame))
        frame.info.update(energy=found.energy - 13.0 * len(frame), dipole=found.dipole)
        frame.arrays.update(forces=-found.gradient, mine=found.charges)
        result.append(frame)
    return result


def test_a_baseline_that_is_exact_leaves_nothing_to_fit(kernel, frames):
    """Energies, forces, dipoles and charges are offsets: what is left of them for the kernels is zero."""
    exact = on_truth(frames, Electrons())
    short = build(kernel, exact, chi=None, charges=None)
    assert short.evaluate(exact)["forces"].rmse < 1e-9
    assert max(abs(c).max() for _, own in short.potential_.short_range.terms for c in own.values()) < 1e-9
    both = build(kernel, exact, targets=["energy", "forces", "dipole", "charges"], charges_key="mine")
    errors = both.evaluate(exact)
    # electronegativities start from cited values and have to find that nothing is left
    assert errors["dipole"].rmse < 0.02 and errors["charges"].rmse < 0.02
    assert {"energy", "forces", "dipole", "charges"} <= errors.keys()


def test_dipoles_alone_are_fitted_on_the_dipole_of_the_baseline(kernel, frames):
    model = build(kernel, frames, short=None, targets=["dipole"])
    assert model.potential_.baseline is not None
    assert model.evaluate(frames)["dipole"].rmse < 0.02
    own = replace(model.potential_, baseline=None)
    structure = read_structure(ion())
    base = Electrons().evaluate(structure)
    rest = own.predict(structure.under(0.0, FIELD))
    np.testing.assert_allclose(model.predict(ion()).dipole, base.dipole + rest.dipole, atol=1e-12)
    assert np.abs(rest.dipole).max() > 1e-3
    # a function of the geometry adds nothing to dipoles: it is left away, as ever
    assert build(kernel, frames, short=None, targets=["dipole"], baseline="zbl").potential_.baseline is None


def test_the_correction_has_to_see_the_charge(models, frames):
    """0.3 Q + 0.2 Q² eV are added to the labels; only a correction that sees Q can know."""

    def levels(model):
        atoms = ion()
        atoms.info = {}
        return np.array([model.predict(atoms, total_charge=q).energy for q in (-1, 0, 1)])

    truth = np.array(
        [
            Electrons(hardness=11.0)
            .evaluate(read_structure(ion(), external_field=FIELD).under(q, np.zeros(3)))
            .energy
            + 0.3 * q
            + 0.2 * q**2
            for q in (-1, 0, 1)
        ]
    )
    base = np.array(
        [Electrons().evaluate(read_structure(ion()).under(q, np.zeros(3))).energy for q in (-1, 0, 1)]
    )
    blind, seeing = levels(models["short range"]), levels(models["short range sees charges"])
    # the same for every charge: differences are the baseline's
    np.testing.assert_allclose(np.diff(blind), np.diff(base), atol=1e-9)
    assert np.abs(np.diff(truth - base)).max() > 0.3
    assert np.abs(np.diff(seeing - truth)).max() < 0.6 * np.abs(np.diff(base - truth)).max()


def test_notes_say_what_the_correction_cannot_know(models):
    assert any("ionisation energies" in note for note in models["QEq"].fit_report_.notes)
    assert not any("ionisation energies" in note for note in models["sees charges"].fit_report_.notes)
    assert "electrons(9)" in str(models["QEq"].fit_report_)


def test_reference_charge_and_total_charge(frames):
    structure = read_structure(ion())
    at_zero = AtReferenceCharge(Electrons())
    assert at_zero.name == "electrons(9)@0"
    assert at_zero.charge_held(structure) == 0.0
    assert at_zero.evaluate(structure).charges.sum() == pytest.approx(0.0, abs=1e-9)
    assert AtReferenceCharge(Electrons(), 1.0).evaluate(structure).charges.sum() == pytest.approx(1.0)
    with pytest.raises(InputError, match="does not depend on the total charge"):
        AtReferenceCharge(kqeq.baselines.ZBL())
    with pytest.raises(InputError, match="charge_from='me'"):
        KQEq(baseline="zbl", charge_from="me").fit(frames)


def test_two_baselines_with_electrons_are_refused():
    with pytest.raises(InputError, match="the field would act on them twice"):
        Sum([Electrons(), Electrons(hardness=8.0)])
    with pytest.raises(InputError, match="at least two"):
        Sum([Electrons()])


def test_frames_that_do_not_converge_are_named_and_left_out_on_request(kernel, frames):
    near = [atoms.copy() for atoms in frames]
    near[2].positions[1] = near[2].positions[0] + [0.0, 0.0, 0.5]
    near[7].positions[1] = near[7].positions[0] + [0.0, 0.0, 0.5]
    options = {"chi": None, "charges": None, "baseline": Electrons(closest=0.6)}
    with pytest.raises(ConvergenceError, match=r"2 of 12 frames \(frames 2, 7\).*leave_out_failed=True"):
        build(kernel, near, **options)
    model = KQEq(None, kernel(4.0), charges=None, noise=NOISE, baseline=options["baseline"])
    model.fit(near, leave_out_failed=True)
    assert model.fit_report_.n_frames == 10
    assert any("2 frames were left out" in note and "2, 7" in note for note in model.fit_report_.notes)
    good = [atoms for i, atoms in enumerate(near) if i not in (2, 7)]
    again = KQEq(None, kernel(4.0), charges=None, noise=NOISE, baseline=options["baseline"]).fit(good)
    assert again.predict(frames[0]).energy == model.predict(frames[0]).energy
    with (
        pytest.warns(LabelWarning, match="positions must be in Å"),
        pytest.raises(ConvergenceError, match="failed for all frames"),
    ):
        model.fit([near[2], near[7]], leave_out_failed=True)


def test_what_a_baseline_cannot_do_is_said_before_anything_is_computed(kernel, frames):
    with pytest.raises(UnsupportedError, match=r"frame 1: electrons: no field here"):
        build(kernel, frames, baseline=Electrons(field=False))
    still = [atoms for atoms in frames if not atoms.info["external_field"].any()]
    silent = Electrons(field=False, dipole=False, shares=False)
    few = kernel(3.5, n_representatives=3)
    blind = build(kernel, still, chi=few, short=few, baseline=silent)
    assert "gives no dipole" in blind.fit_report_.ignored["dipole"]
    here = blind.predict(still[0])
    assert here.dipole is None and here.charges is None and here.polarizability is None
    assert {"dipole", "charges", "polarizability"} <= here.undefined.keys()
    with pytest.raises(InputError, match="gives no charges of atoms"):
        build(kernel, still, baseline=Electrons(shares=False), charge_aware=ChargeKernel())
    with pytest.raises(InputError, match="the model has no charges"):
        build(kernel, still, baseline="zbl", chi=None, charges=None, charge_aware=ChargeKernel())


class Old:
    """A baseline as version 0.1 had them: a name, and three results."""

    name = "old"

    def evaluate(self, structure):
        return 1.0, np.zeros((len(structure), 3)), np.zeros((3, 3))


def test_a_baseline_of_the_old_kind_still_serves(kernel, frames):
    model = build(kernel, frames, baseline=Old())
    assert model.predict(frames[0]).energy_baseline == 1.0


def test_a_field_acts_on_a_baseline_even_without_charges(kernel, frames, models):
    plain = models["short range"]
    moved = plain.predict(ion()).energy - plain.predict(ion(), external_field=None).energy
    assert moved == 0.0
    free = ion()
    free.info.pop("external_field")
    assert plain.predict(ion()).energy - plain.predict(free).energy == pytest.approx(
        -FIELD @ plain.predict(free).dipole, abs=0.05
    )
    with pytest.raises(InputError, match="nothing for the field"):
        build(kernel, frames, baseline="zbl", chi=None, charges=None)


# ------------------------------------------------- everything else on a baseline


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_file_brings_the_whole_back(models, kind, tmp_path):
    model, atoms = models[kind], ion()
    model.save(tmp_path / "m.kqeq", posterior=True)
    baseline = [Electrons(), "zbl:0.3:1.2"] if kind == "sum" else Electrons()
    with pytest.raises(InputError, match="does not hold"):
        kqeq.load(tmp_path / "m.kqeq")
    loaded = kqeq.load(tmp_path / "m.kqeq", baseline=baseline)
    there, here = loaded.predict(atoms, uncertainty=True), model.predict(atoms, uncertainty=True)
    np.testing.assert_array_equal(there.forces, here.forces)
    np.testing.assert_array_equal(there.dipole, here.dipole)
    np.testing.assert_array_equal(there.forces_std, here.forces_std)
    assert here.energy_std > 0.0 and np.abs(here.forces_std).max() > 0.0
    with pytest.raises(InputError, match="but the baseline given is"):
        kqeq.load(tmp_path / "m.kqeq", baseline=Electrons(hardness=8.0))


def test_update_evidence_and_selection(kernel, frames):
    none = {"chi": None, "charges": None}
    whole = build(kernel, frames, **none)
    part = build(kernel, frames[:8], short=kernel(4.0), **none)
    part.update(frames[8:])
    assert part.fit_report_.n_frames == 12
    # element offsets and representatives are those of the first eight
    assert part.evaluate(frames)["forces"].rmse < 1.2 * whole.evaluate(frames)["forces"].rmse
    learned = KQEq(kernel(3.5), kernel(4.0), baseline=Electrons(), noise=NOISE, max_iterations=10)
    learned.fit(frames, optimize="evidence")
    assert learned.evaluate(frames)["forces"].rmse < 0.2
    assert len(kqeq.select(learned, frames, 3)) == 3


def test_the_calculator(models):
    for kind in ("QEq", "sees charges", "short range"):
        atoms, model = ion(), models[kind]
        atoms.calc = kqeq.KQEqCalculator(model)
        here = model.predict(ion())
        assert atoms.get_potential_energy() == pytest.approx(here.energy, abs=1e-10)
        np.testing.assert_allclose(atoms.get_forces(), here.forces, atol=1e-10)
        np.testing.assert_allclose(atoms.get_dipole_moment(), here.dipole, atol=1e-10)
        np.testing.assert_allclose(atoms.get_charges(), here.charges, atol=1e-10)


def test_analysis(models):
    atoms = ion()
    atoms.info.pop("external_field")
    for kind in ("QEq", "sees charges", "short range"):
        model = models[kind]
        checked = kqeq.analysis.check_consistency(model, [atoms])
        assert checked.passed, str(checked)
        born = kqeq.analysis.born_charges(model, atoms)
        np.testing.assert_allclose(born.tensors.sum(axis=0), np.eye(3), atol=1e-5)
        states = kqeq.analysis.charge_scan(model, atoms, (-1, 0, 1))
        assert np.isnan(states.chemical_potentials).all()
        assert np.ptp(states.energies) > 1.0
        with pytest.raises(UnsupportedError, match="whole electrons"):
            kqeq.analysis.charge_response(model, atoms)
        assert "baseline" in str(kqeq.analysis.diagnose(model, atoms))
    atoms.info.pop("total_charge")
    found = kqeq.analysis.ionization(models["short range"], atoms)
    assert found.vertical_ionization_energy > 1.0


def test_choosing_who_carries_the_charge(kernel, frames):
    model = KQEq(kernel(3.5), kernel(4.0), baseline=Electrons(), noise=NOISE, max_iterations=5)
    choice = kqeq.choose_charge_from(model, frames, folds=2)
    assert choice.best in ("baseline", "model")
    assert set(choice.scores) == {"baseline", "model"}
    assert choice.scores[choice.best] == min(choice.scores.values())
    assert "left-out" in str(choice)
    with pytest.raises(InputError, match="folds is 1"):
        kqeq.choose_charge_from(model, frames, folds=1)


def test_fragments_and_reference_charges_are_neutral_on_top(frames):
    structure = replace(
        read_structure(ion()),
        fragments=np.array([0, 0, 1, 1]),
        fragment_charges=np.array([1.0, 0.0]),
        reference_charges=np.array([0.4, 0.2, 0.2, 0.2]),
    )
    rest = kqeq.baselines.remaining(structure, Electrons())
    assert rest.total_charge == 0.0
    assert not rest.fragment_charges.any() and not rest.reference_charges.any()
    same = kqeq.baselines.remaining(structure, AtReferenceCharge(Electrons()))
    assert same is structure
    with pytest.raises(InputError, match="nothing says which"):
        kqeq.baselines.remaining(structure, AtReferenceCharge(Electrons(), -1.0))


def test_constants_by_total_charge_are_learned_where_compositions_are_shared(kernel, frames, tmp_path):
    """One geometry at three charges with labels 5 eV off tells; ions of their own composition do not."""
    from kqeq.baselines.shift import ChargeShift, learn_shift

    structures = [read_structure(a) for a in frames]
    assert learn_shift(structures, [1.0] * len(structures)) is None
    water = [a for a in frames if len(a) == 3 and a.info["total_charge"] == 0]
    labelled = []
    for atoms in water:
        for charge, error in ((0, 0.0), (1, 5.0), (-1, -3.0)):
            frame = atoms.copy()
            frame.info.update(total_charge=charge, external_field=np.zeros(3))
            found = Electrons().evaluate(read_structure(frame))
            frame.info.update(energy=found.energy + error, dipole=found.dipole)
            frame.arrays["forces"] = -found.gradient
            labelled.append(frame)
    few = kernel(3.0, n_representatives=2)
    model = build(kernel, labelled, chi=None, charges=None, short=few)
    (shift,) = [part for part in model.potential_.baseline.parts if isinstance(part, ChargeShift)]
    assert shift.energies == pytest.approx({1: 5.0, -1: -3.0})
    assert model.evaluate(labelled)["energy"].rmse < 1e-6
    assert any("+1: 5.000" in note for note in model.fit_report_.notes)
    model.save(tmp_path / "m.kqeq")
    loaded = kqeq.load(tmp_path / "m.kqeq", baseline=Electrons())
    assert loaded.predict(labelled[1]).energy == model.predict(labelled[1]).energy
    assert model.baseline == Electrons()  # what the user gave stays
    again = kqeq.baselines.resolve_baseline(shift.name)
    assert again.energies == shift.energies
    # more frames do not change the constants
    model.update(labelled[:3])
    assert model.potential_.baseline.name == loaded.potential_.baseline.name
    with pytest.raises(InputError, match="expected for example"):
        kqeq.baselines.resolve_baseline("shift:a=b")


def test_command_line_and_settings_file(kernel, frames, tmp_path, capsys):
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    from kqeq.cli import main
    from kqeq.model.config import load_config

    still = [atoms.copy() for atoms in frames[:6]]
    for atoms in still:
        atoms.info["external_field"] = np.zeros(3)
        atoms.calc = SinglePointCalculator(
            atoms, energy=atoms.info.pop("energy"), forces=atoms.arrays.pop("forces")
        )
    write(tmp_path / "train.xyz", still, format="extxyz")
    settings = (
        'baseline = "gfn2"\ncharge_from = "model"\ntargets = ["energy", "forces"]\nelectronegativity = false\n'
        "charges = false\n"
        "[short_range]\nr_cut = 3.0\nn_max = 4\nl_max = 3\nn_representatives = 3\n"
    )
    (tmp_path / "s.toml").write_text(settings)
    model = load_config(tmp_path / "s.toml")
    assert (model.baseline, model.charge_from) == ("gfn2", "model")
    options = [
        "--config",
        tmp_path / "s.toml",
        "--baseline",
        "zbl",
        "--charge-from",
        "baseline",
        "--jobs",
        "1",
    ]
    arguments = ["fit", tmp_path / "train.xyz", "-o", tmp_path / "m.kqeq", *options, "--leave-out-failed"]
    assert main([str(argument) for argument in arguments]) == 0
    assert "the baseline zbl" in capsys.readouterr().out
    loaded = kqeq.load(tmp_path / "m.kqeq")
    assert (loaded.baseline, loaded.charge_from) == ("zbl", "baseline")
    arguments[arguments.index("zbl")] = "gfn3"
    assert main([str(argument) for argument in arguments]) == 2
    assert "unknown baseline 'gfn3'" in capsys.readouterr().err
    (tmp_path / "s.toml").write_text('charge_from = "me"\n')
    with pytest.raises(InputError, match="charge_from"):
        load_config(tmp_path / "s.toml")


def test_workers_share_the_baseline_of_training_frames(kernel, frames):
    """In two processes as in one; functions of the geometry stay at home."""
    from joblib import parallel_config

    from kqeq.fitting.baseline_labels import compute

    tasks = [(i, read_structure(a), ("charge_field",)) for i, a in enumerate(frames)]
    alone = compute(tasks, Electrons())
    with parallel_config(backend="loky", n_jobs=2):
        together = compute(tasks, Electrons())
        home = compute(tasks, Home())
    for first, second in zip(alone, together, strict=True):
        assert first.energy == second.energy
        np.testing.assert_array_equal(first.charge_field, second.charge_field)
    assert len(home) == len(tasks)


class Home(kqeq.baselines.GeometryBaseline):
    """Cannot travel, like a calculator with open files."""

    name = "home"

    def evaluate(self, structure, extras=()):
        return kqeq.baselines.BaselineResult(1.0, np.zeros((len(structure), 3)), np.zeros((3, 3)))

    def __reduce__(self):
        raise TypeError("stays here")


def test_frames_that_are_added_are_seen_at_the_charges_of_the_baseline(kernel, frames):
    """Nothing has charges but the baseline; the result is that of a fit to all frames with the same parameters."""
    model = build(kernel, frames[::2], charge_aware=ChargeKernel(2), chi=None, charges=None)
    posterior, potential = model.posterior_, model.potential_
    settings = replace(model._settings(None), baseline=potential.baseline)
    chosen, _, _ = choose_labels(list(read_frames([*frames[::2], *frames[1::2]])), settings)
    fitted, _, _ = subtract_baseline(chosen, potential.baseline, charge_aware=True, shift=False)
    assert all(frame.baseline is not None for frame in fitted)
    problem = FitProblem(fitted, posterior.parameters, posterior.noise, linear=True)
    expected = minimise_problem(problem, np.zeros(problem.size)).u
    before = posterior.u
    after = model.update(frames[1::2]).posterior_.u
    np.testing.assert_allclose(after, expected, rtol=0.0, atol=1e-6 * np.abs(expected).max())
    assert np.abs(after - before).max() > 1e-2 * np.abs(expected).max()
