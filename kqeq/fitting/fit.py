"""Structures and labels to a potential."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from os import PathLike, fspath

import numpy as np
from ase.data import chemical_symbols

from kqeq import elements
from kqeq.backend.linalg import solve_lower
from kqeq.baselines import remaining
from kqeq.charges.latent import typical_charges
from kqeq.charges.parameters import ENVIRONMENT_SPREADS
from kqeq.charges.site_values import CHARGE
from kqeq.errors import InputError, KQEqError, LabelWarning, RepresentativesWarning, warn
from kqeq.fitting.baseline_labels import subtract_baseline, used_baseline
from kqeq.fitting.charge_aware import ChargeDependence
from kqeq.fitting.charge_start import ChargeStart, choose_start, needs_start
from kqeq.fitting.checkpoint import fingerprint
from kqeq.fitting.contradictions import warn_contradictions
from kqeq.fitting.copies import without_copies
from kqeq.fitting.dipole_origin import MAX_IONS, far_from_ions, other_origin
from kqeq.fitting.evidence.hyperparameters import Learned, learn_by_evidence
from kqeq.fitting.evidence.left_out import learn_left_out
from kqeq.fitting.least_squares.solver import Solution
from kqeq.fitting.minimisation import minimise_from, minimise_problem, solve, warn_unconverged
from kqeq.fitting.outliers import warn_outliers
from kqeq.fitting.parameters import Parameters, SitePart
from kqeq.fitting.problem import FitProblem
from kqeq.fitting.report import FitReport
from kqeq.fitting.rows.blocks import deviation, is_linear
from kqeq.fitting.rows.cache import CacheFolder
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.fitting.rows.pool import sharing_features
from kqeq.fitting.rows.targets import choose_labels, energy_offsets, held_covariance
from kqeq.fitting.settings import DEFAULT_NOISE, FitSettings, check_settings, with_reach
from kqeq.frames.grouping import composition_and_charge
from kqeq.frames.label_checks import Survey
from kqeq.frames.labels import Labels
from kqeq.frames.states import charged_sizes, known_states, several_charges, state_of
from kqeq.frames.structures import Structure
from kqeq.io.atomic_write import check_writable
from kqeq.io.progress import say, track
from kqeq.kernels.charge_kernel import ChargeKernel
from kqeq.kernels.feature_map import FeatureMap
from kqeq.kernels.representatives import build_feature_map
from kqeq.kernels.settings import Kernel, Kernels
from kqeq.potential.determination import TOLERANCE, Determination
from kqeq.potential.potential import Potential, SiteModel
from kqeq.typing import FloatArray

CHI_DELTA = 2.0
"""Default prior spread of the kernel part of the electronegativity, eV/e."""

LATENT_DELTA = 0.2
"""The same of latent charges and learned reference charges, e."""

LATENT_SPREAD = 0.5
"""Prior spread of the latent charge of an element around what bonds suggest, e."""

CHI_SPREAD = 5.0
"""Prior spread of an element's electronegativity around its cited default, eV/e."""

CHI_COMMON_SPREAD = 8.0
"""Prior spread of what the electronegativities of all elements share; for uncertainties, not for fits, eV/e."""

ENERGY_DELTA = 1.0
"""Default prior spread of the short-range energy of an atom, eV."""

ENERGY_SPREAD = 10.0
"""Prior spread of an element's energy around its least-squares offset, eV; more where compositions leave it open."""


@dataclass(frozen=True, eq=False)
class FitResult:
    """A potential, the report on how it came about, and the posterior.

    Attributes
    ----------
    potential : Potential
    report : FitReport
    parameters : Parameters
    solution : Solution
    noise : dict of str to float
        Standard deviations of the labels.
    frames : sequence of TrainingFrame
        As they were fitted.
    offered : Parameters, optional
        Before a search, with all kernels.
    """

    potential: Potential
    report: FitReport
    parameters: Parameters
    solution: Solution
    noise: dict[str, float]
    frames: Sequence[TrainingFrame] = ()
    offered: Parameters | None = None

    def with_survey(self, found: Survey) -> FitResult:
        """The same with what was noticed about the frames in the report."""
        report = replace(
            self.report,
            ignored={**self.report.ignored, **found.ignored},
            notes=(*found.notes, *self.report.notes),
        )
        return replace(self, report=report)


