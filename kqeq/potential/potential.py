"""A fitted potential: frozen parameters in, predictions out.

    E = Σ e0(Z_i) + E_sr(r) + E_el(χ(r), Q − Q_baseline, field) + E_baseline(r, Q_baseline, field)

This module knows nothing of fitting and, but for names, of ASE.

Dimensions: N atoms, F descriptor features.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from kqeq.backend import CPU, Device, asarray_like, blas, namespace, to_float, to_numpy, zeros
from kqeq.baselines import Baseline, remaining
from kqeq.charges.base import ChargeModel, ChargeSystem, SiteParameters
from kqeq.charges.parameters import multiply_sites
from kqeq.descriptors import evaluate_states, longest_cutoff
from kqeq.descriptors.base import Descriptor
from kqeq.errors import InputError, UndeterminedWarning, UnsupportedError
from kqeq.frames.neighbours import Pairs
from kqeq.frames.structures import Structure
from kqeq.kernels import sums
from kqeq.kernels.charge_kernel import ChargeCoupling, ChargeKernel
from kqeq.kernels.feature_map import FeatureMap, evaluate_environments
from kqeq.kernels.sums import Similarities, States
from kqeq.potential.charged import Charged
from kqeq.potential.determination import Determination
from kqeq.potential.on_baseline import OnBaseline
from kqeq.potential.prediction import PROPERTIES, Prediction, check_properties
from kqeq.typing import Array, FloatArray, IntArray

_KEPT_SITES = 64
"""Compositions whose element parameters are kept."""

BATCH_ATOMS = 512
"""Atoms whose descriptors are kept at once when many structures are predicted."""


@dataclass(frozen=True, eq=False)
class SiteModel:
    """One scalar per atom as a function of its environment: offset of the element plus kernel expansions.

    Attributes
    ----------
    terms : tuple of (FeatureMap, dict of int to (M,) array)
        At least one kernel: its features, and its coefficients by element, prior scale included.
    offsets : dict of int to float
        Value of each element without the kernels.
    """

    terms: tuple[tuple[FeatureMap, Mapping[int, FloatArray]], ...]
    offsets: Mapping[int, float]

    @property
    def feature_maps(self) -> tuple[FeatureMap, ...]:
        """Those of the kernels, in their order."""
        return tuple(feature_map for feature_map, _ in self.terms)

    def evaluate(self, similarities: Similarities, numbers: IntArray) -> Array:
        """Values of all atoms, (N,)."""
        values = sums.expand(self.terms, similarities, len(numbers))
        return asarray_like(self._table[numbers], values) + values

    @cached_property
    def _table(self) -> FloatArray:
        """Offsets by atomic number."""
        table = np.zeros(max(self.offsets) + 1)
        table[list(self.offsets)] = list(self.offsets.values())
        return table

    def descriptor_gradients(
        self, similarities: Similarities, states: States, weights: Array | None = None
    ) -> dict[Descriptor, Array]:
        """weights_i ∂f_i/∂p_i for each descriptor, (N, F) each."""
        return sums.descriptor_gradients(self.terms, similarities, states, weights)


@dataclass(frozen=True, eq=False)
class Potential:
    """All that prediction needs.

    Attributes
    ----------
    species : tuple of int
        Elements the model was fitted on.
    energy_offsets : dict of int to float
        e0 by element, eV.
    electronegativity, charges :
        Kernel model of χ and the charge model; both or neither.  The charge model alone knows the values of site
        parameters by element; :meth:`bind` knows those in the environment.
    short_range : SiteModel, optional
        Offsets zero: they are in ``energy_offsets``.
    baseline : Baseline, optional
    training_charges : tuple of float
        Distinct total charges of the training frames.
    has_energy : bool
        Whether energies or forces were among the fitted labels.
    sites : dict of str to SiteModel
        By kind of site parameter, ln θ_i/θ(Z_i): its dependence on the environment.
    charge_kernel : ChargeKernel, optional
        How the short-range energy depends on charges.
    charge_powers : tuple of SiteModel
        Then the expansions f_b for b = 1 and up; ``short_range`` is that for b = 0.
    determination : Determination, optional
        What the training data leave open; files of version 0.1 do not hold it.
    """

    species: tuple[int, ...]
    energy_offsets: Mapping[int, float]
    electronegativity: SiteModel | None
    charges: ChargeModel | None
    short_range: SiteModel | None
    baseline: Baseline | None
    training_charges: tuple[float, ...]
    has_energy: bool
    sites: Mapping[str, SiteModel] = field(default_factory=dict)
    charge_kernel: ChargeKernel | None = None
    charge_powers: tuple[SiteModel, ...] = ()
    determination: Determination | None = None
    _plain_sites: dict[bytes, SiteParameters] = field(default_factory=dict, repr=False, compare=False)

    @property
    def feature_maps(self) -> list[FeatureMap]:
        """The feature maps of all kernel models, each once."""
        parts = (self.electronegativity, self.short_range, *self.sites.values())
        return list(dict.fromkeys(m for part in parts if part is not None for m in part.feature_maps))

    @property
    def descriptors(self) -> list[Descriptor]:
        """The descriptors of all kernel models."""
        return [feature_map.descriptor for feature_map in self.feature_maps]

    @property
    def cutoff(self) -> float:
        """How far a neighbour list for :meth:`predict` has to reach, Å."""
        return longest_cutoff(self.descriptors)

    def check(self, structure: Structure, where: object = "the structure") -> None:
        """Refuse what the model cannot predict, before anything is computed.

        Raises
        ------
        InputError
            For elements that the training frames did not have; for a field acting on a model without charges.
        UnsupportedError
            For structures that the charge model cannot treat.
        """
        unknown = [z for z in structure.species if z not in self.species]
        if unknown:
            raise InputError(
                f"{where} contains {', '.join(chemical_symbols[z] for z in unknown)}; the model was fitted on "
                f"{', '.join(chemical_symbols[z] for z in self.species)} only. Add frames with the missing elements "
                "to the training set and fit again"
            )
        if self.baseline is not None:
            self.baseline.check(structure)
        if self.charges is not None:
            self.charges.check(remaining(structure, self.baseline))
        elif structure.external_field.any() and not self._baseline_feels_fields:
            raise InputError(
                f"{where} is in an external field, but the model has no charges for the field to act on; "
                "fit with charges=kqeq.QEq(), or remove the field"
            )

    @property
    def _baseline_feels_fields(self) -> bool:
        return self.baseline is not None and self.baseline.capabilities.field

    @property
    def has_charges(self) -> bool:
        """Whether a charge model or the baseline gives charges."""
        return self.charges is not None or (
            self.baseline is not None and self.baseline.capabilities.holds_charge
        )

    def in_session(self) -> Potential:
        """The same for structures that follow each other: the baseline may start from where it ended."""
        return self if self.baseline is None else replace(self, baseline=self.baseline.session())

    def site_parameters(self, numbers: IntArray, similarities: Similarities) -> SiteParameters | None:
        """Hardness and the like of every atom in its environment; ``None`` without charges.

        Parameters
        ----------
        numbers : (N,) array
        similarities : dict
            For (at least) the feature maps of ``sites``.
        """
        if self.charges is None:
            return None
        if not self.sites:
            # element parameters of a fitted model do not change
            key = numbers.tobytes()
            if key not in self._plain_sites:
                while len(self._plain_sites) >= _KEPT_SITES:
                    self._plain_sites.pop(next(iter(self._plain_sites)), None)
                self._plain_sites[key] = self.charges.site_parameters(numbers)
            return self._plain_sites[key]
        logarithms = {kind: model.evaluate(similarities, numbers) for kind, model in self.sites.items()}
        return multiply_sites(self.charges.site_parameters(numbers), logarithms)

    def bind(
        self,
        structure: Structure,
        similarities: Similarities,
        *,
        device: Device = CPU,
    ) -> ChargeSystem | None:
        """The charge problem of a geometry, factored; ``None`` without charges."""
        if self.charges is None:
            return None
        sites = self.site_parameters(structure.numbers, similarities)
        return self.charges.bind(remaining(structure, self.baseline), sites, device=device)

    def charged(
        self,
        structure: Structure,
        similarities: Similarities,
        system: ChargeSystem | None = None,
        *,
        device: Device = CPU,
    ) -> tuple[Charged, Array] | None:
        """Charges of the charge model alone, and electronegativities (N,); ``None`` without charges.

        ``system`` is what :meth:`bind` gave for this geometry, where a caller has kept it.
        """
        if self.electronegativity is None or self.charges is None:
            return None
        numbers = structure.numbers
        chi = self.electronegativity.evaluate(similarities, numbers)
        sites = self.site_parameters(numbers, similarities)
        assert sites is not None
        sites = sites.on(device.like)
        own = remaining(structure, self.baseline)
        system = self.charges.bind(own, sites, device=device) if system is None else system
        state = system.solve(chi, own.external_field, own.total_charge)
        return Charged(system, state, sites, tuple(self.sites)), chi

    @property
    def holds_charge(self) -> bool:
        """Whether the baseline is evaluated at the total charge, and the charge model at zero."""
        return self.baseline is not None and self.baseline.capabilities.holds_charge

    def undetermined(self, numbers: IntArray, charged: Charged | None, *, fukui: bool) -> dict[str, float]:
        """For :attr:`Prediction.undetermined`.

        Parameters
        ----------
        numbers : (N,) array
        charged : Charged, optional
        fukui : bool
            Whether the chemical potential is looked at, which takes one response.
        """
        known = self.determination
        if known is None:
            return {}
        found: dict[str, float | None] = {}
        if self.has_energy:
            charges = None if charged is None else to_numpy(charged.state.electronegativity_gradient())
            found["energy"] = known.undetermined(known.row(numbers, charges, energy=True))
        if charged is not None and fukui and not self.holds_charge:
            row = known.row(numbers, to_numpy(charged.fukui), energy=False)
            found["chemical_potential"] = known.undetermined(row)
        return {name: std for name, std in found.items() if std is not None}

    def why_undetermined(self, structure: Structure, prediction: Prediction) -> str | None:
        """What of a prediction the training data do not determine, with the standard deviation; ``None`` if nothing.

        Of models without energies, that is a total charge that no frame had.
        """
        stds = prediction.undetermined
        if self.has_energy and self.determination is not None and "energy" not in stds:
            return None
        charge = structure.total_charge
        number = stds.get("energy" if self.has_energy else "chemical_potential")
        size = "" if number is None else f" (standard deviation {number:.2g} eV)"
        only = self.training_charges[0]
        one_charge = self.charges is not None and len(self.training_charges) == 1 and not self.holds_charge
        if one_charge and abs(charge - only) > 1e-6:
            return (
                f"every training frame had total charge {only:g} e: the uniform part of the electronegativities, hence "
                f"the chemical potential and the energy difference to charge {charge:g} e, is set by the prior, not by "
                f"data{size}. Add frames of another charge state to the training set"
            )
        if "energy" not in stds:
            return None
        name = Atoms(structure.numbers).get_chemical_formula()
        return (
            f"the energy of {name} at charge {charge:g} e relative to other compositions and charges is set by the "
            f"prior, not by data{size}: the training frames leave open how energies divide among the elements"
            f"{' and the charge' if self.charges is not None else ''}. Differences at this composition and charge are "
            "not affected. Add frames of other compositions (and charges) to the training set, or give e0"
        )

    def warn_if_undetermined(
        self, structures: Sequence[Structure], predictions: Sequence[Prediction], *, stacklevel: int = 4
    ) -> None:
        """Warn, once for all, where energies are predicted that the training data do not determine."""
        found = {}
        for i, (structure, prediction) in enumerate(zip(structures, predictions, strict=True)):
            why = self.why_undetermined(structure, prediction)
            if why is not None:
                found[i] = prediction.undetermined.get("energy", 0.0), why
        if not found:
            return
        worst, (_, text) = max(found.items(), key=lambda item: item[1][0])
        if len(structures) > 1:
            text = f"{text} (structure {worst}; in all {len(found)} of {len(structures)} structures)"
        warnings.warn(text, UndeterminedWarning, stacklevel=stacklevel)

    def predict(
        self,
        structure: Structure,
        properties: Collection[str] = PROPERTIES,
        *,
        pairs: Pairs | None = None,
        device: Device = CPU,
        single: bool = False,
    ) -> Prediction:
        """Predict one validated structure.

        Parameters
        ----------
        structure : Structure
        properties : collection of str
            Subset of :data:`PROPERTIES`; energies are always computed.
        pairs : Pairs, optional
            A neighbour list that reaches ``cutoff``, for example one that is reused along a trajectory.
        device : Device
            Where to compute; what is returned is on the host.
        single : bool
            Whether the products behind forces of kernels are done in single precision.
        """
        derivatives = _needs_derivatives(structure, properties)
        with in_threads_for(structure):
            states, near = evaluate_environments(
                self.feature_maps,
                structure,
                derivatives=derivatives,
                pairs=pairs,
                device=device,
                single=single,
            )
            return self.finish(structure, properties, states, near, device=device)

    def predict_many(
        self,
        structures: Sequence[Structure],
        properties: Collection[str] = PROPERTIES,
        *,
        device: Device = CPU,
        single: bool = False,
    ) -> Iterator[Prediction]:
        """Predict structures one after another; neighbours in the list that share their elements are batched."""
        for batch in _batches(structures):
            states = [
                evaluate_states(
                    self.descriptors, s, derivatives=_needs_derivatives(s, properties), device=device
                )
                for s in batch
            ]
            numbers = [s.numbers for s in batch]
            near = {
                feature_map: feature_map.similarities_many(
                    [own[feature_map.descriptor] for own in states], numbers, single=single
                )
                for feature_map in self.feature_maps
            }
            for i, structure in enumerate(batch):
                own = {feature_map: lists[i] for feature_map, lists in near.items()}
                with in_threads_for(structure):
                    prediction = self.finish(structure, properties, states[i], own, device=device)
                yield prediction

    def finish(
        self,
        structure: Structure,
        properties: Collection[str],
        states: States,
        similarities: Similarities,
        system: ChargeSystem | None = None,
        *,
        device: Device = CPU,
    ) -> Prediction:
        """From descriptors and their dot products with the representatives to everything else.

        ``system`` is the charge model bound to this geometry (:meth:`bind`), where a caller has kept it.
        """
        derivatives = _needs_derivatives(structure, properties)
        numbers = structure.numbers

        present = structure.composition
        energy_offsets = float(
            sum(n * self.energy_offsets[z] for z, n in zip(present.species, present.counts, strict=True))
        )
        gradients: dict[Descriptor, Array] = {}
        positions = zeros((len(structure), 3), device.like)
        strain = zeros((3, 3), device.like)

        def pull(model: SiteModel, weights: Array | None = None) -> None:
            """Add weights_i ∂f_i/∂p_i to the gradients of the model's descriptors."""
            for descriptor, own in model.descriptor_gradients(similarities, states, weights).items():
                gradients[descriptor] = gradients.get(descriptor, 0.0) + own

        found = self.charged(structure, similarities, system, device=device)
        charged, chi = (None, None) if found is None else found
        base = OnBaseline.at(
            self.baseline, structure, properties, sees_charges=self.charge_kernel is not None
        )
        energy_short_range = 0.0
        if self.short_range is not None:
            powers = (self.short_range, *self.charge_powers)
            expansions = [model.evaluate(similarities, numbers) for model in powers]
            weights = [None]
            energy_short_range = to_float(namespace(device.like).sum(expansions[0]))
            if self.charge_kernel is not None:
                own_charges = None if charged is None else charged.state.charges
                seen = asarray_like(base.seen(own_charges), device.like)
                coupling = ChargeCoupling.at(self.charge_kernel, seen, expansions)
                base = base.couple(coupling)
                charged = None if charged is None else replace(charged, coupling=coupling)
                energy_short_range = coupling.energy
                weights = [None, *(coupling.weights[b, :] for b in range(1, len(powers)))]
            for model, own in zip(powers, weights, strict=True):
                if derivatives:
                    pull(model, own)
        if charged is not None and derivatives and self.electronegativity is not None:
            pull(self.electronegativity, charged.electronegativity_gradient())
            for kind, slopes in charged.site_gradients().items():
                pull(self.sites[kind], slopes)
            positions += charged.gradient()
            if structure.periodic:
                strain += charged.strain()

        for descriptor, gradient in gradients.items():
            pulled_back = states[descriptor].adjoint(gradient)
            positions += pulled_back.positions
            strain += pulled_back.strain
        positions, strain = to_numpy(positions), to_numpy(strain)

        positions += base.gradient()
        strain += base.strain()

        # each costs a whole solution where no matrix is factored
        responses = charged is not None and (
            charged.system.responses_are_cheap or "polarizability" in properties
        )
        energy_electrostatic = 0.0 if charged is None else charged.state.energy
        prediction = Prediction(
            energy=energy_offsets + energy_short_range + energy_electrostatic + base.energy,
            energy_offsets=energy_offsets,
            energy_short_range=energy_short_range,
            energy_electrostatic=energy_electrostatic,
            energy_baseline=base.energy,
            forces=-positions if "forces" in properties else None,
            stress=_stress(strain, structure) if "stress" in properties else None,
            charges=None if charged is None else to_numpy(charged.state.charges),
            atomic_dipoles=None if charged is None else _on_host(charged.state.atomic_dipoles),
            dipole=None if charged is None else _on_host(charged.dipole),
            polarizability=(
                _on_host(charged.polarizability())
                if charged is not None and "polarizability" in properties
                else None
            ),
            electronegativity=_on_host(chi),
            chemical_potential=None if charged is None else charged.chemical_potential,
            hardness=charged.hardness() if charged is not None and responses else None,
            total_charge=structure.total_charge,
            external_field=structure.external_field,
            undetermined=self.undetermined(numbers, charged, fukui=responses),
        )
        return base.complete(prediction, properties, charged)


