"""How far a prediction may be off: standard deviations from the posterior of the fit.

At the converged linearisation the parameters are Gaussian with precision H = L Lᵀ (prior included), so a prediction
with Jacobian row j has the variance |L⁻¹ jᵀ|².  To this comes what the sparse features cannot express: the site
quantity is f = δ Φ u + g with a Gaussian process g of covariance

    cov(g_i, g_j) = δ² (k(p_i, p_j) − Φ_i Φ_jᵀ)

that no label constrains (theory section 3).  g is mapped through the same linear map m as Φ, so

    var = |L⁻¹ jᵀ|² + Σ_kernels κ ( δ² m K mᵀ − |j_kernel|² )

with κ = 1 unless a fit by evidence has learned it (:mod:`kqeq.uncertainty.remainder`), K the kernel between all atoms
of the structure, j_kernel = δ m Φ the part's stretch of j.  If every training environment is a representative this is the
variance of the exact Gaussian process.

A force is a functional of g *and* of its gradient, Σ_i a_i ∂g_i/∂r + Σ_i b_i g_i, with covariances

    ∂p_i · ∂∂'k · ∂p_j = ζ d^(ζ−1) ∂p_i·∂p_j + ζ(ζ−1) d^(ζ−2) (∂p_i·p_j)(p_i·∂p_j),     d = p_i·p_j.

The derivatives ∂p/∂r of whole descriptor rows are taken here, and only here, by central differences: 6N evaluations
of a structure are cheaper than the dense analytic derivative, and an uncertainty needs no more digits.

The gradient of g stays as uncertain as the prior makes it even where forces were fitted, because those labels act on
the sparse features only, and so do values of g: what is missed is too large by one to three orders of magnitude.  Fits
that search their settings calibrate it (:mod:`kqeq.uncertainty.calibration`), with s and κ' for each kind of label

    var = s² ( |L⁻¹ jᵀ|² + κ' Σ_kernels κ ( δ² m K mᵀ − |j_kernel|² ) ),     noise s σ

Standard deviations are those of the model's own value; a label scatters around it with its noise on top.

With a charge-aware short-range energy (:mod:`kqeq.fitting.charge_aware`) they cover that energy at given charges: with
k_q(q, q') = Σ_b ψ_b ψ_b' each power b is a Gaussian process of its own, ψ_b multiplies its values, and ψ'_b ∂q/∂r its
values in a force.  What the charges themselves leave open is not in them (but for energies that data do not determine,
:mod:`kqeq.potential.determination`), and charges and dipoles have none.

Dimensions: N atoms, P parameters, n rows of one label.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from kqeq.backend import to_numpy
from kqeq.backend.linalg import solve_lower
from kqeq.baselines import Baseline, BaselineResult, remaining
from kqeq.charges.base import Response
from kqeq.charges.parameters import logarithmic_directions
from kqeq.descriptors import evaluate_states
from kqeq.errors import UnsupportedError
from kqeq.fitting.parameters import KernelPart, Parameters
from kqeq.fitting.rows.blocks import BLOCKS, Linearisation
from kqeq.fitting.rows.features import TrainingFrame, compute_features
from kqeq.frames.labels import Labels
from kqeq.frames.structures import Structure
from kqeq.kernels.feature_map import FeatureMap
from kqeq.potential.determination import Determination
from kqeq.potential.potential import Prediction
from kqeq.typing import BoolArray, FloatArray, IntArray

STEP = 1e-4
"""Displacement for the derivatives of descriptor rows, Å."""

KINDS = ("energy", "forces", "charges", "dipole")
"""Quantities with a standard deviation."""


@dataclass(frozen=True)
class Factors:
    """What makes the predicted distribution of one kind of label as wide as errors are.

    Attributes
    ----------
    scale : float
        s, of the standard deviation, that of the noise included.
    missed : float
        κ', of the variance that sparse features miss.
    """

    scale: float = 1.0
    missed: float = 1.0


AS_IT_IS = Factors()
"""Those of a fit that has not been calibrated."""


@dataclass(frozen=True, eq=False)
class Posterior:
    """What a fit knows about its parameters.

    Attributes
    ----------
    parameters : Parameters
        What they mean, with their prior.
    u : (P,) array
        The most probable ones.
    lower : (P, P) array
        Cholesky factor of their precision.
    noise : mapping of str to float
        Standard deviation of labels by kind, as fitted.
    factors : mapping of str to Factors
        By kind of label, where they were found (:mod:`kqeq.uncertainty.calibration`).
    """

    parameters: Parameters
    u: FloatArray
    lower: FloatArray
    noise: Mapping[str, float]
    factors: Mapping[str, Factors] = field(default_factory=dict)

    @property
    def label_noise(self) -> dict[str, float]:
        """How far labels scatter around values, by kind: the noise of the fit, calibrated."""
        return {kind: self.factors.get(kind, AS_IT_IS).scale * value for kind, value in self.noise.items()}

    @cached_property
    def determination(self) -> Determination:
        """What is known of the element means."""
        return self.parameters.determination(self.lower)

    def energy_variance(self, view: Uncertain, open_std: float | None) -> float:
        """Variance of an energy, eV²; ``open_std`` is that of :attr:`Prediction.undetermined`, under a broader prior."""
        variance = float(view.variance("energy")[0])
        if open_std is None:
            return variance
        state, known = view.line.state, self.determination
        charges = None if state is None else to_numpy(state.electronegativity_gradient())
        own = known.std(known.row(view.structure.numbers, charges, energy=True))
        return variance + max(open_std**2 - own**2, 0.0)

    @property
    def quantities(self) -> tuple[str, ...]:
        """What it knows the uncertainty of, in the order of :data:`KINDS`."""
        energy = () if self.parameters.short_range is None else ("energy", "forces")
        return (*energy, *(() if self.parameters.electronegativity is None else ("charges", "dipole")))

    def view(
        self, structure: Structure, *, forces: bool = False, baseline: Baseline | None = None
    ) -> Uncertain:
        """One structure seen through it; ``forces`` says whether theirs will be asked for."""
        seen, dependence = None, self.parameters.dependence
        if dependence is not None:
            seen = dependence.of_baseline(structure, baseline, forces=forces)
        return Uncertain(self, remaining(structure, baseline), forces=forces, base=seen)


@dataclass(frozen=True, eq=False)
class LinearMap:
    """One quantity of one structure as a linear function of the parameters and of the sites.

    Attributes
    ----------
    rows : (n, P) array
        Derivative with respect to the parameters.
    sites : tuple of (KernelPart, (n, N) array)
        Derivative with respect to what each kernel adds to its quantity at the atoms.
    """

    rows: FloatArray
    sites: tuple[tuple[KernelPart, FloatArray], ...]


class _Environments:
    """Prior covariances between the environments of one structure.

    Parameters
    ----------
    structure : Structure
    maps : collection of FeatureMap
    """

    def __init__(self, structure: Structure, maps: Collection[FeatureMap]) -> None:
        self.structure = structure
        states = evaluate_states([m.descriptor for m in maps], structure, derivatives=False)
        self.values = {m: states[m.descriptor].values for m in maps}
        self.same: BoolArray = structure.numbers[:, None] == structure.numbers[None, :]

    def kernel(self, feature_map: FeatureMap) -> FloatArray:
        """K between all atoms of the structure, zero between elements, (N, N)."""
        values = self.values[feature_map]
        dots = np.clip(values @ values.T, 0.0, None)
        return np.where(self.same, dots**feature_map.zeta, 0.0)

    def _gradient_prior(
        self, feature_map: FeatureMap, slopes: FloatArray, values: FloatArray, coordinates: IntArray
    ) -> FloatArray:
        """Prior variance of Σ_i slopes_i ∂g_i/∂r_k + Σ_i values_ki g_i for coordinates k and δ = 1, (c,)."""
        rows, zeta = self.values[feature_map], feature_map.zeta
        kernel = self.kernel(feature_map)
        values = values[coordinates]
        result = np.einsum("ki,ij,kj->k", values, kernel, values, optimize=True)
        for k, coordinate in enumerate(coordinates):
            change = self._descriptor_derivative(feature_map, int(coordinate))
            moved = np.flatnonzero(np.abs(change).max(axis=1) > 1e-10)
            change, weights = change[moved], slopes[moved]
            dots = np.maximum(rows[moved] @ rows.T, 1e-12)
            across = change @ rows.T
            first = np.where(self.same[moved], zeta * dots ** (zeta - 1.0), 0.0)
            own, own_across = dots[:, moved], across[:, moved]
            second = first[:, moved] * (change @ change.T)
            if zeta > 1.0:
                curvature = zeta * (zeta - 1.0) * own ** (zeta - 2.0) * own_across * own_across.T
                second += np.where(self.same[np.ix_(moved, moved)], curvature, 0.0)
            result[k] += weights @ second @ weights + 2.0 * weights @ (first * across) @ values[k]
        return np.asarray(result, dtype=np.float64)

    def _descriptor_derivative(self, feature_map: FeatureMap, k: int) -> FloatArray:
        """∂p/∂r_k of all rows by central differences, (N, F)."""
        ends = []
        for sign in (1.0, -1.0):
            positions = self.structure.positions.copy()
            positions.flat[k] += sign * STEP
            moved = replace(self.structure, positions=positions)
            ends.append(feature_map.descriptor.evaluate(moved, derivatives=False).values)
        return np.asarray((ends[0] - ends[1]) / (2.0 * STEP))


class Uncertain(_Environments):
    """One structure seen through a posterior; what several quantities share is computed once.

    Parameters
    ----------
    posterior : Posterior
    structure : Structure
    forces : bool
        Whether forces will be asked for.
    base : BaselineResult, optional
        The baseline, where the short-range energy sees its charges.
    """

    def __init__(
        self,
        posterior: Posterior,
        structure: Structure,
        *,
        forces: bool = False,
        base: BaselineResult | None = None,
    ) -> None:
        self.posterior = posterior
        parameters = posterior.parameters
        super().__init__(structure, dict.fromkeys(k.feature_map for k in parameters.kernels.values()))
        labels = Labels(forces=np.zeros((len(structure), 3))) if forces else Labels(energy=0.0)
        frame = TrainingFrame(structure, labels, 0, base)
        self.line = Linearisation(frame, compute_features(frame, parameters), parameters, posterior.u)

    def linear_map(self, kind: str) -> LinearMap:
        """Derivatives of energy, dipole or charges; forces depend on derivatives of the sites as well."""
        parameters = self.posterior.parameters
        rows = BLOCKS[kind](self.line, True)[1]
        assert rows is not None
        sites: list[tuple[KernelPart, FloatArray]] = []
        if kind == "energy" and parameters.short_range is not None:
            sites += [(kernel, self._weights(kernel)[None, :]) for kernel in parameters.short_range.kernels]
        if parameters.electronegativity is not None and self.line.state is not None:
            if kind == "energy":
                change: FloatArray | None = self.line.state.electronegativity_gradient()[None, :]
            else:
                change = getattr(self._site_response, kind)
            if change is not None:
                sites += [(kernel, change) for kernel in parameters.electronegativity.kernels]
            for name, slopes in self.line.site_slopes.items():
                change = slopes[None, :] if kind == "energy" else getattr(self._responses[name], kind)
                if change is not None:
                    sites += [(kernel, change) for kernel in parameters.parts[name].kernels]
        return LinearMap(rows, tuple(sites))

    def _weights(self, kernel: KernelPart) -> FloatArray:
        """What multiplies the values of a kernel of the short-range energy: ψ_b of its power of the charge, (N,)."""
        held = self.line.features.held
        return np.ones(len(self.structure)) if held is None else np.asarray(held.values[kernel.power])

    def _weight_gradients(self, kernel: KernelPart) -> FloatArray:
        """ψ'_b ∂q/∂r, by which the weights change, (3N, N)."""
        atoms, held = len(self.structure), self.line.features.held
        if held is None:
            return np.zeros((3 * atoms, atoms))
        return np.asarray(self._charge_derivatives * held.slopes[kernel.power])

    @cached_property
    def _charge_derivatives(self) -> FloatArray:
        held = self.line.features.held
        assert held is not None
        return held.charge_derivatives()

    @cached_property
    def _site_response(self) -> Response:
        """Response to the electronegativity of each atom."""
        system = self.line.system
        assert system is not None
        return system.respond(np.eye(len(self.structure)))

    @cached_property
    def _responses(self) -> dict[str, Response]:
        """Responses to the logarithm of each atom's hardness and so on, for kinds that depend on the environment."""
        state = self.line.state
        assert state is not None
        return {
            name: state.respond_sites(logarithmic_directions(self.line.sites, (name,)))
            for name in self.line.site_slopes
        }

    def variance(self, kind: str) -> FloatArray:
        """Posterior variance of each component of a quantity, (n,)."""
        if kind == "forces":
            rows = self._force_rows()
            missed = self.missed_forces(rows, np.arange(len(rows)))
        else:
            mapped = self.linear_map(kind)
            rows, missed = mapped.rows, self.missed(mapped)
        scaled = solve_lower(self.posterior.lower, rows.T)
        factors = self.posterior.factors.get(kind, AS_IT_IS)
        remainder = sum((kernel.remainder * own for kernel, own in missed), np.zeros(len(rows)))
        total = np.einsum("pn,pn->n", scaled, scaled) + factors.missed * remainder
        return np.asarray(factors.scale**2 * total)

    def _force_rows(self) -> FloatArray:
        rows = BLOCKS["forces"](self.line, True)[1]
        assert rows is not None
        return np.asarray(rows)

    def missed(self, mapped: LinearMap) -> Iterator[tuple[KernelPart, FloatArray]]:
        """Prior variance of each component that the sparse features of each kernel miss, (n,)."""
        for kernel, prior in self.priors(mapped):
            yield kernel, np.maximum(prior - explained(kernel, mapped.rows), 0.0)

    def priors(self, mapped: LinearMap) -> Iterator[tuple[KernelPart, FloatArray]]:
        """Prior variance of what each kernel adds to each component, whatever the features, (n,)."""
        for kernel, sites in mapped.sites:
            prior = np.einsum("ni,ij,nj->n", sites, self.kernel(kernel.feature_map), sites, optimize=True)
            yield kernel, kernel.delta**2 * prior

    def missed_forces(
        self, rows: FloatArray, coordinates: IntArray
    ) -> Iterator[tuple[KernelPart, FloatArray]]:
        """The same of forces, whose Jacobian is ``rows`` (3N, P), at some of their components, (c,)."""
        for kernel, prior in self.force_priors(coordinates):
            yield kernel, np.maximum(prior - explained(kernel, rows[coordinates]), 0.0)

    def force_priors(self, coordinates: IntArray) -> Iterator[tuple[KernelPart, FloatArray]]:
        """Prior variance of what each kernel adds to some components of the forces, (c,)."""
        atoms = len(self.structure)
        parameters, line = self.posterior.parameters, self.line
        for name, part in parameters.parts.items():
            if part is parameters.short_range:
                for kernel in part.kernels:
                    slopes, values = self._weights(kernel), self._weight_gradients(kernel)
                    yield kernel, self._force_prior(kernel, slopes, values, coordinates)
                continue
            state = line.state
            assert state is not None
            direct = part is parameters.electronegativity
            response = self._site_response if direct else self._responses[name]
            slopes = state.electronegativity_gradient() if direct else line.site_slopes[name]
            values = state.gradient_response(response).reshape(3 * atoms, atoms)
            if line.site_jacobian is not None:
                change = state.electronegativity_gradient_response(response)
                values = values + line.site_jacobian.positions @ change
            for kind, change in line.site_slope_response(response).items():
                values = values + line.site_jacobians[kind].positions @ change
            for kernel in part.kernels:
                yield kernel, self._force_prior(kernel, slopes, values, coordinates)

    def _force_prior(
        self, kernel: KernelPart, slopes: FloatArray, values: FloatArray, coordinates: IntArray
    ) -> FloatArray:
        """Prior variance of what one kernel adds to Σ_i slopes_i ∂f_i/∂r_k + Σ_i values_ki f_i, (c,)."""
        return kernel.delta**2 * self._gradient_prior(kernel.feature_map, slopes, values, coordinates)