def fit_potential(
    pairs: Sequence[tuple[Structure, Labels]],
    settings: FitSettings,
    *,
    resume: str | PathLike[str] | None = None,
    cache: CacheFolder | None = None,
    like: FitResult | None = None,
    search: bool = False,
) -> FitResult:
    """Fit a potential to validated frames.

    Parameters
    ----------
    pairs : sequence of (Structure, Labels)
    settings : FitSettings
    resume : path-like, optional
        Checkpoint: written after every step, and continued from if it is there.
    cache : CacheFolder, optional
        Where features may go that memory has no room for.
    like : FitResult, optional
        A fit of the same kernels to the same frames: representatives, prior spreads and noises are taken from it, and
        nothing is searched.
    search : bool
        With ``like``: only representatives are taken from it, those of kernels that it left away included, and spreads
        and noises are searched as without.

    Raises
    ------
    InputError
        For settings or labels that cannot be used; raised before any long work.
    UnsupportedError
        For structures that the charge model cannot treat.
    """
    started = time.perf_counter()
    check_settings(settings)
    settings = with_reach(settings, (structure for structure, _ in pairs))
    if resume is not None:
        check_writable(resume)
    ready = _on_baseline(_chosen(pairs, settings))
    frames, settings, notes = ready.frames, ready.settings, list(ready.notes)
    below = "" if settings.baseline is None else settings.baseline.name
    far = warn_outliers(frames, zbl="zbl" in below)
    notes += [] if far is None else [far]
    atoms = sum(len(frame.structure) for frame in ready.frames)
    say(f"{len(ready.frames)} frames, {atoms} atoms: choosing representative environments")
    if like is None or search:
        noise = {**DEFAULT_NOISE, **settings.noise}
        parameters = _parameters(ready, None if like is None else like.offered, spreads=False)
    else:
        noise = dict(like.noise)
        parameters = _parameters(ready, like.parameters)
    begin = _charge_start(ready, parameters, noise, cache)
    notes += [] if begin is None else [begin.note]
    offered = parameters
    start = None
    searched = settings.optimize is not None and (like is None or search)
    with sharing_features() if searched else nullcontext():
        if searched:
            learned = _learned(ready, parameters, noise, begin, resume, cache)
            if learned is not None:
                parameters, noise, start = learned.parameters, learned.noise, learned.u
                notes += learned.table
        solution = _solved(ready, parameters, noise, start, begin, resume, cache)
    warn_unconverged(solution)
    if solution.n_residuals < parameters.size:
        notes.append(
            f"fewer labels ({solution.n_residuals}) than parameters ({parameters.size}): the prior settles the rest"
        )
    notes += environment_notes(parameters, solution.u)
    notes += _charge_notes(ready)
    report = FitReport(
        n_frames=len(frames),
        n_atoms=sum(len(frame.structure) for frame in frames),
        n_parameters=parameters.size,
        n_residuals=solution.n_residuals,
        used=ready.used,
        ignored=ready.ignored,
        representatives=_all_representatives(parameters, settings),
        iterations=(),
        converged=False,
        loss=0.0,
        seconds=0.0,
        notes=tuple(notes),
    )
    result = finish(parameters, solution, noise, settings, report, ready.charges, ready.has_energy, started)
    structures = [frame.structure for frame in frames]
    known = known_states(structures, kernel_states(settings, has_energy=ready.has_energy))
    potential = replace(
        result.potential,
        known_states=known,
        charged_sizes=charged_sizes(structures) if "charge" in known else (),
        determination=settled(result.potential, frames, noise),
    )
    result = replace(result, potential=potential, offered=offered)
    result = _check_origin(replace(result, frames=frames), settings)
    if settings.charge_aware is None or parameters.short_range is None:
        return result
    return second_stage(result, settings, settings.charge_aware, started)


