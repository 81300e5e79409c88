"""KQEq, the object users work with: settings in, fitted model out.

Follows scikit-learn's conventions for estimators; the work is done by :mod:`kqeq.fitting` (fit) and
:mod:`kqeq.potential` (predict).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from numbers import Real
from os import PathLike
from typing import Any, Unpack, overload

import numpy as np
from ase import Atoms
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from kqeq.backend import Device, devices
from kqeq.backend.devices import check_precision
from kqeq.baselines import resolve_baseline
from kqeq.charges import QEq
from kqeq.charges.base import ChargeModel
from kqeq.errors import InputError, ModelNotFittedError, UnsupportedError
from kqeq.fitting.capacity import fit_within, seconds
from kqeq.fitting.fit import FitResult, build_potential, fit_potential, representative_counts
from kqeq.fitting.least_squares.equations import Prior
from kqeq.fitting.metrics import Evaluation
from kqeq.fitting.pruning import prune
from kqeq.fitting.report import FitReport
from kqeq.fitting.rows.cache import CacheFolder, DiskCache, disk_cache
from kqeq.fitting.rows.targets import element_energies
from kqeq.fitting.settings import (
    RULES,
    FitSettings,
    automatic_charge_kernels,
    check_noise,
    check_settings,
    complete_noise,
    dipoles_alone,
    for_dipoles,
    wanted_labels,
)
from kqeq.fitting.update import update_potential
from kqeq.frames.label_checks import survey
from kqeq.frames.labels import LabelKeys, Labels
from kqeq.frames.structures import Structure
from kqeq.io.progress import track
from kqeq.io.rules import FLAG, NOTHING, PATH, Rule, check_values, instance
from kqeq.kernels.charge_kernel import ChargeKernel
from kqeq.kernels.settings import (
    AUTO,
    Kernel,
    automatic_short_range,
    default_electronegativity,
    default_short_range,
    kernel_tuple,
)
from kqeq.model.comparison import charge_candidates, dipole_candidates, judge_affordably
from kqeq.model.evaluation import evaluate_pairs, read_structures
from kqeq.model.storage import Record, damaged, load_record, save_record
from kqeq.potential.potential import Potential, Prediction, check_properties
from kqeq.potential.prediction import PredictOptions
from kqeq.uncertainty.calibration import calibrate
from kqeq.uncertainty.posterior import (
    Factors,
    Posterior,
    require_posterior,
    with_uncertainty,
)

_AUTO: Any = AUTO
_DEFAULT: Any = "default"
"""Marks arguments that take the package's default (``None`` means: leave this part away)."""


_FIT_RULES: Mapping[str, Rule] = {
    "optimize": RULES["optimize"],
    "charges_key": RULES["charges_key"],
    "resume": PATH | NOTHING,
    "cache": PATH | instance(DiskCache, "kqeq.DiskCache(folder, budget=bytes)") | NOTHING,
    "leave_out_failed": FLAG,
}


LEAST_SCORE = -1.0
"""What a quantity counts at least in :meth:`KQEq.score`."""


class NotFittedYetError(ModelNotFittedError, NotFittedError):  # type: ignore[misc]
    """Also scikit-learn's own exception for that case, for its tools."""


