"""A fitted potential: frozen parameters in, predictions out.

    E = Σ e0(Z_i) + E_sr(r) + E_el(χ(r), Q − Q_baseline, field) + E_baseline(r, Q_baseline, field)

This module knows nothing of fitting and, but for names, of ASE.

Dimensions: N atoms, F descriptor features.
"""

from __future__ import annotations

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
from kqeq.charges.parameters import logarithmic_gradient_response, multiply_sites
from kqeq.charges.site_values import ELECTRONEGATIVITY
from kqeq.descriptors import evaluate_states, longest_cutoff
from kqeq.descriptors.base import Descriptor
from kqeq.descriptors.conditioned import condition_of, reweighted
from kqeq.errors import InputError, UndeterminedWarning, UnsupportedError, warn
from kqeq.frames.neighbours import Pairs
from kqeq.frames.states import KnownStates, check_known, check_size, state_of
from kqeq.frames.structures import Structure
from kqeq.kernels import sums
from kqeq.kernels.charge_kernel import ChargeCoupling, ChargeKernel
from kqeq.kernels.feature_map import FeatureMap, Similarity, evaluate_environments
from kqeq.kernels.sums import Similarities, States
from kqeq.potential.charged import Charged
from kqeq.potential.determination import Determination
from kqeq.potential.on_baseline import OnBaseline
from kqeq.potential.prediction import PROPERTIES, Prediction, check_properties
from kqeq.typing import Array, FloatArray, IntArray

_TOLD = (
    "a network of the model is told the total charge; take differences of energies between charge states, or fit with "
    "charged=False"
)
"""Why there is no derivative with respect to the total charge."""
_KEPT_SITES = 64
"""Compositions whose element parameters are kept."""

BATCH_ATOMS = 512
"""Atoms whose descriptors are kept at once when many structures are predicted."""