def _charge_notes(ready: _Ready) -> list[str]:
    """That one composition has several charges, where nobody has said what to do about it."""
    settings = ready.settings
    ours = {"charges", "short_range"} <= set(settings.automatic) and ready.has_energy
    if not ours or settings.charges is None or kernel_states(settings):
        return []
    charges = sorted(several_charges(frame.structure for frame in ready.frames))
    if not charges:
        return []
    words = ", ".join(f"{charge:+g}" if charge else "0" for charge in charges)
    return [
        f"one composition has several total charges ({words}): one parabola of the charge may be too little for them. "
        'charges="auto" (kqeq.compare) also tries a short-range energy with kernels by charge, which can be much better'
    ]


def _solved(
    ready: _Ready,
    parameters: Parameters,
    noise: dict[str, float],
    start: FloatArray | None,
    begin: ChargeStart | None,
    resume: str | PathLike[str] | None,
    cache: CacheFolder | None,
) -> Solution:
    """The fit with given noises and spreads."""
    settings = ready.settings
    say(f"{parameters.size} parameters: the fit")
    problem = FitProblem(
        ready.frames,
        parameters,
        noise,
        linear=is_linear(parameters, ready.used),
        device=settings.device,
        cache=cache,
    )
    try:
        # a search by evidence keeps its own checkpoint
        if start is not None and (resume is None or settings.optimize == "evidence"):
            return minimise_from(problem, settings, start)
        return solve(problem, settings, resume, start, begin)
    finally:
        problem.close()


def kernel_states(settings: FitSettings, *, has_energy: bool = True) -> tuple[str, ...]:
    """The states of fragments that kernels depend on."""
    kernels = (
        *(settings.electronegativity or ()),
        *(settings.short_range or () if has_energy else ()),
        *(settings.site_kernel or ()),
    )
    found = (state_of(getattr(kernel, "condition", None)) for kernel in kernels)
    return tuple(dict.fromkeys(state for state in found if state is not None))


@dataclass(frozen=True, eq=False)
class _Ready:
    """Frames with the labels that are fitted, checked.

    Attributes
    ----------
    frames : sequence of TrainingFrame
    used, ignored : dict of str
        Labels of each kind, and why others are not fitted.
    charges : sequence of float
        Total charges of the frames, the baseline's included.
    settings : FitSettings
    notes : tuple of str
        For the report.
    """

    frames: Sequence[TrainingFrame]
    used: dict[str, int]
    ignored: dict[str, str]
    charges: Sequence[float]
    settings: FitSettings
    notes: tuple[str, ...] = ()

    @property
    def species(self) -> tuple[int, ...]:
        """Elements of the frames."""
        return tuple(sorted({z for frame in self.frames for z in frame.structure.species}))

    @property
    def has_energy(self) -> bool:
        """Whether a label is an energy or a derivative of it."""
        return bool({"energy", "forces", "stress"} & self.used.keys())


def _chosen(pairs: Sequence[tuple[Structure, Labels]], settings: FitSettings) -> _Ready:
    """Labels chosen, and frames and settings that do not go together refused."""
    frames, used, ignored = choose_labels(pairs, settings)
    frames, told = without_copies(frames)
    if told is not None:
        used = {kind: sum(kind in frame.labels.kinds for frame in frames) for kind in used}
    ready = _Ready(frames, used, ignored, [frame.structure.total_charge for frame in frames], settings)
    _check_conditions(frames, settings)
    notes = [] if told is None else [told]
    if not ready.has_energy:
        if settings.charges is None:
            raise InputError("a model without charges needs energies or forces, and no frame has any")
        if settings.charge_aware is not None:
            raise InputError(
                "charge_aware makes the short-range energy depend on charges, but no energies, forces or stresses are "
                "fitted; leave it out, or fit such labels"
            )
        if settings.short_range is not None:
            notes.append("no energies, forces or stresses are fitted: the short-range part is left out")
    states = kernel_states(settings, has_energy=ready.has_energy)
    known_states(
        [frame.structure for frame in frames], states
    )  # refuses what tells nothing, before long work
    warn_contradictions(frames, {**DEFAULT_NOISE, **settings.noise}, sees_spin="spin" in states)
    return replace(ready, notes=tuple(notes))


