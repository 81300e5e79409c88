"""The ASE calculator: converts and maps, computes nothing.

    atoms.calc = KQEqCalculator(model, total_charge=+1, external_field=(0, 0, 0.1))

Charge and field come from the calculator or from ``atoms.info`` (``total_charge`` or ``charge``,
``external_field``); two sources that disagree are an error.  What the calculator was told is noted in the atoms that it
computes (``atoms.info["calculator_total_charge"]``, ``atoms.info["calculator_external_field"]``), in its parameters and
in its name, so that it is in every file that ASE writes and is found there by :mod:`kqeq.frames.conditions`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from os import PathLike
from typing import Any, TypeVar, cast

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from sklearn.base import clone

from kqeq.backend import Device, devices, to_numpy
from kqeq.backend.devices import check_precision
from kqeq.charges import QEq
from kqeq.charges.base import ChargeSystem
from kqeq.charges.equilibrium import Equilibrium
from kqeq.charges.shadow import AuxiliaryCharges, ShadowSystem
from kqeq.errors import InputError, UnsupportedError
from kqeq.frames.conditions import (
    NOTED_CHARGE,
    NOTED_FIELD,
    check_charge,
    check_field,
    conditions,
    is_among,
    require_number,
    write_name,
)
from kqeq.frames.external_charges import NOTED_OUTSIDE, ExternalCharges, read_external_charges
from kqeq.frames.neighbours import NeighbourFinder
from kqeq.frames.site_data import site_data_key
from kqeq.frames.structures import Structure, describe, structure_under
from kqeq.io.rules import FLAG
from kqeq.model.estimator import KQEq, load_model
from kqeq.potential.constant_potential import (
    AtPotential,
    Electrodes,
    at_potential,
    at_potentials,
    check_model,
    check_potential,
    with_electrodes,
)
from kqeq.potential.fixed_geometry import FixedGeometry, same_geometry
from kqeq.potential.potential import Potential, Prediction, require_energy_model
from kqeq.typing import FloatArray
from kqeq.uncertainty.guard import Extrapolation, ExtrapolationGuard
from kqeq.uncertainty.posterior import require_posterior, with_uncertainty

FARTHEST_STEP = 1.0
"""Å that an atom may move in a time step; farther, and auxiliary charges start anew."""

_ENERGY_KINDS = ("energy", "free_energy", "forces", "stress")
_CHARGE_KINDS = ("charges", "dipole")


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _one_at_a_time(method: _Method) -> _Method:
    """A method that threads enter one after another: the structure, its results and the neighbour list are one state."""

    @wraps(method)
    def locked(self: KQEqCalculator, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return method(self, *args, **kwargs)

    return cast(_Method, locked)


class PropertyUnavailableError(UnsupportedError, PropertyNotImplementedError):
    """A property that this model, or this structure, does not have.

    Also ASE's own exception for that case, so that generic ASE code (trajectory writers, for example) leaves the
    property out instead of failing.
    """


@dataclass(frozen=True, eq=False)
class _Level:
    """What holds the charges: nothing but the structure's total charge, a potential, or electrodes.

    Attributes
    ----------
    model : Potential
        With charges that fragments keep, where there are electrodes.
    """

    model: Potential
    potential: float | None = None
    electrodes: Electrodes | None = None

    @classmethod
    def of(cls, model: Potential, charge: Any, potential: Any, potentials: Any, groups: Any) -> _Level:
        if potential is None and potentials is None:
            if groups is not None:
                raise InputError("electrodes was given without potentials; give the potential of each, in V")
            return cls(model)
        if potential is not None and (potentials is not None or groups is not None):
            raise InputError("give potential (of the whole system), or potentials and electrodes, not both")
        if potential is None:
            return cls(with_electrodes(model), None, Electrodes.of(potentials, groups))
        check_model(model)
        if charge is not None:
            raise InputError(
                f"total_charge is {charge!r} and potential {potential!r}: at a given potential the total charge follows; "
                "give one of them"
            )
        return cls(model, check_potential(potential))

    def prepare(self, structure: Structure) -> Structure:
        """With the electrodes as fragments."""
        return structure if self.electrodes is None else self.electrodes.on(structure)

    def settle(self, geometry: FixedGeometry) -> AtPotential | None:
        """The geometry at the charges of the potential."""
        if self.electrodes is not None:
            return at_potentials(geometry, self.electrodes)
        return None if self.potential is None else at_potential(geometry, self.potential)


class KQEqCalculator(Calculator):
    """Energies, forces, stress, charges and dipoles of a fitted model, for ASE.

    Parameters
    ----------
    model : KQEq or path-like
        A fitted model, or its file.  The calculator keeps the parameters that the model has now; fitting the model again
        later does not reach it.
    total_charge : float, optional
        Total charge in e.  ``None`` reads ``atoms.info["total_charge"]`` or ``atoms.info["charge"]``, or takes 0.
    external_field : (3,) array-like, optional
        External field in V/Å.  ``None`` reads ``atoms.info["external_field"]``, or takes none.
    potential : float, optional
        Hold the system at a potential U = ∂E/∂Q in V instead of a total charge, which follows: the higher U, the more
        positive.  Energies and forces are those of the grand energy E − UQ.  For systems with ∂²E/∂Q² > 0; slabs have no
        potential of their own.
    potentials : dict of str to float, optional
        Potentials of two or more electrodes in V, for example ``{"left": 0.0, "right": 1.0}``: charge moves between them,
        the total charge is held, and only differences matter.  The grand energy is E − Σ U Q.
    electrodes : dict of str to sequence of int, optional
        Atoms of each electrode, by the names of ``potentials``.  Other atoms keep their charge, by fragments where
        ``atoms.arrays["fragments"]`` names them, else together.
    external_charges : ExternalCharges or tuple, optional
        Charges around the structure, (positions, charges, widths), as in :meth:`kqeq.KQEq.predict`.
    device : {"cpu", "cuda", "auto"}
        Where to compute, as in :meth:`kqeq.KQEq.predict`.
    precision : {"float64", "float32"}
        Of the matrix product behind the forces of kernels, likewise.
    max_energy_std : float, optional
        Watch the standard deviation of the energy, eV, and act where it is larger.  Needs a model with its posterior.
    max_distance : float, optional
        Watch how far the environments of the atoms are from those of the training frames, in units of their spread
        (:mod:`kqeq.potential.novelty`; about 1 within the training data), and act where one is farther.
    on_extrapolation : "warn", "stop" or function
        Warn (whenever a limit is crossed from within), raise :class:`~kqeq.errors.ExtrapolationError`, or call a function
        with an :class:`~kqeq.uncertainty.guard.Extrapolation` for every structure beyond a limit.
    guard_every : int
        Watch every so manyth structure that is computed.
    shadow : bool
        Whether charges follow auxiliary ones instead of being solved for (:mod:`kqeq.charges.shadow`): for molecular
        dynamics of large systems with QEq and one force call per (fixed) time step, three products with the matrix a
        step instead of a dozen.  Energies are shadow energies, which differ from others in second order of how far
        the auxiliary charges are from the minimum, and drift: −1.3 and −7.6 meV/atom/ns in two boxes of water, −241 in a
        strained small one that heated up, where solved charges drift by −10.  What is computed depends on the trajectory:
        ``auxiliary`` is all that it remembers.

    Attributes
    ----------
    total_charge, external_field, external_charges
        As above; may be changed at any time, also with :meth:`set`.
    electrode_charges : dict of str to float
        Charge of each electrode at the last structure, e; also in ``results``.
    external_forces : (M, 3) array or None
        Forces on the external charges at the last structure, eV/Å; as ``prediction.external_forces``.
    auxiliary : AuxiliaryCharges or None
        With ``shadow``: auxiliary charges at the positions of the last calculation.  Save them with positions and
        velocities, and set them before the first calculation of a restart.
    prediction : Prediction or None
        All that the model said about the last structure, except the polarizability, which is not computed here.

    Raises
    ------
    ModelNotFittedError
        If the model is not fitted.
    InputError
        For something that is not a model, a charge or a field, external charges, limits or an action that make no
        sense, or an unknown device or precision.
    UnsupportedError
        If ``max_energy_std`` is given and the model was loaded without its posterior.
    ModelFileError
        For a file that holds no model.
    DeviceError
        If a GPU is asked for and does not work.

    Notes
    -----
    ``energy`` includes the interaction with the field.  ``dipole`` (e·Å) is about the coordinate origin.  ``stress``
    (eV/Å³, ASE's sign and Voigt order) exists for periodic structures only.  A property that the model or the
    structure does not have raises :class:`PropertyUnavailableError`.

    Threads that share one calculator wait for each other, and each gets the results of its own structure; attributes
    that belong to the last structure (``prediction``, ``results``, ``atoms``) may by then be another's.  Threads that
    are to work at the same time take a calculator each.

    Forces of a charged system in a field sum to total_charge · external_field: hold its centre of mass
    (:class:`ase.constraints.FixCom`) where it should not drift away.
    """

    # those of the class; an instance lists what its model has
    implemented_properties: list[str] = [*_ENERGY_KINDS, *_CHARGE_KINDS]  # noqa: RUF012 (as in ASE)
    default_parameters: dict[str, Any] = {"total_charge": None, "external_field": None}  # noqa: RUF012
    ignored_changes: set[str] = {"initial_magmoms"}  # noqa: RUF012

    def __init__(
        self,
        model: KQEq | str | PathLike[str],
        *,
        total_charge: float | None = None,
        external_field: Any = None,
        potential: float | None = None,
        potentials: Mapping[str, float] | None = None,
        electrodes: Mapping[str, Sequence[int]] | None = None,
        external_charges: Any = None,
        device: str | Device = "cpu",
        precision: str = "float64",
        max_energy_std: float | None = None,
        max_distance: float | None = None,
        on_extrapolation: str | Callable[[Extrapolation], Any] = "warn",
        guard_every: int = 1,
        shadow: bool = False,
    ) -> None:
        if isinstance(model, str | PathLike):
            model = load_model(model)
        if not isinstance(model, KQEq):
            raise InputError(
                f"KQEqCalculator needs a fitted kqeq.KQEq model or the path of a model file, got {type(model).__name__}"
            )
        self._potential: Potential = model.fitted().in_session()
        FLAG.require(shadow, "shadow")
        self._shadow = bool(shadow)
        if self._shadow:
            self._potential = with_iterations(self._potential)
        self._auxiliary: AuxiliaryCharges | None = None
        # ASE's tools ask only for what is listed
        kinds = (*_ENERGY_KINDS,) if self._potential.has_energy else ()
        self.implemented_properties = [*kinds, *(_CHARGE_KINDS if self._potential.has_charges else ())]
        self._prefix = str(model.label_prefix)
        self._noted: dict[str, list[Any]] = {NOTED_CHARGE: [], NOTED_FIELD: []}
        self._single = check_precision(precision)
        devices.resolve(device)
        self._device = device
        guard = ExtrapolationGuard(
            max_energy_std=max_energy_std,
            max_distance=max_distance,
            action=on_extrapolation,
            every=guard_every,
            posterior=None if max_energy_std is None else model.posterior_,
        )
        if max_energy_std is not None:
            require_energy_model(self._potential)
            require_posterior(model.posterior_, "max_energy_std needs")
        self._guard = guard if guard.watches else None
        self._posterior = model.posterior_
        self._predicted: Structure | None = None
        self._external_charges = read_external_charges(external_charges)
        self._level = _Level.of(self._potential, total_charge, potential, potentials, electrodes)
        self._potential = self._level.model
        self._prediction: Prediction | None = None
        self._conditions: tuple[float, FloatArray] | None = None
        self._site_data: tuple[bytes | None, ...] = ()
        self._checked: tuple[bytes, ...] | None = None
        self._warned: set[tuple[float, bytes]] = set()
        self._finder = NeighbourFinder(self._potential.cutoff)  # one list for all, kept between steps
        self._geometry: FixedGeometry | None = None
        self._lock = threading.RLock()
        super().__init__(total_charge=total_charge, external_field=external_field)  # type: ignore[no-untyped-call]

    # ----------------------------------------------------------- conditions

    @property
    def total_charge(self) -> float | None:
        """Total charge set on the calculator, e; ``None`` leaves it to ``atoms.info``."""
        value: float | None = self.parameters["total_charge"]
        return value

    @total_charge.setter
    def total_charge(self, value: float | None) -> None:
        self.set(total_charge=value)

    @property
    def external_field(self) -> tuple[float, float, float] | None:
        """Field set on the calculator, V/Å; ``None`` leaves it to ``atoms.info``."""
        value: tuple[float, float, float] | None = self.parameters["external_field"]
        return value

    @external_field.setter
    def external_field(self, value: Any) -> None:
        self.set(external_field=value)

    @property
    def external_charges(self) -> ExternalCharges | None:
        """Charges around the structure; set with anything that the argument of this name takes."""
        return self._external_charges

    @external_charges.setter
    def external_charges(self, value: Any) -> None:
        self.set(external_charges=value)

    @property
    def external_forces(self) -> FloatArray | None:
        """Forces on the external charges at the last structure, (M, 3) array in eV/Å; ``None`` if there are none."""
        prediction = self.prediction
        return None if prediction is None else prediction.external_forces

    @_one_at_a_time
    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Change ``total_charge``, ``external_field`` or ``external_charges``; forgets results if that matters.

        Returns
        -------
        dict
            What changed.

        Raises
        ------
        InputError
            For other names, or values that are no charge or field.
        """
        checked: dict[str, Any] = {}
        outside = self._external_charges
        if "external_charges" in kwargs:
            # no parameter of ASE's, which writes those into files as they are
            outside = read_external_charges(kwargs.pop("external_charges"))
        for name, value in kwargs.items():
            if name not in self.default_parameters:
                raise InputError(
                    f"KQEqCalculator has no parameter {name!r}; expected "
                    f"{', '.join(self.default_parameters)} or external_charges"
                )
            if value is None:
                checked[name] = None
            elif name == "total_charge":
                require_number(value, "the calculator")
                checked[name] = check_charge(value, "the calculator")
            else:
                # a tuple, so that the field cannot be changed behind the cache's back
                checked[name] = tuple(check_field(value, "the calculator").tolist())
        changed: dict[str, Any] = super().set(**checked)  # type: ignore[no-untyped-call]
        if outside is not self._external_charges and (
            outside is None or not outside.same_as(self._external_charges)
        ):
            changed = {**changed, "external_charges": outside}
        self._external_charges = outside
        if changed:
            # the atoms stay: calc.get_property("energy") goes on with the structure it knows
            self._forget()
        return changed

    @_one_at_a_time
    def reset(self) -> None:
        """Forget the last structure and its results."""
        super().reset()  # type: ignore[no-untyped-call]
        self._forget()

    def _forget(self) -> None:
        self.results = {}
        self._prediction = None
        self._conditions = None

    @_one_at_a_time
    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation, charge and field in ``atoms.info`` included.

        ``"site_data"`` stands for fragments, reference charges and the external potential.

        Raises
        ------
        InputError
            If two sources of the charge or of the field disagree.
        """
        # ASE's own comparison takes longer than a small molecule's charges
        changes = _changed(self.atoms, atoms)
        charge, field = self._read_conditions(atoms)
        if self._conditions is None:
            return changes or ["total_charge", "external_field"]
        if charge != self._conditions[0]:
            changes.append("total_charge")
        if (field != self._conditions[1]).any():
            changes.append("external_field")
        if site_data_key(atoms) != self._site_data:
            changes.append("site_data")
        return changes

    def _read_conditions(self, atoms: Atoms) -> tuple[float, FloatArray]:
        return conditions(
            atoms,
            total_charge=self.total_charge,
            external_field=self.external_field,
            prefix=self._prefix,
            calculator=False,
            stale=self._noted,  # it may have been told something else since
        )

    def _note(self, atoms: Atoms) -> None:
        """Write into atoms what this calculator was told, for files to keep; take back what does not hold any more.

        Only into atoms that it belongs to: ``calculator.get_forces(atoms)`` asks about atoms of somebody else.
        """
        if atoms.calc is not self:
            return
        for key, value in ((NOTED_CHARGE, self.total_charge), (NOTED_FIELD, self.external_field)):
            noted = self._noted[key]
            if value is not None:
                # an array is what extended XYZ keeps as three numbers
                atoms.info[key] = value if key == NOTED_CHARGE else np.array(value)
                if not is_among(value, noted):
                    noted.append(value)
            elif key in atoms.info and is_among(atoms.info[key], noted):
                del atoms.info[key]
        if self._external_charges is not None:
            atoms.info[NOTED_OUTSIDE] = len(self._external_charges)
        else:
            atoms.info.pop(NOTED_OUTSIDE, None)

    def _get_name(self) -> str:
        """The name under which files know the calculator, with charge and field: some files keep nothing else."""
        return write_name(*(self._conditions or (0.0, np.zeros(3))))

    # ----------------------------------------------------------- calculation

    @property
    def prediction(self) -> Prediction | None:
        """All that the model said about the last structure; ``None`` when there are no valid results."""
        # ASE empties the results itself when the structure changes
        return self._prediction if self.results else None

    @property
    def electrode_charges(self) -> dict[str, float]:
        """Charge of each electrode at the last structure, e; empty without electrodes."""
        return dict(self.results.get("electrode_charges", {}))

    @_one_at_a_time
    def energy_std(self) -> float:
        """Standard deviation of the energy at the last structure, eV; computed when asked for.

        Raises
        ------
        InputError
            If nothing was computed yet.
        UnsupportedError
            If the model was loaded without its posterior, or has no energies; copies of a calculator leave the posterior
            behind.
        """
        require_energy_model(self._potential)
        posterior = require_posterior(self._posterior, "the standard deviation of an energy needs")
        if self.prediction is None or self._predicted is None:
            raise InputError(
                "energy_std() is about the last structure, and none was computed yet; ask for its energy first"
            )
        baseline = self._potential.baseline
        known = with_uncertainty(self.prediction, posterior, self._predicted, ("energy",), baseline)
        assert known.energy_std is not None
        return known.energy_std

    @_one_at_a_time
    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """One property, from the cache if nothing changed; see :class:`ase.calculators.calculator.Calculator`.

        Raises
        ------
        PropertyUnavailableError
            For properties that the model does not have.
        """
        if atoms is None and self.atoms is None and name not in self.results:
            raise InputError(
                f"KQEqCalculator was asked for {name!r} without a structure; pass atoms, or attach the calculator "
                "(atoms.calc = calculator) and ask the atoms"
            )
        if name not in self.implemented_properties:
            self._require(name)  # says why
        value = super().get_property(name, atoms, allow_calculation)  # type: ignore[no-untyped-call]
        if atoms is not None and self.results:
            self._note(atoms)
        return value

    @_one_at_a_time
    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Predict what is asked for; energy, charges and dipole always come along.

        Parameters
        ----------
        atoms : ase.Atoms, optional
            The structure of the last calculation if none is given.
        properties : sequence of str
            Leaving forces and stress away saves most of the time.
        system_changes : sequence of str
            Not used: everything follows from the structure.

        Raises
        ------
        InputError, UnsupportedError
            As :meth:`kqeq.KQEq.predict`, and PropertyUnavailableError.
        ExtrapolationError
            Beyond a limit that was set with ``on_extrapolation="stop"``.
        """
        self._forget()
        if atoms is not None:
            self.atoms = atoms.copy()
        if self.atoms is None:
            raise InputError("KQEqCalculator.calculate() needs a structure; pass atoms")
        for name in properties:
            self._require(name)
        charge, field = self._read_conditions(self.atoms)
        structure = structure_under(
            self.atoms,
            charge,
            field,
            where=describe(self.atoms),
            external_charges=self._external_charges,
            neighbours=self._finder,
        )
        checked = tuple(a.tobytes() for a in (structure.numbers, structure.pbc, structure.external_field))
        checked = (*checked, str(structure.external_charges is None).encode())
        structure = self._level.prepare(structure)
        if checked != self._checked:  # not at every step of a trajectory
            self._potential.check(structure, describe(self.atoms))
            self._checked = checked

        wanted = ["energy"]
        if "forces" in properties or "stress" in properties:
            # both come out of the same derivatives
            wanted += ["forces", "stress"] if structure.periodic else ["forces"]
        if "dipole" in properties:
            wanted.append("dipole")  # a matter of course, except on the charges of a baseline

        def work(where: Device) -> tuple[Prediction, AtPotential | None, FixedGeometry]:
            geometry = self._at(structure, where)
            level = self._level.settle(geometry)
            geometry = geometry if level is None else level.geometry
            return geometry.predict(wanted), level, geometry

        (prediction, level, geometry), used = devices.run(self._device, work)
        if used.is_host:
            self._device = "cpu"  # a GPU that failed once is not tried again at every step
        state = structure.total_charge, np.bincount(structure.numbers).tobytes()
        if state not in self._warned:  # once for every composition and charge
            self._warned.add(state)
            self._potential.warn_if_undetermined([structure], [prediction])

        if self._guard is not None:
            self._guard.look(self.atoms, geometry, prediction)
        results: dict[str, Any] = {}
        if self._potential.has_energy:
            # at a potential the grand energy is what the forces belong to, and what dynamics conserves
            work_done = 0.0 if level is None else level.work
            results["energy"] = results["free_energy"] = prediction.energy - work_done
            results["forces"] = prediction.forces
            if prediction.stress is not None:
                results["stress"] = full_3x3_to_voigt_6_stress(prediction.stress)
        results["charges"] = prediction.charges
        results["dipole"] = prediction.dipole
        if level is not None and level.charges:
            results["electrode_charges"] = dict(level.charges)
        self.results = {name: value for name, value in results.items() if value is not None}
        self._prediction = prediction
        self._predicted = geometry.structure
        # a copy: the field may be the very array in atoms.info, which can be changed in place
        self._conditions = (structure.total_charge, structure.external_field.copy())
        self._site_data = site_data_key(self.atoms)
        for name in properties:
            if name not in self.results:
                raise PropertyUnavailableError(
                    f"{describe(self.atoms)} (pbc={self.atoms.pbc.tolist()}) has no {name}: stress needs a cell with "
                    "a volume and a periodic direction, a dipole a structure whose dipole is defined"
                )

    def _at(self, structure: Structure, device: Device) -> FixedGeometry:
        """What depends on the geometry alone, kept until the geometry changes."""
        kept = self._geometry
        if kept is not None and kept.device is device and same_geometry(kept.structure, structure):
            self._geometry = kept.in_state(structure)
        else:
            earlier = self._advance(structure) if self._shadow else None
            self._geometry = None  # the old matrix goes before another one is made
            geometry = FixedGeometry.at(
                self._potential,
                structure,
                device=device,
                single=self._single,
            )
            self._geometry = self._linearised(geometry, earlier) if self._shadow else geometry
        return self._geometry

    # ----------------------------------------------------------- auxiliary charges

    @property
    def auxiliary(self) -> AuxiliaryCharges | None:
        """Auxiliary charges at the positions of the last calculation."""
        return self._auxiliary

    @auxiliary.setter
    def auxiliary(self, value: AuxiliaryCharges | None) -> None:
        if not self._shadow:
            raise InputError("auxiliary charges belong to a calculator with shadow=True")
        if value is not None and not isinstance(value, AuxiliaryCharges):
            raise InputError(
                f"auxiliary charges are kqeq.charges.shadow.AuxiliaryCharges, got {type(value).__name__}; take them "
                "from calculator.auxiliary, or make them from saved arrays: AuxiliaryCharges(history, spectrum)"
            )
        with self._lock:
            self._forget()
            self._geometry = None
            self._auxiliary = value

    def _advance(self, structure: Structure) -> FloatArray | None:
        """Move the auxiliary charges to a new geometry: by a time step, unless it is another system.

        At the second point of a trajectory they are to be solved for again: then those of the first are returned.
        """
        kept, auxiliary = self._geometry, self._auxiliary
        if auxiliary is not None and auxiliary.history.shape[1] != len(structure):
            self._auxiliary = None
        if kept is None or self._auxiliary is None:
            return None  # given by the user, or to be made
        system, old = kept.system, kept.structure
        if (
            not isinstance(system, ShadowSystem)
            or not system.solved
            or not np.array_equal(old.numbers, structure.numbers)
            or float(np.abs(structure.positions - old.positions).max()) > FARTHEST_STEP
        ):
            self._auxiliary = None
            return None
        if len(self._auxiliary.history) == 1:
            (earlier,), self._auxiliary = self._auxiliary.history, None
            return np.asarray(earlier)
        self._auxiliary = self._auxiliary.after(system.solved[0])
        return None

    def _linearised(self, geometry: FixedGeometry, earlier: FloatArray | None) -> FixedGeometry:
        """A geometry whose charges follow the auxiliary ones; these start at the minimum."""
        system = geometry.system
        assert isinstance(system, Equilibrium)
        if self._auxiliary is None:
            found = self._potential.charged(
                geometry.structure, geometry.similarities, system, device=geometry.device
            )
            assert found is not None
            charges = to_numpy(found[0].state.charges)
            self._auxiliary = AuxiliaryCharges(np.stack([charges] if earlier is None else [charges, earlier]))
        linearised = ShadowSystem.build(system, self._auxiliary.history[0])
        # it has no responses, and a prediction of the calculator asks for none
        return replace(geometry, system=cast(ChargeSystem, linearised))

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what can be computed again when the calculator is pickled to a worker."""
        left = dict.fromkeys(("_geometry", "_lock", "_posterior"))
        return {**self.__dict__, **left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a lock of its own."""
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def _require(self, name: str) -> None:
        """Refuse properties that the model cannot have for any structure."""
        if name not in (*_ENERGY_KINDS, *_CHARGE_KINDS):
            raise PropertyUnavailableError(
                f"KQEqCalculator has no property {name!r}; expected one of {', '.join(self.implemented_properties)}"
            )
        if name in _ENERGY_KINDS:
            try:
                require_energy_model(self._potential)
            except UnsupportedError as error:
                raise PropertyUnavailableError(str(error)) from None
        if name in _CHARGE_KINDS and not self._potential.has_charges:
            raise PropertyUnavailableError(
                f"the model has no charges, so it has no {name}; fit with charges=kqeq.QEq()"
            )
        if name == "stress" and self.atoms is not None and not self.atoms.pbc.any():
            raise PropertyUnavailableError(
                f"{describe(self.atoms)} is not periodic and has no stress; set atoms.cell and atoms.pbc"
            )


def with_iterations(potential: Potential) -> Potential:
    """The same potential with charges that are never solved for with a matrix.

    Raises
    ------
    UnsupportedError
        For models without charges, or whose short-range energy sees the charges.
    """
    charges = potential.charges
    if charges is None:
        raise UnsupportedError("shadow=True is about charges, and the model has none; leave it away")
    if not isinstance(charges, QEq):
        raise UnsupportedError(
            f"shadow=True exists for kqeq.QEq, and the model has {type(charges).__name__}; leave it away"
        )
    if potential.charge_kernel is not None:
        raise UnsupportedError(
            "shadow=True does not exist for models whose short-range energy sees the charges; leave it away"
        )
    return replace(potential, charges=clone(charges).set_params(solver="iterative"), _plain_sites={})


def _changed(kept: Atoms | None, atoms: Atoms) -> list[str]:
    """What ASE watches and differs, by ASE's names; magnetic moments are not looked at."""
    if kept is None or len(kept) != len(atoms):
        return list(all_changes)
    pairs = {
        "positions": (kept.positions, atoms.positions),
        "numbers": (kept.numbers, atoms.numbers),
        "cell": (kept.cell.array, atoms.cell.array),
        "pbc": (kept.pbc, atoms.pbc),
        "initial_charges": (kept.arrays.get("initial_charges"), atoms.arrays.get("initial_charges")),
    }
    return [
        name for name, (a, b) in pairs.items() if a is not b and (a is None or b is None or (a != b).any())
    ]


__all__ = ["KQEqCalculator", "PropertyUnavailableError"]
