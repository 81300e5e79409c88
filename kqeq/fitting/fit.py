"""Structures and labels to a potential."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from os import PathLike

import numpy as np
from ase.data import chemical_symbols

from kqeq import elements
from kqeq.backend.linalg import solve_lower
from kqeq.baselines import remaining
from kqeq.charges.latent import typical_charges
from kqeq.charges.parameters import ENVIRONMENT_SPREADS
from kqeq.charges.site_values import CHARGE
from kqeq.errors import InputError, KQEqError, LabelWarning, RepresentativesWarning
from kqeq.fitting.baseline_labels import subtract_baseline, used_baseline
from kqeq.fitting.charge_aware import CoupledFit, fit_charge_aware
from kqeq.fitting.charge_start import choose_start, needs_start
from kqeq.fitting.checkpoint import fingerprint
from kqeq.fitting.contradictions import warn_contradictions
from kqeq.fitting.dipole_origin import MAX_IONS, far_from_ions, other_origin
from kqeq.fitting.evidence.hyperparameters import learn
from kqeq.fitting.evidence.left_out import learn_left_out
from kqeq.fitting.least_squares.solver import Solution
from kqeq.fitting.minimisation import minimise_from, solve, warn_unconverged
from kqeq.fitting.parameters import Parameters, SitePart
from kqeq.fitting.problem import FitProblem
from kqeq.fitting.report import FitReport
from kqeq.fitting.rows.blocks import LINEAR_KINDS
from kqeq.fitting.rows.cache import CacheFolder
from kqeq.fitting.rows.features import TrainingFrame
from kqeq.fitting.rows.targets import choose_labels, energy_offsets, held_covariance
from kqeq.fitting.settings import DEFAULT_NOISE, FitSettings, check_settings
from kqeq.frames.label_checks import Survey
from kqeq.frames.labels import Labels
from kqeq.frames.structures import Structure
from kqeq.io.atomic_write import check_writable
from kqeq.io.progress import say, track
from kqeq.kernels.feature_map import FeatureMap
from kqeq.kernels.representatives import build_feature_map
from kqeq.kernels.settings import AUTOMATIC_TOTAL, DEFAULT_REPRESENTATIVES, Kernel, Kernels
from kqeq.potential.determination import Determination
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
    coupled : CoupledFit or None
        The second stage of a fit with a charge-aware short-range energy.
    """

    potential: Potential
    report: FitReport
    parameters: Parameters
    solution: Solution
    noise: dict[str, float]
    frames: Sequence[TrainingFrame] = ()
    coupled: CoupledFit | None = None

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

    Raises
    ------
    InputError
        For settings or labels that cannot be used; raised before any long work.
    UnsupportedError
        For structures that the charge model cannot treat.
    """
    started = time.perf_counter()
    check_settings(settings)
    if resume is not None:
        check_writable(resume)
    frames, used, ignored = choose_labels(pairs, settings)
    for frame in frames:
        if settings.charges is not None:
            try:
                settings.charges.check_structure(remaining(frame.structure, settings.baseline))
            except KQEqError as error:
                raise type(error)(f"frame {frame.index}: {error}") from None
        elif frame.structure.external_field.any() and not (
            settings.baseline is not None and settings.baseline.capabilities.field
        ):
            raise InputError(
                f"frame {frame.index} is in an external field, but a model without charges has nothing for the field "
                "to act on; fit with charges=kqeq.QEq(), or leave such frames out"
            )
    structures = [frame.structure for frame in frames]
    species = tuple(sorted({z for structure in structures for z in structure.species}))
    has_energy = bool({"energy", "forces", "stress"} & used.keys())
    notes: list[str] = []
    if settings.short_range is not None and not has_energy:
        notes.append("no energies, forces or stresses are fitted: the short-range part is left out")
    short_range = settings.short_range if has_energy else None
    if settings.charge_aware is not None and not has_energy:
        raise InputError(
            "charge_aware makes the short-range energy depend on charges, but no energies, forces or stresses are "
            "fitted; leave it out, or fit such labels"
        )
    if settings.charges is None and not has_energy:
        raise InputError("a model without charges needs energies or forces, and no frame has any")

    warn_contradictions(frames, {**DEFAULT_NOISE, **settings.noise}["energy"])
    settings = replace(settings, baseline=used_baseline(settings.baseline, has_energy=has_energy))
    if settings.baseline is not None:
        frames, shifted, told = subtract_baseline(
            frames,
            settings.baseline,
            charge_aware=settings.charge_aware is not None,
            leave_out_failed=settings.leave_out_failed,
        )
        notes += told
        settings = replace(settings, baseline=shifted)
        kept = {frame.index for frame in frames}
        if len(kept) < len(pairs):
            pairs = [pair for i, pair in enumerate(pairs) if i in kept]
            used = dict(Counter(kind for frame in frames for kind in frame.labels.kinds))
            species = tuple(sorted({z for frame in frames for z in frame.structure.species}))
        structures = [frame.structure for frame in frames]
    parameters = _parameters(frames, structures, species, settings, short_range, has_energy)
    noise = {**DEFAULT_NOISE, **settings.noise}
    linear = settings.charges is None or (parameters.learned is None and used.keys() <= LINEAR_KINDS)
    chosen = None
    if not linear and needs_start(frames, parameters):
        rough = FitProblem(frames, parameters, noise, linear=False, device=settings.device, cache=cache)
        chosen = choose_start(rough, settings.solver)
        rough.close()
        notes.append(chosen.note)
    learned = None
    if settings.optimize == "left-out":
        learned = learn_left_out(
            frames,
            parameters,
            noise,
            linear=linear,
            solve=lambda problem, u: minimise_from(problem, settings, u, chosen),
            report=say,
            held=settings.held,
            device=settings.device,
            cache=cache,
        )
    elif settings.optimize is not None:
        learned = learn(
            frames,
            parameters,
            noise,
            linear=linear,
            solve=lambda problem, u: minimise_from(problem, settings, u, chosen),
            mark=fingerprint(settings, frames) if resume is not None else "",
            resume=resume,
            report=say,
            device=settings.device,
            cache=cache,
        )
    if learned is not None:
        parameters, noise = learned.parameters, learned.noise
        notes += learned.table
    problem = FitProblem(frames, parameters, noise, linear=linear, device=settings.device, cache=cache)
    try:
        solution = (
            minimise_from(problem, settings, learned.u)
            if learned is not None and (resume is None or settings.optimize == "evidence")
            else solve(problem, settings, resume, None if learned is None else learned.u, chosen)
        )
    finally:
        problem.close()
    warn_unconverged(solution)
    if solution.n_residuals < parameters.size:
        notes.append(
            f"fewer labels ({solution.n_residuals}) than parameters ({parameters.size}): the prior settles the rest"
        )
    maps = {"electronegativity": parameters.chi, "short-range": parameters.energy}
    if settings.site_kernel is not None:
        maps["site parameter"] = (
            parameters.parts[settings.charges.environment[0]] if settings.charges else None
        )
    counts: dict[str, dict[str, int]] = {}
    for name, part in maps.items():
        counts |= {} if part is None else representative_counts(name, part)
    notes += environment_notes(parameters, solution.u)
    report = FitReport(
        n_frames=len(frames),
        n_atoms=sum(len(s) for s in structures),
        n_parameters=parameters.size,
        n_residuals=solution.n_residuals,
        used=used,
        ignored=ignored,
        representatives=counts,
        iterations=(),
        converged=False,
        loss=0.0,
        seconds=0.0,
        notes=tuple(notes),
    )
    charges = [structure.total_charge for structure, _ in pairs]
    result = finish(parameters, solution, noise, settings, report, charges, has_energy, started)
    result = _check_origin(replace(result, frames=frames), settings)
    if settings.charge_aware is None or parameters.energy is None:
        return result
    coupled = fit_charge_aware(frames, result.potential, parameters.energy, noise, settings.charge_aware)
    note = (
        f"charge-aware short-range energy at the charges of this fit: {len(coupled.solution.u)} parameters, loss "
        f"{coupled.solution.loss:.6g}"
    )
    report = replace(result.report, notes=(*result.report.notes, note), seconds=time.perf_counter() - started)
    return replace(result, potential=coupled.potential, report=report, coupled=coupled)


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
    warnings.warn(note, LabelWarning, stacklevel=4)
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
    report = replace(
        report,
        n_residuals=solution.n_residuals,
        iterations=solution.iterations,
        converged=solution.converged,
        loss=solution.loss,
        seconds=time.perf_counter() - started,
        learned=_learned_table(parameters, solution),
    )
    potential = build_potential(parameters, solution.u, solution.lower, settings, total_charges, has_energy)
    return FitResult(potential, report, parameters, solution, noise)


def _parameters(
    frames: Sequence[TrainingFrame],
    structures: Sequence[Structure],
    species: tuple[int, ...],
    settings: FitSettings,
    short_range: Kernels | None,
    has_energy: bool,
) -> Parameters:
    """Choose representatives and lay the parameters out."""

    def build(kernels: Kernels | None, role: str, setting: str = "") -> list[FeatureMap]:
        with warnings.catch_warnings():
            if setting in settings.automatic:
                warnings.simplefilter("ignore", RepresentativesWarning)
                kernels = tuple(_sized(kernel, len(species)) for kernel in kernels or ())
            return [
                build_feature_map(
                    kernel,
                    structures,
                    species,
                    progress=lambda items: track(items, f"{role} environments"),
                    role=role,
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
    chi_maps = build(settings.electronegativity, "electronegativity", "electronegativity")
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
    chi_spreads = [kernel.delta for kernel in settings.electronegativity or ()]
    energy_spreads = [kernel.delta for kernel in short_range or ()]
    return Parameters.build(
        species,
        charges=settings.charges,
        chi_kernels=list(
            zip(chi_maps, kernel_spreads(chi_spreads, LATENT_DELTA if latent else CHI_DELTA), strict=True)
        ),
        chi_mean=chi_mean,
        chi_spread=LATENT_SPREAD if latent else CHI_SPREAD,
        energy_kernels=list(
            zip(
                build(short_range, "short-range", "short_range"),
                kernel_spreads(energy_spreads, ENERGY_DELTA),
                strict=True,
            )
        ),
        energy_mean=energy_mean,
        energy_spread=0.0 if settings.e0 is not None else ENERGY_SPREAD,
        energy_scales=energy_scales,
        energy_held=held,
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


def _sized(kernel: Kernel, elements: int) -> Kernel:
    """A kernel that nobody has chosen, with representatives for the number of elements."""
    if kernel.n_representatives is not None:
        return kernel
    number = min(DEFAULT_REPRESENTATIVES, AUTOMATIC_TOTAL // elements)
    return type(kernel)(**{**kernel.get_params(deep=False), "n_representatives": max(1, number)})


def kernel_spreads(given: Sequence[float | None], default: float) -> list[float]:
    """δ of every kernel of a sum; those not given share the variance of the role's default equally."""
    return [default / math.sqrt(len(given)) if delta is None else float(delta) for delta in given]


def environment_notes(parameters: Parameters, u: FloatArray) -> list[str]:
    """How much site parameters vary with the environment, by kind and element, for the report."""
    environment = parameters.environment
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
    chi, energy = parameters.chi, parameters.energy
    species = parameters.species
    electronegativity = short_range = None
    if chi is not None and chi.kernels:
        electronegativity = SiteModel(chi.terms(u), chi.offsets(u))
    if energy is not None and energy.kernels:
        short_range = SiteModel(energy.terms(u), dict.fromkeys(species, 0.0))
    sites = {}
    if parameters.environment is not None:
        environment = parameters.environment
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
    if parameters.energy is None or parameters.energy.held is None:
        return found
    held = np.zeros_like(spread)
    held[count:, count:] = parameters.energy.held
    return Determination(found.species, found.covariance + held, found.prior + held)


__all__ = [
    "FitResult",
    "build_potential",
    "finish",
    "fit_potential",
    "representative_counts",
    "warn_unconverged",
]