def _check_conditions(frames: Sequence[TrainingFrame], settings: FitSettings) -> None:
    """Refuse geometries and fields that the charge model, or a model without charges, cannot treat."""
    baseline = settings.baseline
    feels_fields = baseline is not None and baseline.capabilities.field
    for frame in frames:
        if settings.charges is not None:
            try:
                settings.charges.check_structure(remaining(frame.structure, baseline))
            except KQEqError as error:
                raise type(error)(f"frame {frame.index}: {error}") from None
        elif frame.structure.external_field.any() and not feels_fields:
            raise InputError(
                f"frame {frame.index} is in an external field, but a model without charges has nothing for the field "
                "to act on; fit with charges=kqeq.QEq(), or leave such frames out"
            )


def _on_baseline(ready: _Ready) -> _Ready:
    """Labels minus the baseline, where there is one that plays a part."""
    settings = ready.settings
    baseline = used_baseline(settings.baseline, has_energy=ready.has_energy)
    if baseline is None:
        return replace(ready, settings=replace(settings, baseline=None))
    charges = {frame.index: charge for frame, charge in zip(ready.frames, ready.charges, strict=True)}
    frames, shifted, told = subtract_baseline(
        ready.frames,
        baseline,
        charge_aware=settings.charge_aware is not None,
        leave_out_failed=settings.leave_out_failed,
    )
    ready = replace(
        ready,
        frames=frames,
        settings=replace(settings, baseline=shifted),
        notes=(*ready.notes, *told),
    )
    if len(frames) == len(charges):
        return ready
    return replace(
        ready,
        used=dict(Counter(kind for frame in frames for kind in frame.labels.kinds)),
        charges=[charges[frame.index] for frame in frames],
    )


def _charge_start(
    ready: _Ready, parameters: Parameters, noise: dict[str, float], cache: CacheFolder | None
) -> ChargeStart | None:
    """Values of the elements to start from, where no label tells them in closed form."""
    if is_linear(parameters, ready.used) or not needs_start(ready.frames, parameters):
        return None
    rough = FitProblem(
        ready.frames, parameters, noise, linear=False, device=ready.settings.device, cache=cache
    )
    try:
        return choose_start(rough, ready.settings.solver, seed=ready.settings.seed)
    finally:
        rough.close()


def _learned(
    ready: _Ready,
    parameters: Parameters,
    noise: dict[str, float],
    begin: ChargeStart | None,
    resume: str | PathLike[str] | None,
    cache: CacheFolder | None,
) -> Learned | None:
    """Spreads and noises that the data choose; ``None`` where there is nothing to choose by."""
    settings = ready.settings
    if all(len(frame.structure) == 1 for frame in ready.frames):
        return None  # single atoms have no environments that kernels could tell apart
    linear = is_linear(parameters, ready.used)

    def again(problem: FitProblem, u: FloatArray | None) -> Solution:
        return minimise_from(problem, settings, u, begin)

    say(f"{parameters.size} parameters: noises and prior spreads by {settings.optimize}")
    if settings.optimize == "left-out":
        return learn_left_out(
            ready.frames,
            parameters,
            noise,
            linear=linear,
            solve=again,
            report=say,
            held=settings.held,
            reach=settings.may_reach,
            seed=settings.seed,
            mark=fingerprint(settings, ready.frames) if resume is not None else "",
            resume=None if resume is None else f"{fspath(resume)}.search",
            device=settings.device,
            cache=cache,
        )
    return learn_by_evidence(
        ready.frames,
        parameters,
        noise,
        linear=linear,
        solve=again,
        mark=fingerprint(settings, ready.frames) if resume is not None else "",
        resume=resume,
        report=say,
        device=settings.device,
        cache=cache,
    )