class _OwnDefault:
    """A setting whose default is an object: each model gets one of its own once it is looked at.

    Until then the model holds the word that its constructor was given, as scikit-learn asks, so that ``set_params`` never
    reaches the object of another model.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        if self._name not in instance.__dict__:
            raise AttributeError(self._name)
        if _is_default(instance.__dict__[self._name]):
            chosen = instance.__dict__.get("chosen_", {})
            if self._name in chosen:  # by the last fit; the next one may choose another
                return chosen[self._name]
            instance.__dict__[self._name] = self.make()
        return instance.__dict__[self._name]

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self._name] = _DEFAULT if _is_default(value) else value


class KQEq(BaseEstimator):  # type: ignore[misc]
    """Kernel charge-equilibration potential.

    Parameters
    ----------
    electronegativity : SOAPKernel, NetworkKernel, sequence of these, "auto" or None
        Kernel of the electronegativities, or several that are summed, each with its own descriptor, representatives
        and prior spread; ``None`` (with ``charges=None``) for a short-range potential alone.  ``"auto"`` takes a middle
        and a long kernel, for latent charges a sharp and a middle one, and has ``fit`` choose.
    short_range : SOAPKernel, NetworkKernel, sequence of these, "auto" or None
        Kernel of the short-range energy, or several that are summed; ``None`` for charges alone.  ``"auto"`` takes a
        long, a middle and a sharp kernel and has ``fit`` choose; molecules of 40 atoms at most may get a longer one.
    charges : charge model, "auto" or None
        By default ``kqeq.QEq()``; where dipoles are all that is fitted and kernels are ``"auto"``,
        ``kqeq.AtomicDipoles(kqeq.LatentCharges())`` (on a baseline with dipoles of its own, ``kqeq.LatentCharges()``):
        ``chosen_`` says so.  ``"auto"`` compares short-range energy alone, QEq, hardness by kernel, ACKS2, latent
        charges, atomic dipoles, a charge-aware short-range energy and, where one composition has several total charges,
        kernels by charge on left-out frames, and takes the best
        (:func:`kqeq.compare`; ``comparison_`` holds the table, ``chosen_`` the settings); about ten times the time of
        a fit.
        Element parameters that a model marks with ``"learn"`` are fitted together with the rest, from all labels and
        from polarizabilities, with priors around the defaults; the values are in ``potential_.charges`` and in the
        report.  Hardness, polarizability and softness that it marks with ``"kernel"``
        depend on the environment of the atom as well.
    baseline : None, str, ase.calculators.calculator.Calculator or an object of :mod:`kqeq.baselines`
        What is known before the fit: subtracted from the labels and added in prediction.  ``"gfn2"``, ``"gfn1"`` and
        ``"ipea1"`` are tight binding, which knows total charge, field and dipole (extra ``xtb``); ``"zbl"`` keeps atoms
        apart; ``"d4:pbe0"`` and ``"d3:pbe0"`` are dispersion; ``"gfn2+zbl"`` is a sum.  Results of training frames are
        kept on disk (:mod:`kqeq.baselines.store`) and computed in parallel under ``joblib.parallel_config(n_jobs=...)``.
    noise : dict, optional
        Standard deviations that the fit tolerates: ``energy`` (eV/atom; an energy of N atoms gets √N times
        this), ``forces`` (eV/Å), ``stress`` (eV/Å³), ``dipole`` (e·Å), ``charges`` (e), ``polarizability``
        (e²·Å²/eV, a component).  Kinds that are not named take the defaults.
    targets : sequence of str, optional
        Label kinds to fit.  ``None`` fits all that the frames carry, except partition charges, which are
        fitted only on request (they do not reproduce dipoles), and polarizabilities where no element parameter is
        learned (nothing else determines them).
    charges_key : str, optional
        Name of the array with partition charges, for example ``"hirshfeld"``.
    label_prefix : str
        Prefix of label names in ``atoms.info`` and ``atoms.arrays``, for example ``"REF_"``; charge and field are
        found with and without.
    e0 : dict, optional
        Energies of the elements by symbol, eV; fitted where ``None``.
    max_iterations : int
        Of the Gauss–Newton solver.
    site_kernel : SOAPKernel, NetworkKernel or sequence of these, optional
        Kernel (or a sum) of the logarithms of the parameters marked with ``"kernel"``; its ``delta`` is their prior
        standard deviation around the element's value (by default 0.2, for softness 0.3).  ``None`` shares descriptors and
        representatives with the electronegativity.
    solver : {"auto", "cholesky", "qr"}
        How the linear problem of each step is solved.  ``"auto"`` takes normal equations and a Cholesky factorisation
        and turns to QR, at about three times the cost, where their condition number asks for it; the report tells.
    charge_aware : ChargeKernel, optional
        Lets the short-range energy see the charges, so that it can tell charge states of one geometry apart.  Fitted
        in a second stage, with electronegativities and site parameters held; dipole, polarizability, chemical
        potential and hardness are derivatives of the total energy then, and the dipole is not Σ q r.  On a baseline
        that holds the total charge these are the charges of the whole model, and ``charges=None`` is allowed.
    charge_from : {"baseline", "model"}
        Who carries the total charge on top of a baseline that can.  ``"baseline"``: it is evaluated at the total charge,
        and the charge model solves for charges that sum to zero; the correction is the same for all charge states of a
        geometry unless ``charge_aware`` lets it see the charges.  ``"model"``: the baseline is kept neutral, and
        differences between charge states are those of the charge model alone.  :func:`kqeq.choose_charge_from` compares
        them on left-out frames.
    optimize, budget, leave_out_failed, resume, cache, device : optional
        As of :meth:`fit`, where they may be given as well.  Model files keep the first three.
    seed : int
        Of what a fit draws or shuffles: the order in which frames are left out, representatives by leverage, charges to
        start from where no label tells them.  The same seed gives the same model.

    Attributes
    ----------
    potential_ : Potential
        The fitted parameters.
    fit_report_ : FitReport
        Labels used and ignored, sizes, convergence; print it.
    posterior_ : Posterior or None
        What the fit knows about its parameters; ``None`` for models loaded from a file without it.
    species_ : tuple of str
        Elements the model knows.
    saved_ : bool
        Whether some file holds this fit.
    comparison_ : Comparison
        With ``charges="auto"``: the models that were compared.
    chosen_ : dict
        With ``charges="auto"``, and for fits to dipoles alone: the settings that were taken.
    """

    def __init__(
        self,
        electronegativity: Kernel | Sequence[Kernel] | str | None = _AUTO,
        short_range: Kernel | Sequence[Kernel] | str | None = _AUTO,
        charges: ChargeModel | str | None = _DEFAULT,
        baseline: Any = None,
        noise: Mapping[str, float] | None = None,
        targets: Sequence[str] | None = None,
        charges_key: str | None = None,
        label_prefix: str = "",
        e0: Mapping[str, float] | None = None,
        max_iterations: int = 30,
        site_kernel: Kernel | Sequence[Kernel] | None = None,
        solver: str = "auto",
        charge_aware: ChargeKernel | None = None,
        charge_from: str = "baseline",
        optimize: str | None = AUTO,
        budget: float | str | None = None,
        leave_out_failed: bool = False,
        resume: str | PathLike[str] | None = None,
        cache: str | PathLike[str] | DiskCache | None = None,
        device: str | Device = "cpu",
        seed: int = 0,
    ) -> None:
        self.electronegativity = electronegativity
        self.short_range = short_range
        self.charges = charges
        self.baseline = baseline
        self.noise = noise
        self.targets = targets
        self.charges_key = charges_key
        self.label_prefix = label_prefix
        self.e0 = e0
        self.max_iterations = max_iterations
        self.site_kernel = site_kernel
        self.solver = solver
        self.charge_aware = charge_aware
        self.charge_from = charge_from
        self.optimize = optimize
        self.budget = budget
        self.leave_out_failed = leave_out_failed
        self.resume = resume
        self.cache = cache
        self.device = device
        self.seed = seed

    # ------------------------------------------------------------- settings

    charges = _OwnDefault(QEq)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Settings by name, as scikit-learn defines it; ``"default"`` for charges that nobody gave or looked at.

        Parameters
        ----------
        deep : bool
            Also those of kernels and charge models, as ``electronegativity__r_cut`` and so on.
        """
        untouched = self.__dict__.get("charges") is _DEFAULT
        params: dict[str, Any] = super().get_params(deep=deep)
        if untouched:
            params["charges"] = self.__dict__["charges"] = _DEFAULT
        return params

    def _given(self) -> dict[str, Any]:
        """Settings by name, with a charge model in place of ``"default"`` and ``"auto"``, which stay where they are."""
        own = {name: self.__dict__[name] for name in self._get_param_names()}
        if _is_auto(own["charges"]) or own["charges"] is _DEFAULT:  # what the last fit chose
            return {**own, **self.__dict__.get("chosen_", {"charges": QEq()})}
        return own

    def set_params(self, **params: Any) -> KQEq:
        """Set parameters, also nested ones such as ``short_range__delta``.

        A setting of a kernel that is ``"auto"`` makes it the single default kernel with that setting.
        """
        singles = {"electronegativity": default_electronegativity, "short_range": default_short_range}
        for name, single in singles.items():
            nested = any(key.startswith(f"{name}__") for key in params)
            if nested and isinstance(params.get(name, getattr(self, name)), str):
                params = {**params, name: single()}
        if any(key.startswith("charges__") for key in params):
            params = {"charges": self.charges, **params}  # an object of its own in place of "default"
        super().set_params(**params)
        return self

    # ------------------------------------------------------------------ fit

    def fit(
        self,
        frames: Any,
        y: None = None,
        *,
        sample_weight: Sequence[float] | None = None,
        targets: Sequence[str] | None = None,
        charges_key: str | None = None,
        resume: str | PathLike[str] | None = None,
        optimize: str | None = _DEFAULT,
        cache: str | PathLike[str] | DiskCache | None = None,
        device: str | Device | None = None,
        budget: float | str | None = None,
        leave_out_failed: bool | None = None,
    ) -> KQEq:
        """Fit to labelled frames.

        Parameters
        ----------
        frames : ase.Atoms or sequence of ase.Atoms
            Labels are taken from ``atoms.info``, ``atoms.arrays`` and the single-point results that ASE
            attaches on reading (:class:`kqeq.frames.labels.LabelKeys`); total charge and field as
            :mod:`kqeq.frames.conditions` says; an optional weight from ``atoms.info["weight"]``.
        y : None
            Ignored; the labels are in the frames.
        sample_weight : sequence of float, optional
            One weight per frame, multiplied with those in the frames.
        targets, charges_key, and all that follow : optional
            Override the settings of the same name for this fit.
        resume : path-like, optional
            Checkpoint file: written after every step, and continued from if it is there already, so that an
            interrupted fit (Ctrl-C, a killed job) called again gives what the uninterrupted one would have.
        optimize : {"auto", "left-out", "evidence"}, optional
            ``"left-out"``: learn the noise of every label kind that ``noise`` does not name, and the prior spread of
            every kernel, by how well frames are predicted that are left out (in closed form), and leave kernels away
            that do not help (:mod:`kqeq.fitting.evidence.left_out`).  ``"auto"`` does so where all kernels are
            ``"auto"``; ``None`` is one fit with the settings as they are.
            ``"evidence"``: learn the noise of every label kind, the prior spreads (δ of the kernels, spreads of the
            offsets) and, for fits to dipoles or charges alone, ζ of the electronegativities by maximising the marginal
            likelihood (:mod:`kqeq.fitting.evidence.hyperparameters`).  The given values are the start and the centre
            of bounds; what was learned is in ``posterior_`` and in the report; uncertainties are calibrated
            (:mod:`kqeq.uncertainty.remainder`).
        cache : path-like or DiskCache, optional
            A folder on a fast disk for kernel features that memory has no room for; :class:`kqeq.DiskCache` says more.
        device : {"cpu", "cuda", "auto"}
            Where to compute features, sums over frames and steps (:mod:`kqeq.backend.devices`); results do not
            depend on it.
        budget : float or str, optional
            Time that may be used, in seconds or with a unit (``"10 min"``).  Then the number of representatives is found
            by the fit: it doubles until frames that are left out stop improving or the time is used up, and the report
            says which it was (:mod:`kqeq.fitting.capacity`).  Numbers given with the kernels are upper limits.
        leave_out_failed : bool
            Leave out frames whose baseline does not converge; otherwise they are named and refused.

        Returns
        -------
        KQEq
            Itself.

        Raises
        ------
        InputError
            For settings, frames or labels that cannot be used; before any long work.
        UnsupportedError
            For structures that the charge model cannot treat.
        DeviceError
            If a GPU is asked for and does not work.
        """
        # before frames are read: whatever is wrong here is wrong for all of them
        check_values("KQEq", self._given(), {**RULES, **_FIT_RULES})
        given: dict[str, Any] = {
            "charges_key": charges_key,
            "resume": resume,
            "cache": cache,
            "leave_out_failed": leave_out_failed,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        if not _is_default(optimize):  # None is one plain fit
            chosen["optimize"] = optimize
        check_values("fit", chosen, _FIT_RULES)
        charges_key, resume, cache, leave_out_failed, optimize = (
            chosen.get(name, getattr(self, name)) for name in (*given, "optimize")
        )
        device = self.device if device is None else device
        budget = self.budget if budget is None else budget
        targets = self.targets if targets is None else targets
        automatic = _is_auto(self.__dict__["charges"])
        self.__dict__.pop("chosen_", None)  # of an earlier fit
        settings = search_of(self._settings(targets), optimize)
        settings = replace(settings, leave_out_failed=bool(leave_out_failed))
        check_settings(settings)
        if automatic:
            _check_automatic(budget, resume)
        noise = settings.noise["forces"]
        wanted = wanted_labels(settings)
        found = survey(
            frames, self._keys(charges_key), weights=sample_weight, force_noise=noise, wanted=wanted
        )
        alone = dipoles_alone(settings, (labels for _, labels in found.pairs))
        if alone:
            settings = for_dipoles(settings)
            if "charges" in settings.automatic and not automatic:
                self.chosen_ = {"charges": settings.charges}
        disk = disk_cache(cache)

        allowed = None if budget is None else seconds(budget)

        def work(where: Device) -> FitResult:
            placed = replace(settings, device=where)
            with nullcontext() if disk is None else disk.open() as folder:
                if automatic:
                    return self._fit_best(found.pairs, placed, folder, dipoles=alone)
                if allowed is not None:
                    return fit_within(found.pairs, placed, allowed, resume=resume, cache=folder)
                return fit_potential(found.pairs, placed, resume=resume, cache=folder)

        result, _ = devices.run(device, work)
        self._keep(result.with_survey(found), charges_key, calibrated=settings.optimize is not None)
        return self

    def _fit_best(
        self,
        pairs: list[tuple[Structure, Labels]],
        settings: FitSettings,
        cache: CacheFolder | None,
        *,
        dipoles: bool,
    ) -> FitResult:
        """The best of several charge models, as :func:`kqeq.compare` finds it."""
        structures = [structure for structure, _ in pairs]
        candidates = dipole_candidates(settings) if dipoles else charge_candidates(settings, structures)
        comparison, results = judge_affordably(pairs, candidates, seed=settings.seed, cache=cache)
        self.comparison_ = comparison
        self.chosen_ = dict(comparison.settings[comparison.best])
        result = results.get(comparison.best)
        if result is None:  # the comparison took some of the frames
            result = fit_potential(pairs, candidates[comparison.best], cache=cache)
        note = f'charges="auto": {comparison.reason}'
        return replace(result, report=replace(result.report, notes=(*result.report.notes, note)))

    def update(self, frames: Any, *, sample_weight: Sequence[float] | None = None) -> KQEq:
        """Add labelled frames to a fitted model without those that it was fitted to.

        The posterior of the fit takes the place of the old data.  Where the model is linear in its labels (dipoles and
        charges; energies and forces of models without charges) the result is that of one fit to all frames with the same
        representatives and noises; otherwise an approximation that is good as long as the added frames do not move the
        parameters far (:mod:`kqeq.fitting.update`).  With a charge-aware short-range energy, that alone is updated, and
        charges stay as they are.  Representatives stay as well: for other kinds of environments, fit again.

        Parameters
        ----------
        frames : ase.Atoms or sequence of ase.Atoms
            With labels of the kinds that the model was fitted to, under the same names; elements that it knows.
        sample_weight : sequence of float, optional
            As in ``fit``.

        Raises
        ------
        ModelNotFittedError, InputError, UnsupportedError
            Also if the model was loaded from a file without its posterior.
        """
        potential = self.fitted()
        posterior = require_posterior(self.posterior_, "adding frames needs")
        pairs = survey(frames, self._keys(self.charges_key_), weights=sample_weight).pairs
        result = update_potential(
            pairs,
            self._settings(None),
            potential,
            posterior.parameters,
            Prior(posterior.u, posterior.lower),
            posterior.noise,
            self.fit_report_,
        )
        self._keep(result, self.charges_key_, factors=posterior.factors)
        return self

    def prune(self, loss: float = 0.01) -> KQEq:
        """Drop representatives of the short-range energy, the last chosen first, as long as the fit stays as good.

        Predictions cost a dot product with every representative of an atom's element.  What dropping them costs follows
        from the posterior (:mod:`kqeq.fitting.pruning`), without the frames of the fit.

        Parameters
        ----------
        loss : float
            By how much the loss of the fit may grow, relative to it: with 0.01 errors grow by about half a percent.

        Returns
        -------
        KQEq
            Itself; the report says what was dropped.

        Raises
        ------
        ModelNotFittedError, InputError, UnsupportedError
            Also if the model has no posterior, or a charge-aware short-range energy.
        """
        potential = self.fitted()
        if isinstance(loss, bool) or not isinstance(loss, Real) or not 0.0 < float(loss) <= 1.0:
            raise InputError(
                f"loss is {loss!r}; expected a number between 0 and 1, the relative growth of the loss"
            )
        posterior = require_posterior(self.posterior_, "pruning needs")
        if posterior.parameters.dependence is not None:
            raise UnsupportedError(
                "a charge-aware short-range energy cannot be pruned; fit with fewer representatives"
            )
        report = self.fit_report_
        found = prune(posterior.parameters, posterior.u, posterior.lower, float(loss) * report.loss)
        part = found.parameters.short_range
        assert part is not None
        note = (
            f"{found.dropped} of {found.dropped + part.kernel_size} representatives of the short-range energy were "
            f"dropped; the loss grew by {100 * found.increase / report.loss:.2g} %"
        )
        report = replace(
            report,
            n_parameters=found.parameters.size,
            representatives={**report.representatives, **representative_counts("short-range", part)},
            loss=report.loss + found.increase,
            notes=(*report.notes, note),
        )
        smaller = build_potential(
            found.parameters,
            found.u,
            found.lower,
            self._settings(None),
            potential.training_charges,
            potential.has_energy,
        )
        smaller = replace(
            smaller,
            baseline=potential.baseline,
            known_states=potential.known_states,
            determination=potential.determination,
            charged_sizes=potential.charged_sizes,
        )
        known = replace(posterior, parameters=found.parameters, u=found.u, lower=found.lower)
        self._set_fitted(smaller, report, self.charges_key_, known)
        return self

    def _keep(
        self,
        result: FitResult,
        charges_key: str | None,
        *,
        calibrated: bool = False,
        factors: Mapping[str, Factors] | None = None,
    ) -> None:
        report = result.report
        solution = result.solution
        posterior = Posterior(result.parameters, solution.u, solution.lower, result.noise, factors or {})
        if calibrated and result.parameters.dependence is None:
            posterior, told = calibrate(posterior, result.frames, self.seed, remainders=True)
            report = replace(report, notes=(*report.notes, told))
        self._set_fitted(result.potential, report, charges_key, posterior)

    def _settings(self, targets: Sequence[str] | None) -> FitSettings:
        if isinstance(targets, str):
            targets = (targets,)
        given = self._given()
        chi, energy, charges = given["electronegativity"], given["short_range"], given["charges"]
        if isinstance(chi, str):
            chi = None if charges is None else automatic_charge_kernels(charges)
        if isinstance(energy, str):
            energy = automatic_short_range()
        check_noise(self.noise)
        return FitSettings(
            electronegativity=kernel_tuple(chi),
            short_range=kernel_tuple(energy),
            automatic=tuple(
                name
                for name, own in (
                    ("electronegativity", self.electronegativity),
                    ("short_range", self.short_range),
                    ("charges", self.__dict__["charges"]),
                )
                if isinstance(own, str)
            ),
            held=tuple(self.noise) if isinstance(self.noise, Mapping) else (),
            charges=charges,
            baseline=resolve_baseline(self.baseline, self.charge_from),
            noise=complete_noise(self.noise),
            targets=None if targets is None else tuple(targets),
            e0=None if self.e0 is None else element_energies(self.e0),
            max_iterations=self.max_iterations,
            site_kernel=kernel_tuple(given["site_kernel"]),
            solver=self.solver,
            charge_aware=given["charge_aware"],
            seed=self.seed,
        )

    def _keys(self, charges_key: str | None) -> LabelKeys:
        return LabelKeys.prefixed(self.label_prefix, charges_key)

    def _set_fitted(
        self,
        potential: Potential,
        report: FitReport,
        charges_key: str | None,
        posterior: Posterior | None = None,
    ) -> None:
        from ase.data import chemical_symbols

        self.potential_ = potential
        self.fit_report_ = report
        self.charges_key_ = charges_key
        self.posterior_ = posterior
        self.saved_ = False
        self.species_ = tuple(chemical_symbols[z] for z in potential.species)

    def fitted(self) -> Potential:
        """The potential that was fitted.

        Raises
        ------
        ModelNotFittedError
        """
        potential: Potential | None = getattr(self, "potential_", None)
        if potential is None:
            raise NotFittedYetError(
                "this KQEq model is not fitted yet; call model.fit(frames), or load one with kqeq.load(path)"
            )
        return potential

    # -------------------------------------------------------------- predict

    @overload
    def predict(self, frames: Atoms, **options: Unpack[PredictOptions]) -> Prediction: ...

    @overload
    def predict(self, frames: Sequence[Atoms], **options: Unpack[PredictOptions]) -> list[Prediction]: ...

    def predict(
        self,
        frames: Atoms | Sequence[Atoms],
        *,
        total_charge: float | None = None,
        external_field: Any = None,
        external_charges: Any = None,
        properties: Collection[str] | None = None,
        uncertainty: bool = False,
        device: str | Device = "cpu",
        precision: str = "float64",
    ) -> Prediction | list[Prediction]:
        """Predict energies, forces, charges, dipoles and responses.

        Parameters
        ----------
        frames : ase.Atoms or sequence of ase.Atoms
        total_charge : float, optional
            e; any finite number.  Otherwise ``info["total_charge"]`` or ``info["charge"]`` of each frame, or 0.
        external_field : (3,) array-like, optional
            V/Å; otherwise ``info["external_field"]`` of each frame, or none.
        external_charges : kqeq.ExternalCharges or tuple, optional
            Charges around the structure, (positions (M, 3) in Å, charges (M,) in e, widths in Å): they polarise it, and
            feel forces (``Prediction.external_forces``).  The same for all frames.  The energy holds their interaction
            with the structure, not that among themselves.
        properties : collection of str, optional
            Some of ``energy, forces, stress, charges, dipole, polarizability, born_charges``; leaving forces away saves
            most of the time.  All but the last by default.
        uncertainty : bool
            Also give ``energy_std``, ``forces_std``, ``charges_std`` and ``dipole_std``, standard deviations of the
            model's values (:mod:`kqeq.uncertainty`), always computed on the CPU.  Those of forces take most of the time.
            With ``charge_aware`` only the first two, for the short-range energy at given charges.
        device : {"cpu", "cuda", "auto"}
            Where to compute (:mod:`kqeq.backend.devices`); pays for large structures.  Results do not depend on it.
        precision : {"float64", "float32"}
            Of the product behind the forces of kernels, which changes them by about 2 meV/Å; the rest is float64.

        Returns
        -------
        Prediction, or a list of them for a list of frames

        Raises
        ------
        ModelNotFittedError, InputError, UnsupportedError, DeviceError
            Also if uncertainties are asked of a model that was loaded without its posterior.
        """
        potential = self.fitted()
        chosen = check_properties(properties)
        single_precision = check_precision(precision)
        one_frame = isinstance(frames, Atoms)
        given = {
            "total_charge": total_charge,
            "external_field": external_field,
            "external_charges": external_charges,
            "prefix": self.label_prefix,
        }
        structures = read_structures(potential, frames, **given)
        posterior = require_posterior(self.posterior_) if uncertainty else None

        def work(where: Device) -> list[Prediction]:
            results = potential.predict_many(structures, chosen, device=where, single=single_precision)
            return list(track(results, "predict", total=len(structures)))

        predictions, _ = devices.run(device, work)
        potential.warn_if_undetermined(structures, predictions)
        if posterior is not None:
            both = track(zip(predictions, structures, strict=True), "uncertainty", total=len(structures))
            predictions = [with_uncertainty(p, posterior, s, chosen, potential.baseline) for p, s in both]
        return predictions[0] if one_frame else predictions

    # ------------------------------------------------------------- evaluate

    def evaluate(self, frames: Any, *, calibration: bool = False, device: str | Device = "cpu") -> Evaluation:
        """Errors on labelled frames: RMSE and MAE of every quantity that frames and model share.

        Parameters
        ----------
        frames : ase.Atoms or sequence of ase.Atoms
        calibration : bool
            Also compare errors with the uncertainties that the model predicts: ``result.calibration``.
        device : {"cpu", "cuda", "auto"}
            Where to predict.

        Returns
        -------
        Evaluation
            A mapping from quantity to errors that prints as a table; ``to_dict()`` gives plain data.

        Raises
        ------
        ModelNotFittedError, InputError, UnsupportedError
            Also if calibration is asked of a model that was loaded without its posterior.
        """
        potential = self.fitted()
        posterior = require_posterior(self.posterior_) if calibration else None
        pairs = survey(frames, self._keys(self.charges_key_)).pairs
        result, _ = devices.run(
            device,
            lambda where: evaluate_pairs(
                potential, pairs, posterior, label_prefix=self.label_prefix, device=where
            ),
        )
        return result

    def score(self, frames: Any, y: None = None) -> float:
        """Mean coefficient of determination over the labelled quantities; 1 is perfect.

        Forces are measured against zero force, energies against the mean of their composition, everything else
        against its mean.  None counts for less than −1, so that one quantity that a fold says nothing about (energies of
        a composition that the fit has not seen, or of which the fold has one frame) does not drown the others.
        """
        evaluation = self.evaluate(frames)
        if len(evaluation) == 0:
            raise InputError("the frames carry no label that this model predicts")
        return float(np.mean([max(errors.r2, LEAST_SCORE) for errors in evaluation.values()]))

    # -------------------------------------------------------------- storage

    def save(self, path: str | PathLike[str], *, posterior: bool = False) -> None:
        """Write the fitted model to one file, atomically.

        Parameters
        ----------
        path : path-like
            By convention ``*.kqeq``.
        posterior : bool
            Also store the factor of the posterior covariance (P×P numbers), for uncertainties.

        Raises
        ------
        ModelNotFittedError
        InputError
            If the path cannot be written, or ``posterior`` is asked of a model that was loaded.
        OutputError
            Also an InputError and an OSError: the disk is full, for example.  A model that no file holds yet is then
            kept in another folder, which the message names.
        """
        record = Record(self._given(), self.fitted(), self.fit_report_, self.charges_key_, self.posterior_)
        save_record(record, path, posterior=posterior, rescue=not self.saved_)
        self.saved_ = True


def load_model(path: str | PathLike[str], *, baseline: Any = None, networks: Sequence[Any] = ()) -> KQEq:
    """Read a model file.

    Parameters
    ----------
    path : path-like
    baseline : ase calculator, optional
        Needed if the model was fitted on top of a calculator: calculators are not stored.
    networks : sequence of str, path or Network, optional
        Files of networks (or networks) whose features the model uses, where they are neither in a package nor known to
        this process: a model file holds their names and hashes only.  The environment variable ``KQEQ_NETWORKS`` may name
        folders instead.

    Returns
    -------
    KQEq
        Fitted; predicts bit for bit what the saved model predicted.

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, damaged, no model file, or from a newer version of the package.
    InputError
        If the baseline calculator is missing or is not the kind the model was fitted with; if a network is missing or
        has other weights.
    UnsupportedError
        If the package of a network is not installed; the message names the extra.
    """
    record = load_record(path, baseline=baseline, networks=networks)
    try:
        model = KQEq(**record.settings)
    except Exception as error:  # settings that no version has had
        raise damaged(path, error) from error
    model._set_fitted(record.potential, record.report, record.charges_key, record.posterior)
    model.saved_ = True
    return model


def search_of(settings: FitSettings, optimize: str | None) -> FitSettings:
    """The settings with what ``optimize`` stands for: ``"auto"`` searches where no kernel is the user's."""
    if optimize == AUTO:
        kernels = {"electronegativity": settings.electronegativity, "short_range": settings.short_range}
        ours = all(name in settings.automatic for name, own in kernels.items() if own is not None)
        optimize = "left-out" if ours else None
    return replace(settings, optimize=optimize)


def _check_automatic(budget: Any, resume: Any) -> None:
    """Refuse what does not go with a comparison of several fits."""
    for name, value in (("budget", budget), ("resume", resume)):
        if value is not None:
            raise InputError(
                f'{name} was given with charges="auto", which makes several fits; find the model first, with '
                f"kqeq.compare(frames) or kqeq compare, and fit that with {name}"
            )


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == AUTO


def _is_default(value: Any) -> bool:
    return isinstance(value, str) and value == _DEFAULT


__all__ = ["KQEq", "load_model", "search_of"]