def _on_host(values: Array | None) -> FloatArray | None:
    return None if values is None else to_numpy(values)


def in_threads_for(structure: Structure) -> AbstractContextManager[None]:
    """BLAS threads for one structure: one if it is small (see :mod:`kqeq.backend.blas`)."""
    return blas.one_thread() if len(structure) <= BATCH_ATOMS else nullcontext()


def _needs_derivatives(structure: Structure, properties: Collection[str]) -> bool:
    return "forces" in properties or ("stress" in properties and structure.periodic)


def _batches(structures: Sequence[Structure]) -> Iterator[list[Structure]]:
    """Runs of structures with the same elements, at most :data:`BATCH_ATOMS` atoms together."""
    batch: list[Structure] = []
    atoms = 0
    for structure in structures:
        if batch and (structure.species != batch[0].species or atoms + len(structure) > BATCH_ATOMS):
            yield batch
            batch, atoms = [], 0
        batch.append(structure)
        atoms += len(structure)
    if batch:
        yield batch


def _stress(strain: FloatArray, structure: Structure) -> FloatArray | None:
    """Strain derivative to stress; defined for a cell with three periodic directions or a full cell."""
    if not structure.periodic or structure.volume == 0.0:
        return None
    return 0.5 * (strain + strain.T) / structure.volume


def require_energy_model(potential: Potential) -> None:
    """Refuse energies and forces from a model that was fitted on dipoles or charges only.

    Raises
    ------
    UnsupportedError
    """
    if not potential.has_energy:
        raise UnsupportedError(
            "the model was fitted without energies and forces (dipoles or charges only), so it has no meaningful "
            "energies and forces; fit again on frames that carry them"
        )


__all__ = [
    "PROPERTIES",
    "Potential",
    "Prediction",
    "SiteModel",
    "check_properties",
    "in_threads_for",
    "require_energy_model",
]