def _all_representatives(parameters: Parameters, settings: FitSettings) -> dict[str, dict[str, int]]:
    """Representatives of all kernels by element, for the report; shared ones once."""
    parts = {"electronegativity": parameters.electronegativity, "short-range": parameters.short_range}
    if settings.site_kernel is not None and settings.charges is not None:
        parts["site parameter"] = parameters.parts[settings.charges.environment[0]]
    counts: dict[str, dict[str, int]] = {}
    for name, part in parts.items():
        counts |= {} if part is None else representative_counts(name, part)
    return counts


def second_stage(
    result: FitResult,
    settings: FitSettings,
    kernel: ChargeKernel,
    started: float,
    left_out: Collection[int] = (),
) -> FitResult:
    """The short-range energy again, of which every part depends on the charges of the first stage, which are held.

    Parameters
    ----------
    result : FitResult
        The first stage.
    settings : FitSettings
    kernel : ChargeKernel
    started : float
        ``time.perf_counter()`` at the start.
    left_out : collection of int
        Indices of frames that are not fitted.
    """
    energy = result.parameters.short_range
    assert energy is not None
    dependence = ChargeDependence.on(result.potential, kernel)
    parameters = Parameters.charge_aware(result.potential.species, energy, dependence)
    frames = [frame for frame in result.frames if frame.index not in left_out]
    problem = FitProblem(frames, parameters, result.noise, linear=True)
    try:
        solution = minimise_problem(problem, np.zeros(problem.size), solver=settings.solver)
    finally:
        problem.close()
    note = (
        f"charge-aware short-range energy at the charges of this fit: {parameters.size} parameters, loss "
        f"{solution.loss:.6g}"
    )
    report = replace(result.report, notes=(*result.report.notes, note))
    first = result.potential
    second = finish(
        parameters,
        solution,
        result.noise,
        settings,
        report,
        first.training_charges,
        first.has_energy,
        started,
    )
    return replace(second, frames=result.frames)


