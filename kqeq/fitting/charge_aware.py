"""How a short-range energy depends on charges that are held: the second stage of a fit.

Electronegativities and site parameters come from the ordinary fit and are held.  Then E_sr = Σ_b Σ_i ψ_b(q_i) δ Φ_i w_b
(:mod:`kqeq.kernels.charge_kernel`) and all that follows from it is linear in w, with known charges and derivatives
of charges:

    ∂E/∂w_bm    = Σ_i ψ_b Φ_im                    ∂(∂E/∂r)/∂w_bm = Σ_i ψ_b ∂Φ_im/∂r + Σ_i ψ'_b Φ_im ∂q_i/∂r
    ∂μ/∂w_bm    = Σ_i ψ'_b Φ_im ∂μ/∂χ_i           ∂α/∂w_bm = −Σ_i ψ''_b Φ_im (∂q_i/∂field)(∂q_i/∂field)ᵀ

with ∂q_i/∂r = ∂²E_el/∂r∂φ_i, φ the potentials at the charges (for electronegativities the same as χ), one solve in closed
form.

A fit knows this as one entry of its parameters (:attr:`kqeq.fitting.parameters.Parameters.dependence`): frames, rows,
sums, posterior and files are those of every other fit.

Dimensions: N atoms, n the order of the charge kernel, p kernel features; (n + 1) p features in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from kqeq.baselines import Baseline, BaselineResult
from kqeq.charges.base import Response
from kqeq.charges.parameters import logarithmic_gradient_response
from kqeq.fitting.rows.voigt import upper_triangle
from kqeq.frames.structures import Structure
from kqeq.kernels import sums
from kqeq.kernels.charge_kernel import ChargeKernel
from kqeq.kernels.feature_map import FeatureMap, evaluate_environments
from kqeq.potential.charged import Charged
from kqeq.potential.on_baseline import extras_for, sees_baseline
from kqeq.potential.potential import Potential, SiteModel
from kqeq.potential.prediction import Prediction
from kqeq.typing import FloatArray

KINDS = ("energy", "forces", "stress", "dipole", "polarizability")
"""Labels that the short-range energy acts on; partition charges are not among them."""


@dataclass(frozen=True, eq=False)
class ChargeDependence:
    """A short-range energy sees the charges of a potential, which are held.

    Attributes
    ----------
    potential : Potential
        With the charges.  Its own short-range energy plays no part, and its baseline is not there: calculators may not
        travel to other processes.
    kernel : ChargeKernel
    """

    potential: Potential
    kernel: ChargeKernel

    @classmethod
    def on(cls, potential: Potential, kernel: ChargeKernel) -> ChargeDependence:
        """On the charges of a potential, whatever else it has."""
        bare = replace(potential, charge_kernel=None, charge_powers=(), short_range=None, baseline=None)
        return cls(bare, kernel)

    @property
    def powers(self) -> int:
        """Number of powers of the charge, n + 1."""
        return int(self.kernel.order) + 1

    def at(
        self,
        structure: Structure,
        feature_maps: Sequence[FeatureMap],
        *,
        derivatives: bool,
        base: BaselineResult | None = None,
    ) -> HeldCharges:
        """The charges of one structure; see :class:`HeldCharges`."""
        return HeldCharges(self, structure, feature_maps, derivatives=derivatives, base=base)

    def of_baseline(
        self, structure: Structure, baseline: Baseline | None, *, forces: bool
    ) -> BaselineResult | None:
        """The baseline at a structure, where its charges are seen as well."""
        if baseline is None or not sees_baseline(baseline, True):
            return None
        kinds = ("forces",) if forces else ()
        return baseline.evaluate(structure, extras_for(structure, kinds, baseline.capabilities, True))

    def with_energy(self, powers: Sequence[SiteModel], offsets: Mapping[int, float]) -> Potential:
        """The potential with a short-range energy, given by the expansion of each power of the charge."""
        return replace(
            self.potential,
            energy_offsets=offsets,
            short_range=powers[0],
            charge_kernel=self.kernel,
            charge_powers=tuple(powers[1:]),
        )


class HeldCharges:
    """One structure at charges that are held, and how these change with positions, strain and field.

    Parameters
    ----------
    dependence : ChargeDependence
    structure : Structure
        Without the charge that the baseline holds.
    feature_maps : sequence of FeatureMap
        Those of the short-range energy.
    derivatives : bool
        Whether forces or stress will be asked for.
    base : BaselineResult, optional
        The baseline whose charges the short-range energy sees as well.

    Attributes
    ----------
    values, slopes, curvatures : (n + 1, N) arrays
        ψ_b, ψ'_b and ψ''_b at the charges of the atoms.
    """

    def __init__(
        self,
        dependence: ChargeDependence,
        structure: Structure,
        feature_maps: Sequence[FeatureMap],
        *,
        derivatives: bool,
        base: BaselineResult | None = None,
    ) -> None:
        self.potential = dependence.potential
        self.base = base
        self.structure = structure
        self.derivatives = derivatives
        self.feature_maps = feature_maps
        every = dict.fromkeys((*self.potential.feature_maps, *feature_maps))
        self.states, self.similarities = evaluate_environments(
            list(every), structure, derivatives=derivatives
        )
        found = self.potential.charged(structure, self.similarities)
        self.charged: Charged | None = None if found is None else found[0]
        charges = np.zeros(len(structure))
        if self.charged is not None:
            charges = charges + self.charged.state.charges
        if base is not None and base.charges is not None:
            charges = charges + base.charges
        self.values, self.slopes, self.curvatures = (
            dependence.kernel.features(charges, derivative) for derivative in range(3)
        )

    @cached_property
    def response(self) -> Response:
        """Response to the potential at each atom."""
        assert self.charged is not None
        return self.charged.system.respond_potential(np.eye(len(self.structure)))

    @cached_property
    def features(self) -> FloatArray:
        """Φ of all kernels of the short-range energy, (N, p)."""
        found = sums.features_many(self.feature_maps, [self.states], [self.structure.numbers])
        return np.asarray(found[0])

    def charge_derivatives(self, *, strain: bool = False) -> FloatArray:
        """∂q_i/∂r_k as (3N, N), or ∂q_i/∂ε as (9, N)."""
        result = np.zeros((9 if strain else 3 * len(self.structure), len(self.structure)))
        if self.base is not None:
            known = self.base.charge_strain if strain else self.base.charge_gradient
            assert known is not None
            result = result + known.reshape(result.shape)
        if self.charged is None:
            return result
        state, response = self.charged.state, self.response
        change = state.strain_response(response) if strain else state.gradient_response(response)
        result = result + change.reshape(result.shape)
        chi = self.potential.electronegativity
        assert chi is not None
        weights = {
            "electronegativity": state.electronegativity_gradient_response(response)
        } | logarithmic_gradient_response(state, self.charged.sites, self.charged.kinds, response)
        for name, model in {"electronegativity": chi, **self.potential.sites}.items():
            jacobian = sums.site_jacobian(model.terms, self.similarities, self.states)
            result = result + (jacobian.strain if strain else jacobian.positions) @ weights[name]
        return np.asarray(result)

    def energy_features(self) -> FloatArray:
        """Derivatives of the energy by the weights of all features, ((n + 1) p,)."""
        return np.asarray((self.values @ self.features).ravel())

    def gradient_features(self, *, strain: bool = False) -> FloatArray:
        """Those of ∂E/∂r, (3N, (n + 1) p), or of ∂E/∂ε, (9, (n + 1) p)."""
        moved = self.charge_derivatives(strain=strain)
        blocks = []
        for value, slope in zip(self.values, self.slopes, strict=True):
            fixed = sums.feature_gradients(self.feature_maps, self.states, self.structure.numbers, value)
            blocks.append((fixed.strain if strain else fixed.positions) + (moved * slope) @ self.features)
        return np.concatenate(blocks, axis=1)

    def dipole_features(self) -> FloatArray:
        """Those of the dipole, (3, (n + 1) p)."""
        return -self._by_atoms(self.charge_field, self.slopes)

    def polarizability_features(self) -> FloatArray:
        """Those of the polarizability, (6, (n + 1) p); rows as in :func:`~kqeq.fitting.rows.voigt.upper_triangle`."""
        moved = self.charge_field
        squares = upper_triangle(np.einsum("ai,bi->abi", moved, moved))
        block = -self._by_atoms(squares, self.curvatures)
        if self.base is not None:
            assert self.base.charge_curvature is not None
            block -= self._by_atoms(upper_triangle(self.base.charge_curvature), self.slopes)
        return block

    @cached_property
    def charge_field(self) -> FloatArray:
        """∂q_i/∂F, (3, N)."""
        result = np.zeros((3, len(self.structure)))
        if self.base is not None:
            assert self.base.charge_field is not None
            result = result + self.base.charge_field
        if self.charged is not None:
            assert self.response.dipole is not None
            result = result - self.response.dipole  # ∂μ/∂φ_i = −∂q_i/∂F
        return result

    def _by_atoms(self, block: FloatArray, factors: FloatArray) -> FloatArray:
        """Σ_i block_ri factors_bi Φ_im, (rows, (n + 1) p)."""
        return np.concatenate([(block * own) @ self.features for own in factors], axis=1)

    def known(self, kind: str) -> FloatArray:
        """What the charges alone say about an energy (1,), a dipole (3,) or a polarizability (6,)."""
        if kind == "energy":
            return np.array([self._bare.energy_electrostatic])
        found = getattr(self._bare, kind)
        if found is None:  # nothing has charges but the baseline
            found = np.zeros({"dipole": 3, "polarizability": (3, 3)}[kind])
        return np.asarray(upper_triangle(found) if kind == "polarizability" else found)

    def known_gradient(self, *, strain: bool = False) -> FloatArray:
        """What they say about ∂E/∂r, (3N,), or about the symmetric part of ∂E/∂ε, (9,)."""
        if strain:
            assert self._bare.stress is not None
            return self._bare.stress.reshape(9) * self.structure.volume
        assert self._bare.forces is not None
        return -self._bare.forces.reshape(-1)

    @cached_property
    def _bare(self) -> Prediction:
        """The prediction without a short-range energy."""
        kinds = KINDS if self.derivatives else tuple(k for k in KINDS if k not in ("forces", "stress"))
        system = None if self.charged is None else self.charged.system
        return self.potential.finish(self.structure, kinds, self.states, self.similarities, system)


__all__ = ["KINDS", "ChargeDependence", "HeldCharges"]