_WINDOW_ATOMS = 16 * BATCH_ATOMS
"""Atoms among which structures of the same elements are looked for, to be predicted together."""


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

    def depending_on(self, state: str) -> SiteModel | None:
        """The kernels that depend on a state (``"spin"``, ``"charge"``), without offsets; ``None`` if there are none."""
        terms = tuple(term for term in self.terms if state_of(condition_of(term[0].descriptor)) == state)
        return SiteModel(terms, dict.fromkeys(self.offsets, 0.0)) if terms else None

    def evaluate(self, similarities: Similarities, numbers: IntArray, *, gradients: bool = False) -> Array:
        """Values of all atoms, (N,); ``gradients`` says that :meth:`descriptor_gradients` follows."""
        values = sums.expand(self.terms, similarities, len(numbers), gradients=gradients)
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
    known_states : dict of str to dict of int to tuple of float
        By state (``"spin"``, ``"charge"``) that kernels depend on and by element: in which states of their fragment the
        training frames had atoms of it.
    charged_sizes : tuple of int
        Where kernels depend on the charge: numbers of atoms of the fragments of training frames that carry one.
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
    known_states: KnownStates = field(default_factory=dict)
    charged_sizes: tuple[int, ...] = ()
    _plain_sites: dict[bytes, SiteParameters] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        """The states that kernels depend on."""
        found = (state_of(condition_of(m.descriptor)) for m in self.feature_maps)
        return tuple(dict.fromkeys(state for state in found if state is not None))

    @staticmethod
    def reweighted(similarities: Similarities, states: States) -> dict[FeatureMap, list[Similarity]]:
        """Dot products of the same geometry with the weights of other states."""
        return {
            m: [
                replace(own, weights=namespace(given).take(given, own.index))
                if (given := getattr(states[m.descriptor], "weights", None)) is not None
                else own
                for own in found
            ]
            for m, found in similarities.items()
        }

    def _charge_slope(
        self, structure: Structure, states: States, similarities: Similarities, charged: Charged
    ) -> float | None:
        """∂E/∂Q by what kernels depend on the charge explicitly; ``None`` where it is not one charge."""
        if structure.fragments is not None or self.charge_kernel is not None:
            return None
        moved = self.reweighted(similarities, reweighted(dict(states), structure, derivative=1))
        xp, total = namespace(charged.state.charges), 0.0
        weights = {"energy": 1.0, "chi": charged.electronegativity_gradient(), **charged.site_gradients()}
        models = {"energy": self.short_range, "chi": self.electronegativity, **self.sites}
        for name, weight in weights.items():
            model = models[name]
            own = None if model is None else model.depending_on("charge")
            if own is not None:
                total += to_float(xp.sum(weight * own.evaluate(moved, structure.numbers)))
        return total

    @cached_property
    def feature_maps(self) -> tuple[FeatureMap, ...]:
        """The feature maps of all kernel models, each once."""
        parts = (self.electronegativity, self.short_range, *self.sites.values())
        return tuple(dict.fromkeys(m for part in parts if part is not None for m in part.feature_maps))

    @property
    def descriptors(self) -> list[Descriptor]:
        """The descriptors of all kernel models."""
        return [feature_map.descriptor for feature_map in self.feature_maps]

    @property
    def knows_charge(self) -> bool:
        """Whether a descriptor depends on the total charge."""
        return any(descriptor.knows_charge for descriptor in self.descriptors)

    @property
    def cutoff(self) -> float:
        """How far a neighbour list for :meth:`predict` has to reach, Å."""
        return longest_cutoff(self.descriptors)

    def check(self, structure: Structure, where: object = "the structure") -> None:
        """Refuse what the model cannot predict, before anything is computed.

        Raises
        ------
        InputError
            For elements that the training frames did not have; for a field or external charges acting on a model without
            charges.
        UnsupportedError
            For structures that the charge model cannot treat, and for external charges that the baseline does not feel.
        """
        unknown = [z for z in structure.species if z not in self.species]
        if unknown:
            raise InputError(
                f"{where} contains {', '.join(chemical_symbols[z] for z in unknown)}; the model was fitted on "
                f"{', '.join(chemical_symbols[z] for z in self.species)} only. Add frames with the missing elements "
                "to the training set and fit again"
            )
        for state, known in self.known_states.items():
            check_known(structure, state, known, where)
        if self.charged_sizes:
            check_size(structure, self.charged_sizes, where)
        if self.baseline is not None:
            self.baseline.check(structure)
        if self.charges is not None:
            self.charges.check(remaining(structure, self.baseline))
        elif structure.external_field.any() and not self._baseline_feels_fields:
            raise InputError(
                f"{where} is in an external field, but the model has no charges for the field to act on; "
                "fit with charges=kqeq.QEq(), or remove the field"
            )
        if structure.external_charges is not None:
            self._check_external_charges(structure, where)

    def _check_external_charges(self, structure: Structure, where: object) -> None:
        if self.charges is None:
            raise InputError(
                f"{where} is among external charges, but the model has no charges for them to act on; "
                "fit with charges=kqeq.QEq(), or leave the external charges away"
            )
        knows = None if self.baseline is None else self.baseline.capabilities
        if knows is not None and (knows.charges or knows.holds_charge):
            assert self.baseline is not None
            raise UnsupportedError(
                f"{where} is among external charges, and the baseline {self.baseline.name} has charges of its own "
                "that do not feel them: energy and forces would miss a part; use a model without this baseline"
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

    @property
    def learns_electronegativity(self) -> bool:
        """Whether the kernel model behind the charges is one of electronegativities (and not of charges)."""
        return self.charges is not None and self.charges.quantity == ELECTRONEGATIVITY

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
        gradients: bool = False,
    ) -> tuple[Charged, Array] | None:
        """Charges of the charge model alone, and electronegativities (N,); ``None`` without charges.

        ``system`` is what :meth:`bind` gave for this geometry, where a caller has kept it; ``gradients`` says that
        derivatives follow.
        """
        if self.electronegativity is None or self.charges is None:
            return None
        numbers = structure.numbers
        chi = self.electronegativity.evaluate(similarities, numbers, gradients=gradients)
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
            slopes = charged.state.electronegativity_gradient_response(charged.total_charge_response)
            row = known.row(numbers, to_numpy(slopes[:, 0]), energy=False)
            found["chemical_potential"] = known.undetermined(row)
        return {name: std for name, std in found.items() if std is not None}

    def why_undetermined(self, structure: Structure, prediction: Prediction) -> str | None:
        """What of a prediction the training data do not determine, with the standard deviation; ``None`` if nothing.

        Of models without energies, that is a total charge that no frame had.
        """
        stds = prediction.undetermined
        if self._is_other_charge_state(structure):
            known = ", ".join(f"{known:g}" for known in self.training_charges)
            return (
                f"no training frame had total charge {structure.total_charge:g} e (they had {known}), and the charges of "
                f"this model are functions of the environment: nothing in it says what the change of charge costs. Use "
                "charges=kqeq.QEq() or kqeq.ACKS2() and frames of that charge state"
            )
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

    def _is_other_charge_state(self, structure: Structure) -> bool:
        """Whether charges that are functions of the environment are asked for a total charge that no frame had."""
        if self.charges is None or self.learns_electronegativity or self.holds_charge or not self.has_energy:
            return False
        return all(abs(structure.total_charge - known) > 1e-6 for known in self.training_charges)

    def warn_if_undetermined(
        self, structures: Sequence[Structure], predictions: Sequence[Prediction]
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
        warn(text, UndeterminedWarning)

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
            states, similarities = evaluate_environments(
                self.feature_maps,
                structure,
                derivatives=derivatives,
                pairs=pairs,
                device=device,
                single=single,
            )
            return self.finish(structure, properties, states, similarities, device=device)

    def predict_many(
        self,
        structures: Sequence[Structure],
        properties: Collection[str] = PROPERTIES,
        *,
        device: Device = CPU,
        single: bool = False,
    ) -> Iterator[Prediction]:
        """Predict structures in their order; those of a stretch of the list that share their elements are batched."""
        for window in _stretches(structures, _WINDOW_ATOMS):
            found: dict[int, Prediction] = {}
            by_elements: dict[tuple[int, ...], list[int]] = {}
            for i in window:
                by_elements.setdefault(structures[i].species, []).append(i)
            for alike in by_elements.values():
                same = [structures[i] for i in alike]
                for batch in _stretches(same, BATCH_ATOMS):
                    parts = self._predict_alike([same[k] for k in batch], properties, device, single)
                    found.update(zip([alike[k] for k in batch], parts, strict=True))
            yield from (found[i] for i in window)

    def _predict_alike(
        self, batch: Sequence[Structure], properties: Collection[str], device: Device, single: bool
    ) -> Iterator[Prediction]:
        """Predict structures of the same elements: products with representatives of all of them at once."""
        states = [
            evaluate_states(self.descriptors, s, derivatives=_needs_derivatives(s, properties), device=device)
            for s in batch
        ]
        numbers = [s.numbers for s in batch]
        similarities = {
            feature_map: feature_map.similarities_many(
                [own[feature_map.descriptor] for own in states], numbers, single=single
            )
            for feature_map in self.feature_maps
        }
        for i, structure in enumerate(batch):
            own = {feature_map: lists[i] for feature_map, lists in similarities.items()}
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
        found = self._evaluate(structure, properties, similarities, system, device)
        forces = stress = None
        if _needs_derivatives(structure, properties):
            positions, strain = self._differentiate(structure, found, states, similarities, device)
            forces = -positions if "forces" in properties else None
            stress = _stress(strain, structure) if "stress" in properties else None
        charged, base = found.charged, found.base
        # each costs a whole solution where no matrix is factored
        responses = charged is not None and (
            charged.system.responses_are_cheap or "polarizability" in properties
        )
        told = charged is not None and self.knows_charge
        offsets = self._offsets(structure)
        electrostatic = 0.0 if charged is None else charged.state.energy
        potential_of_charge = None if charged is None else charged.chemical_potential
        hardness = charged.hardness() if charged is not None and responses else None
        if charged is not None and "charge" in self.conditions:
            slope = self._charge_slope(structure, states, similarities, charged)
            potential_of_charge = None if slope is None else charged.chemical_potential + slope
            hardness = None
        if told:
            potential_of_charge = hardness = None
        prediction = Prediction(
            energy=offsets + found.energy_short_range + electrostatic + base.energy,
            energy_offsets=offsets,
            energy_short_range=found.energy_short_range,
            energy_electrostatic=electrostatic,
            energy_baseline=base.energy,
            forces=forces,
            stress=stress,
            charges=None if charged is None else to_numpy(charged.state.charges),
            atomic_dipoles=None if charged is None else _on_host(charged.state.atomic_dipoles),
            dipole=None if charged is None else _on_host(charged.dipole),
            polarizability=(
                _on_host(charged.polarizability())
                if charged is not None and "polarizability" in properties
                else None
            ),
            electronegativity=(
                _on_host(found.electronegativities) if self.learns_electronegativity else None
            ),
            chemical_potential=potential_of_charge,
            hardness=hardness,
            total_charge=structure.total_charge,
            external_field=structure.external_field,
            external_forces=_external_forces(charged) if "forces" in properties else None,
            undetermined=self.undetermined(structure.numbers, charged, fukui=responses and not told),
            undefined=dict.fromkeys(("chemical_potential", "hardness"), _TOLD) if told else None,
            born_charges=(
                self._born_charges(charged, similarities, states)
                if charged is not None and "born_charges" in properties and not structure.periodic
                else None
            ),
        )
        return base.complete(prediction, properties, charged)

    def _offsets(self, structure: Structure) -> float:
        """Σ e0."""
        own = structure.composition
        return float(sum(n * self.energy_offsets[z] for z, n in zip(own.species, own.counts, strict=True)))

    def _evaluate(
        self,
        structure: Structure,
        properties: Collection[str],
        similarities: Similarities,
        system: ChargeSystem | None,
        device: Device,
    ) -> _Evaluated:
        """Charges, baseline and short-range energy."""
        follows = _needs_derivatives(structure, properties)
        charged, electronegativities = self.charged(
            structure, similarities, system, device=device, gradients=follows
        ) or (None, None)
        base = OnBaseline.at(
            self.baseline, structure, properties, sees_charges=self.charge_kernel is not None
        )
        if self.short_range is None:
            return _Evaluated(charged, electronegativities, base, 0.0, ())
        powers = (self.short_range, *self.charge_powers)
        values = [model.evaluate(similarities, structure.numbers, gradients=follows) for model in powers]
        if self.charge_kernel is None:
            energy = to_float(namespace(device.like).sum(values[0]))
            return _Evaluated(charged, electronegativities, base, energy, ((self.short_range, None),))
        seen = asarray_like(base.seen(None if charged is None else charged.state.charges), device.like)
        coupling = ChargeCoupling.at(self.charge_kernel, seen, values)
        # the first power is the charge to the power 0
        weights = [None, *(coupling.weights[b, :] for b in range(1, len(powers)))]
        return _Evaluated(
            None if charged is None else replace(charged, coupling=coupling),
            electronegativities,
            base.couple(coupling),
            coupling.energy,
            tuple(zip(powers, weights, strict=True)),
        )

    def _differentiate(
        self,
        structure: Structure,
        found: _Evaluated,
        states: States,
        similarities: Similarities,
        device: Device,
    ) -> tuple[FloatArray, FloatArray]:
        """∂E/∂r, (N, 3), and ∂E/∂ε, (3, 3).

        What depends on environments is collected as a derivative by descriptors, of which each is followed back once.
        """
        charged = found.charged
        positions, strain = zeros((len(structure), 3), device.like), zeros((3, 3), device.like)
        weighted = list(found.powers)
        if charged is not None and self.electronegativity is not None:
            weighted.append((self.electronegativity, charged.electronegativity_gradient()))
            weighted += [(self.sites[kind], slopes) for kind, slopes in charged.site_gradients().items()]
            positions += charged.gradient()
            if structure.periodic:
                strain += charged.strain()
        gradients: dict[Descriptor, Array] = {}
        for model, weights in weighted:
            for descriptor, gradient in model.descriptor_gradients(similarities, states, weights).items():
                gradients[descriptor] = (
                    gradients[descriptor] + gradient if descriptor in gradients else gradient
                )
        for descriptor, gradient in gradients.items():
            of_descriptor = states[descriptor].adjoint(gradient)
            positions += of_descriptor.positions
            strain += of_descriptor.strain
        return to_numpy(positions) + found.base.gradient(), to_numpy(strain) + found.base.strain()

    def _born_charges(
        self, charged: Charged, similarities: Similarities, states: States
    ) -> FloatArray | None:
        """Z_k,ab = −∂²E/∂r_kb ∂field_a, (N, 3, 3); ``None`` where a short-range energy sees the charges."""
        assert self.electronegativity is not None
        if charged.coupling is not None:
            return None
        state, field = charged.state, charged.system.respond_field()
        moved = state.electronegativity_gradient_response(field)
        slopes = logarithmic_gradient_response(state, charged.sites, charged.kinds, field)
        change = to_numpy(state.gradient_response(field)).transpose(0, 2, 1).copy()
        for a in range(3):
            models = [(self.electronegativity, moved), *((self.sites[kind], slopes[kind]) for kind in slopes)]
            for model, weights in models:
                found = model.descriptor_gradients(similarities, states, weights[:, a])
                for descriptor, gradient in found.items():
                    change[:, a, :] += to_numpy(states[descriptor].adjoint(gradient).positions)
        return -change


@dataclass(frozen=True, eq=False)
class _Evaluated:
    """Energies and charges of one structure, before derivatives.

    Attributes
    ----------
    charged : Charged, optional
    electronegativities : (N,) array, optional
    base : OnBaseline
    energy_short_range : float
    powers : tuple of (SiteModel, (N,) array or None)
        The expansions of the short-range energy, with what multiplies their values: powers of the charge, or nothing.
    """

    charged: Charged | None
    electronegativities: Array | None
    base: OnBaseline
    energy_short_range: float
    powers: tuple[tuple[SiteModel, Array | None], ...]


def _external_forces(charged: Charged | None) -> FloatArray | None:
    gradient = None if charged is None else charged.external_gradient()
    return None if gradient is None else -to_numpy(gradient)


def _on_host(values: Array | None) -> FloatArray | None:
    return None if values is None else to_numpy(values)


def in_threads_for(structure: Structure) -> AbstractContextManager[None]:
    """BLAS threads for one structure: one if it is small (see :mod:`kqeq.backend.blas`)."""
    return blas.one_thread() if len(structure) <= BATCH_ATOMS else nullcontext()


def _needs_derivatives(structure: Structure, properties: Collection[str]) -> bool:
    wanted = {"forces", "born_charges"} & set(properties)
    return bool(wanted) or ("stress" in properties and structure.periodic)


def _stretches(structures: Sequence[Structure], limit: int) -> Iterator[range]:
    """Consecutive structures, at most so many atoms together."""
    begin = atoms = 0
    for i, structure in enumerate(structures):
        if i > begin and atoms + len(structure) > limit:
            yield range(begin, i)
            begin, atoms = i, 0
        atoms += len(structure)
    if len(structures) > begin:
        yield range(begin, len(structures))


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