def explained(kernel: KernelPart, rows: FloatArray) -> FloatArray:
    """|j_kernel|² of each row: the prior variance that the sparse features carry, (n,)."""
    own = rows[:, kernel.columns]
    return np.asarray(np.einsum("np,np->n", own, own))


def with_uncertainty(
    prediction: Prediction,
    posterior: Posterior,
    structure: Structure,
    properties: Collection[str],
    baseline: Baseline | None = None,
) -> Prediction:
    """A prediction with its standard deviations filled in.

    Parameters
    ----------
    prediction : Prediction
    posterior : Posterior
    structure : Structure
        The validated structure that was predicted.
    properties : collection of str
        ``forces`` among them adds those of the forces, which cost most.
    baseline : Baseline, optional
        What the model was fitted on top of; it has no uncertainty of its own.

    Returns
    -------
    Prediction
        With ``energy_std`` (eV), ``forces_std`` (N, 3) (eV/Å), ``charges_std`` (N,) (e) and ``dipole_std`` (3,)
        (e·Å); ``None`` where the quantity was not asked for or is not defined.
    """
    known = posterior.quantities
    wanted = [kind for kind in known if kind == "energy" or (kind == "forces" and kind in properties)]
    wanted += [
        kind for kind in ("charges", "dipole") if kind in known and getattr(prediction, kind) is not None
    ]
    if not wanted:
        return prediction
    view = posterior.view(structure, forces="forces" in wanted, baseline=baseline)
    std = {kind: np.sqrt(view.variance(kind)) for kind in wanted if kind != "energy"}
    if "energy" in wanted:
        open_std = prediction.undetermined.get("energy")
        std["energy"] = np.sqrt([posterior.energy_variance(view, open_std)])
    return replace(
        prediction,
        energy_std=float(std["energy"][0]) if "energy" in std else None,
        forces_std=std["forces"].reshape(-1, 3) if "forces" in std else None,
        charges_std=std.get("charges"),
        dipole_std=std.get("dipole"),
    )


def require_posterior(posterior: Posterior | None, what: str = "uncertainties need") -> Posterior:
    """The posterior, or an error that says how to get one.

    Parameters
    ----------
    posterior : Posterior or None
    what : str
        Who needs it, for the message.

    Raises
    ------
    UnsupportedError
    """
    if posterior is None:
        raise UnsupportedError(
            f"{what} the posterior of the fit, and this model was loaded from a file that does not hold it; "
            "save it with model.save(path, posterior=True) after fitting"
        )
    return posterior


__all__ = [
    "AS_IT_IS",
    "KINDS",
    "Factors",
    "LinearMap",
    "Posterior",
    "Uncertain",
    "explained",
    "require_posterior",
    "with_uncertainty",
]