def _check_origin(result: FitResult, settings: FitSettings) -> FitResult:
    """Note, and warn of, dipole labels of ions that count from another origin."""
    ions = [
        (frame.structure, frame.labels.dipole)
        for frame in result.frames
        if frame.labels.dipole is not None and frame.structure.total_charge and not frame.structure.periodic
    ]
    ions = ions[:: max(1, -(-len(ions) // MAX_IONS))]
    predictions = result.potential.predict_many([s for s, _ in ions], ("dipole",), device=settings.device)
    triples = [
        (structure, label, prediction.dipole)
        for (structure, label), prediction in zip(ions, predictions, strict=True)
        if prediction.dipole is not None
    ]
    note = other_origin(triples) or far_from_ions(ions)
    if note is None:
        return result
    warn(note, LabelWarning)
    return replace(result, report=replace(result.report, notes=(*result.report.notes, note)))


def finish(
    parameters: Parameters,
    solution: Solution,
    noise: dict[str, float],
    settings: FitSettings,
    report: FitReport,
    charges: Iterable[float],
    has_energy: bool,
    started: float,
) -> FitResult:
    """Freeze a solution into a potential, and complete the report with how it was reached.

    Parameters
    ----------
    parameters, solution, noise, settings :
        As of the fit.
    report : FitReport
        What was known before the solver ran.
    charges : iterable of float
        Total charges of the frames.
    has_energy : bool
        Whether energies or forces were fitted.
    started : float
        ``time.perf_counter()`` at the start.
    """
    total_charges = tuple(sorted({round(charge, 6) for charge in charges}))
    report = replace(report, seconds=time.perf_counter() - started)
    if parameters.dependence is None:  # else the report counts labels and steps of the first stage
        report = replace(
            report,
            n_residuals=solution.n_residuals,
            iterations=solution.iterations,
            converged=solution.converged,
            loss=solution.loss,
            learned=_learned_table(parameters, solution),
        )
    potential = build_potential(parameters, solution.u, solution.lower, settings, total_charges, has_energy)
    return FitResult(potential, report, parameters, solution, noise)


def _parameters(ready: _Ready, known: Parameters | None = None, *, spreads: bool = True) -> Parameters:
    """Choose representatives, or take those of ``known``, with their spreads or not, and lay the parameters out."""
    frames, species, settings, has_energy = ready.frames, ready.species, ready.settings, ready.has_energy
    structures = [frame.structure for frame in frames]
    short_range = settings.short_range if has_energy else None

    def build(kernels: Kernels | None, role: str, setting: str = "") -> list[FeatureMap]:
        with warnings.catch_warnings():
            if setting in settings.automatic:
                warnings.simplefilter("ignore", RepresentativesWarning)
                kernels = tuple(_sized(kernel, settings, len(species)) for kernel in kernels or ())
            return [
                build_feature_map(
                    kernel,
                    structures,
                    species,
                    progress=lambda items: track(items, f"{role} environments"),
                    role=role,
                    seed=settings.seed,
                    device=settings.device,
                )
                for kernel in kernels or ()
            ]

    energy_mean: dict[int, float] | None = None
    energy_scales: dict[int, float] = {}
    held: FloatArray | None = None
    if has_energy:
        holds = settings.baseline is not None and settings.baseline.capabilities.holds_charge
        charged = settings.charges is not None and not holds
        energy_mean, open_part = energy_offsets(frames, species, settings.e0, charged=charged)
        if settings.e0 is not None:
            held = held_covariance(frames, energy_mean)
        energy_scales = {z: max(1.0, spread / ENERGY_SPREAD) for z, spread in open_part.items()}
    numbers = np.array(species)
    latent = settings.charges is not None and settings.charges.quantity == CHARGE
    chi_mean = dict.fromkeys(species, 0.0)
    if not latent and settings.charges is not None:
        chi_mean = dict(zip(species, map(float, elements.electronegativity(numbers)), strict=True))
    elif latent and not (settings.baseline is not None and settings.baseline.capabilities.charges):
        chi_mean = typical_charges(structures, species)

    def kernels_of(
        part: SitePart | None, kernels: Kernels | None, setting: str, default: float, same: bool = True
    ) -> list[tuple[FeatureMap, float]]:
        given = [kernel.delta for kernel in kernels or ()]
        if part is None:
            maps = build(kernels, setting.replace("_", "-"), setting)
            return list(zip(maps, kernel_spreads(given, default), strict=True))
        known_maps = part.feature_maps
        if not spreads:
            return list(zip(known_maps, kernel_spreads(given, default), strict=True))
        deltas = list(part.deltas) if same else kernel_spreads([None] * len(known_maps), default)
        return list(zip(known_maps, deltas, strict=True))

    known_charges = None if known is None or known.charges is None else known.charges.quantity
    chi_kernels = kernels_of(
        None if known is None else known.electronegativity,
        settings.electronegativity,
        "electronegativity",
        LATENT_DELTA if latent else CHI_DELTA,
        # δ of a charge is none of an electronegativity
        settings.charges is not None and settings.charges.quantity == known_charges,
    )
    chi_maps = [feature_map for feature_map, _ in chi_kernels]
    site_maps: list[FeatureMap] = []
    site_deltas: dict[str, list[float]] = {}
    if settings.charges is not None and settings.charges.environment:
        given = settings.site_kernel
        site_maps = chi_maps if given is None else build(given, "site parameter")
        # the spread of kernels that are shared is that of another quantity
        site_spreads = [None] * len(site_maps) if given is None else [kernel.delta for kernel in given]
        site_deltas = {
            kind: kernel_spreads(site_spreads, ENVIRONMENT_SPREADS[kind])
            for kind in settings.charges.environment
        }
    return Parameters.build(
        species,
        charges=settings.charges,
        electronegativity_kernels=chi_kernels,
        electronegativity_mean=chi_mean,
        electronegativity_spread=LATENT_SPREAD if latent else CHI_SPREAD,
        short_range_kernels=kernels_of(
            None if known is None or short_range is None else known.short_range,
            short_range,
            "short_range",
            ENERGY_DELTA,
        ),
        short_range_mean=energy_mean,
        short_range_spread=0.0 if settings.e0 is not None else ENERGY_SPREAD,
        short_range_scales=energy_scales,
        short_range_held=held,
        site_maps=site_maps,
        site_deltas=site_deltas,
    )


def representative_counts(name: str, part: SitePart) -> dict[str, dict[str, int]]:
    """Representatives of every kernel of a part by element, under the name of the part, for the report."""
    return {
        name if len(part.kernels) == 1 else f"{name} {number}": {
            chemical_symbols[z]: rows.shape[0] for z, rows in kernel.feature_map.representatives.items()
        }
        for number, kernel in enumerate(part.kernels, start=1)
    }


def _sized(kernel: Kernel, settings: FitSettings, elements: int) -> Kernel:
    """A kernel that nobody has chosen, with representatives for the number of elements."""
    if kernel.n_representatives is not None:
        return kernel
    number = min(settings.representatives_each, settings.representatives_total // elements)
    return type(kernel)(**{**kernel.get_params(deep=False), "n_representatives": max(1, number)})


def kernel_spreads(given: Sequence[float | None], default: float) -> list[float]:
    """δ of every kernel of a sum; those not given share the variance of the role's default equally."""
    return [default / math.sqrt(len(given)) if delta is None else float(delta) for delta in given]


def environment_notes(parameters: Parameters, u: FloatArray) -> list[str]:
    """How much site parameters vary with the environment, by kind and element, for the report."""
    environment = parameters.sites
    if environment is None:
        return []
    notes = []
    for kind in environment.parts:
        words = [
            f"{chemical_symbols[z]} {np.std(values):.2g}"
            for z, values in environment.at_representatives(kind, u).items()
        ]
        notes.append(f"{kind}: the logarithm varies among environments by {', '.join(words)}")
    return notes


def _learned_table(parameters: Parameters, solution: Solution) -> dict[str, dict[str, float]]:
    """Learned element parameters next to their defaults, with the relative errors that the posterior gives."""
    part = parameters.learned
    if part is None:
        return {}
    elements, u = part.elements, solution.u[part.columns]
    unit = np.eye(parameters.size)[:, part.columns]
    errors = elements.spread * np.linalg.norm(solve_lower(solution.lower, unit), axis=0)
    defaults, values = elements.user_values(np.zeros_like(u)), elements.user_values(u)
    return {
        name: {"default": float(default), "value": float(value), "error": float(error)}
        for name, default, value, error in zip(elements.names, defaults, values, errors, strict=True)
    }


def build_potential(
    parameters: Parameters,
    u: FloatArray,
    lower: FloatArray,
    settings: FitSettings,
    training_charges: tuple[float, ...],
    has_energy: bool,
) -> Potential:
    """Freeze parameters into a potential; ``lower`` is the factor of their posterior precision."""
    if parameters.dependence is not None:
        return _charge_aware_potential(parameters, parameters.dependence, u, settings, training_charges)
    part, energy = parameters.electronegativity, parameters.short_range
    species = parameters.species
    electronegativity = short_range = None
    if part is not None and part.kernels:
        electronegativity = SiteModel(part.terms(u), part.offsets(u))
    if energy is not None and energy.kernels:
        short_range = SiteModel(energy.terms(u), dict.fromkeys(species, 0.0))
    sites = {}
    if parameters.sites is not None:
        environment = parameters.sites
        for kind in environment.parts:
            sites[kind] = SiteModel(environment.terms(kind, u), dict.fromkeys(species, 0.0))
    return Potential(
        species=species,
        energy_offsets=energy.offsets(u) if energy is not None else dict.fromkeys(species, 0.0),
        electronegativity=electronegativity,
        charges=parameters.charge_model(u),
        short_range=short_range,
        baseline=settings.baseline,
        training_charges=training_charges,
        has_energy=has_energy,
        sites=sites,
        determination=_determination(parameters, lower),
    )


def _charge_aware_potential(
    parameters: Parameters,
    dependence: ChargeDependence,
    u: FloatArray,
    settings: FitSettings,
    training_charges: tuple[float, ...],
) -> Potential:
    """The potential whose charges are held, with the energy that sees them."""
    energy = parameters.short_range
    assert energy is not None
    zero = dict.fromkeys(parameters.species, 0.0)
    powers = [SiteModel(energy.terms(u, power), zero) for power in range(dependence.powers)]
    return replace(
        dependence.with_energy(powers, energy.offsets(u)),
        baseline=settings.baseline,
        training_charges=training_charges,
    )


def _determination(parameters: Parameters, lower: FloatArray) -> Determination:
    """Element means before and after the fit, under a prior that is broader than the fit's where that is too narrow.

    A fit's prior takes the electronegativities of elements for independent, so that what all share has a small spread,
    although it is what atomic data say least about: it gets :data:`CHI_COMMON_SPREAD` on top.  Element energies that are
    given are held, and the binding energy per atom may be another for other compositions: by as much as it is itself.
    """
    plain = parameters.determination(lower)
    count = len(parameters.species)
    spread = np.zeros((2 * count, 2 * count))
    if parameters.charges is not None and parameters.charges.quantity != CHARGE:
        spread[:count, :count] = CHI_COMMON_SPREAD**2
    found = plain.with_spread(spread)
    if parameters.short_range is None or parameters.short_range.held is None:
        return found
    held = np.zeros_like(spread)
    held[count:, count:] = parameters.short_range.held
    return Determination(found.species, found.covariance + held, found.prior + held)


def settled(
    potential: Potential, frames: Sequence[TrainingFrame], noise: Mapping[str, float]
) -> Determination | None:
    """What is open once the energies of the compositions of some frames are known, at their charges.

    Element means are over all environments of a set.  Where kernels may tell the environments of one composition from
    those of another, they stay open although labels say the energy of every composition that has some.

    Parameters
    ----------
    potential : Potential
    frames : sequence of TrainingFrame
    noise : mapping of str to float
        Of labels by kind; energies count as known no better than half of what counts as determined.
    """
    known = potential.determination
    same: dict[tuple[tuple[int, ...], float], list[TrainingFrame]] = {}
    for frame in frames:
        if frame.labels.energy is not None and frame.labels.weight > 0.0:
            same.setdefault(composition_and_charge(frame.structure), []).append(frame)
    if known is None or not same:
        return known
    bare = replace(potential, baseline=None, short_range=None, charge_kernel=None, charge_powers=())
    first = [members[0].structure for members in same.values()]
    for structure, members, prediction in zip(
        first, same.values(), bare.predict_many(first, ()), strict=True
    ):
        row = known.row(structure.numbers, prediction.charges, energy=True)
        std = deviation(members[0], "energy", noise) / math.sqrt(len(members))
        known = known.conditioned(row[None, :], max(0.5 * TOLERANCE, std))
    return known


__all__ = [
    "FitResult",
    "build_potential",
    "finish",
    "fit_potential",
    "representative_counts",
    "second_stage",
    "settled",
    "warn_unconverged",
]
