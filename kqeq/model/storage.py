"""The model file: one ZIP archive of a JSON header and plain arrays, versioned, no pickle, written atomically.

Layout, version 2::

    header.json          format, version, library version, settings, element offsets, report
    <kernel>/<Z>/data|indices|indptr  representatives of one element, sparse rows, unless shared with another kernel
    <kernel>/<Z>/coefficients         kernel coefficients
    <kernel>/<Z>/mean|spread          of features of networks; weights of networks are not stored, but name and hash
    determination/covariance|prior    of the element means: what the training data leave open
    posterior/lower, posterior/u      optional: Cholesky factor of the posterior precision, parameters

where a kernel is named like its part (electronegativity, short_range, a kind of site parameter, or power1, power2 ...
of a charge-aware short-range energy, which share its representatives); further kernels of a sum are <part>.2, <part>.3
and so on.  Version 1 knew one kernel for each part, with the descriptor of the settings.

The training set is not stored.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from scipy import sparse

from kqeq.baselines import Baseline, Sum, resolve_baseline
from kqeq.baselines.combine import parts_of
from kqeq.baselines.shift import PREFIX, shift_from_name
from kqeq.charges import charge_model_from_dict
from kqeq.charges.base import ENVIRONMENT_KINDS, ChargeModel
from kqeq.charges.parameters import ElementParameters, element_codes, element_names
from kqeq.descriptors.base import Descriptor
from kqeq.descriptors.conditioned import Conditioned
from kqeq.descriptors.merged import ELEMENTS, PERIODS, Merged
from kqeq.descriptors.networks import Network, NetworkFeatures, Scaling, find_network
from kqeq.descriptors.soap.descriptor import SOAPDescriptor
from kqeq.errors import InputError, ModelFileError, OutputError, UnsupportedError
from kqeq.fitting.charge_aware import ChargeDependence
from kqeq.fitting.least_squares.solver import Iteration
from kqeq.fitting.parameters import LearnedPart, Parameters, SitePart
from kqeq.fitting.report import FitReport
from kqeq.io.archive import read_archive, write_archive
from kqeq.kernels.charge_kernel import ChargeKernel
from kqeq.kernels.feature_map import FeatureMap
from kqeq.kernels.settings import AUTO, NetworkKernel, SOAPKernel, kernel_tuple
from kqeq.model.layout import PARTS, check_model, kernel_name, network_names, power_names
from kqeq.potential.determination import Determination
from kqeq.potential.potential import Potential, SiteModel
from kqeq.typing import FloatArray
from kqeq.uncertainty.posterior import Factors, Posterior

FORMAT = "kqeq-model"
VERSION = 2

DESCRIPTORS = 1
"""Raised when the same settings of a descriptor come to mean other numbers: old coefficients are worth nothing then."""


@dataclass(frozen=True, eq=False)
class Record:
    """A fitted model without its estimator: what a file holds.

    Attributes
    ----------
    settings : mapping of str to Any
        Arguments of the estimator's constructor, as objects.
    potential : Potential
    report : FitReport
    charges_key : str or None
        Where the charges of the training frames were found.
    posterior : Posterior, optional
    """

    settings: Mapping[str, Any]
    potential: Potential
    report: FitReport
    charges_key: str | None
    posterior: Posterior | None


def save_record(record: Record, path: str | PathLike[str], *, posterior: bool, rescue: bool) -> None:
    """Write a fitted model; see :meth:`kqeq.KQEq.save`.

    Parameters
    ----------
    record : Record
    path : path-like
    posterior : bool
        Also store the posterior.
    rescue : bool
        Whether to write it elsewhere if it cannot be written there.
    """
    header, arrays = _content(record, posterior=posterior)
    try:
        write_archive(path, FORMAT, VERSION, header, arrays)
    except InputError as error:
        kept = _rescue(header, arrays) if rescue else None
        if kept is None:
            raise
        raise OutputError(
            f"{error}. The model was kept at {kept}: move it to where it belongs, or kqeq.load it from there"
        ) from error


def _rescue(header: Mapping[str, Any], arrays: Mapping[str, Any]) -> Path | None:
    """Write a model where there is room, so that a fit of hours is not lost with the process; ``None`` if nowhere."""
    for folder in dict.fromkeys((tempfile.gettempdir(), os.path.expanduser("~"), os.getcwd())):
        target = Path(folder) / f"kqeq-rescued-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.kqeq"
        with suppress(InputError):
            write_archive(target, FORMAT, VERSION, header, arrays)
            return target
    return None


def _content(record: Record, *, posterior: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and arrays of a fitted model."""
    potential = record.potential
    arrays: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    homes: dict[FeatureMap, str] = {}
    for name, part in _site_models(potential).items():
        if part is None:
            parts[name] = None
            continue
        kernels = []
        for number, (feature_map, coefficients) in enumerate(part.terms, start=1):
            own = kernel_name(name, number)
            home = homes.setdefault(feature_map, own)
            kernels.append(
                {
                    "features": home,
                    "descriptor": _descriptor_settings(feature_map.descriptor),
                    "zeta": feature_map.zeta,
                    "species": list(feature_map.species),
                    "elements": [chemical_symbols[z] for z in feature_map.representatives],
                }
            )
            for z, rows in feature_map.representatives.items():
                prefix = f"{own}/{chemical_symbols[z]}"
                if home == own:
                    arrays |= _scaling_arrays(feature_map.descriptor, prefix, z)
                    arrays[f"{prefix}/data"] = rows.data
                    arrays[f"{prefix}/indices"] = rows.indices
                    arrays[f"{prefix}/indptr"] = rows.indptr
                    arrays[f"{prefix}/shape"] = np.array(rows.shape)
                arrays[f"{prefix}/coefficients"] = coefficients[z]
        parts[name] = {"offsets": _by_symbol(part.offsets), "kernels": kernels}
    if potential.determination is not None:
        arrays["determination/covariance"] = potential.determination.covariance
        arrays["determination/prior"] = potential.determination.prior
    stored_posterior = None
    if posterior:
        known = record.posterior
        if known is None:
            raise InputError(
                "posterior=True, but this model was loaded from a file and holds no posterior; fit it again to store one"
            )
        arrays["posterior/lower"] = known.lower
        arrays["posterior/u"] = known.u
        stored_posterior = _stored_posterior(known, potential)
    header = {
        "settings": _plain_settings(record.settings),
        "charges_key": record.charges_key,
        "species": [chemical_symbols[z] for z in potential.species],
        "energy_offsets": _by_symbol(potential.energy_offsets),
        "training_charges": list(potential.training_charges),
        "has_energy": potential.has_energy,
        "baseline": None if potential.baseline is None else potential.baseline.name,
        "baseline_given": _name_given(record.settings["baseline"]),
        "charges": None if potential.charges is None else potential.charges.to_dict(),
        "parts": parts,
        "sites": list(potential.sites),
        "charge_kernel": None if potential.charge_kernel is None else potential.charge_kernel.to_dict(),
        "known_states": {
            state: {chemical_symbols[z]: list(values) for z, values in own.items()}
            for state, own in potential.known_states.items()
        },
        "charged_sizes": list(potential.charged_sizes),
        "descriptors": {"version": DESCRIPTORS},
        "report": asdict(record.report),
        "posterior": stored_posterior,
    }
    return header, arrays


def _stored_posterior(known: Posterior, potential: Potential) -> dict[str, Any]:
    """What a posterior knows beside its arrays, as plain data."""
    return {
        "noise": dict(known.noise),
        "short_range_first": known.parameters.short_range_first,
        "electronegativity": _prior(known.parameters.electronegativity),
        "short_range": _prior(known.parameters.short_range),
        "elements": _element_prior(known.parameters.learned),
        "sites": {
            kind: list(part.deltas)
            for kind, part in known.parameters.parts.items()
            if kind in potential.sites
        },
        "remainders": {name: kernel.remainder for name, kernel in known.parameters.kernels.items()},
        "factors": {kind: asdict(own) for kind, own in known.factors.items()},
    }


Networks = Mapping[tuple[str, str], Network]
"""Networks by name and hash."""


def load_record(path: str | PathLike[str], *, baseline: Any = None, networks: Sequence[Any] = ()) -> Record:
    """Read a model file; see :func:`kqeq.load`.

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, damaged, no model file, or from a newer version of the package.
    InputError
        If the baseline calculator is missing or is not the kind the model was fitted with; likewise networks.
    UnsupportedError
        If the package of a network is not installed.
    """
    header, arrays = read_archive(
        Path(path),
        FORMAT,
        VERSION,
        "kqeq model file",
        "copy it again, or save the model again with model.save(path)",
    )
    try:
        header = _upgrade(header)
        check_model(header, arrays)
        means = header.get("descriptors", {}).get("version", DESCRIPTORS)
    except Exception as error:  # of a header of an older version anything may be missing
        raise damaged(path, error) from None
    if means != DESCRIPTORS:
        raise ModelFileError(
            f"{path} holds coefficients for version {means} of the descriptors; this version of kqeq computes version "
            f"{DESCRIPTORS}, and would predict something else. Use the version that wrote it "
            f"({header.get('kqeq', 'unknown')}), or fit again"
        )
    spec, resolved = _baseline(header, baseline)
    found = {names: find_network(*names, networks) for names in network_names(header)}
    try:
        return _build(header, arrays, spec, resolved, found)
    except Exception as error:  # settings pass through many constructors, each with checks of its own
        raise damaged(path, error) from error


def damaged(path: str | PathLike[str], error: Exception) -> ModelFileError:
    """The error for a file whose content makes no model."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ModelFileError(
        f"{Path(path)} lacks a part of the model or holds a wrong one ({reason}); it is damaged: copy it again, or save "
        "the model again with model.save(path)"
    )


def _by_symbol(values: Mapping[int, float]) -> dict[str, float]:
    return {chemical_symbols[z]: float(value) for z, value in values.items()}


def _by_number(values: Mapping[str, float]) -> dict[int, float]:
    return {atomic_numbers[symbol]: float(value) for symbol, value in values.items()}


def _plain_settings(given_settings: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments as plain data."""
    settings = dict(given_settings)
    for name in ("baseline", "resume", "cache", "device"):  # of the machine that fitted, or kept elsewhere
        settings.pop(name, None)
    for name in ("electronegativity", "short_range", "site_kernel"):
        given = settings[name]
        if given is not None and not isinstance(given, str):
            several = isinstance(given, (list, tuple))
            settings[name] = [kernel.to_dict() for kernel in given] if several else given.to_dict()
    for name in ("charges", "charge_aware"):
        settings[name] = None if settings[name] is None else settings[name].to_dict()
    if settings["targets"] is not None and not isinstance(settings["targets"], str):
        settings["targets"] = list(settings["targets"])
    return settings


def _build(
    header: dict[str, Any], arrays: dict[str, Any], spec: Any, resolved: Baseline | None, networks: Networks
) -> Record:
    settings = dict(header["settings"])
    for name in ("electronegativity", "short_range", "site_kernel"):
        settings[name] = _kernel_settings(settings.get(name), networks)
    settings["charges"] = None if settings["charges"] is None else charge_model_from_dict(settings["charges"])
    aware = settings.get("charge_aware")
    settings["charge_aware"] = None if aware is None else ChargeKernel(**aware)
    settings["baseline"] = spec
    _check_settings(settings)
    charges = header["charges"]  # with learned values in place of "learn"
    models: dict[str, SiteModel | None] = {}
    maps: dict[str, FeatureMap] = {}
    kinds, aware = header.get("sites", []), header.get("charge_kernel")
    charge_kernel = None if aware is None else ChargeKernel(**aware)
    powers = () if charge_kernel is None else power_names(charge_kernel.order)
    for name in (*PARTS, *kinds, *powers):
        models[name] = _site_model(header["parts"][name], arrays, name, maps, networks)
    potential = Potential(
        species=tuple(atomic_numbers[symbol] for symbol in header["species"]),
        energy_offsets=_by_number(header["energy_offsets"]),
        electronegativity=models["electronegativity"],
        charges=None if charges is None else charge_model_from_dict(charges),
        short_range=models["short_range"],
        baseline=resolved,
        training_charges=tuple(header["training_charges"]),
        has_energy=header["has_energy"],
        sites={kind: own for kind in kinds if (own := models[kind]) is not None},
        charge_kernel=charge_kernel,
        charge_powers=tuple(own for name in powers if (own := models[name]) is not None),
        determination=_determination(header, arrays),
        known_states={
            state: {atomic_numbers[symbol]: tuple(map(float, values)) for symbol, values in own.items()}
            for state, own in header.get("known_states", {}).items()
        },
        charged_sizes=tuple(header.get("charged_sizes", ())),
    )
    _check_charges(potential)
    report = dict(header["report"])
    report["iterations"] = tuple(Iteration(**row) for row in report["iterations"])
    report["notes"] = tuple(report["notes"])
    posterior = _posterior(header, arrays, potential, settings["charges"])
    return Record(settings, potential, FitReport(**report), header["charges_key"], posterior)


def _determination(header: Mapping[str, Any], arrays: Mapping[str, Any]) -> Determination | None:
    """What the training data leave open; ``None`` for files of version 1."""
    if "determination/covariance" not in arrays:
        return None
    species = tuple(atomic_numbers[symbol] for symbol in header["species"])
    return Determination(species, arrays["determination/covariance"], arrays["determination/prior"])


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse kernels that could not have been fitted; a descriptor may not even be possible to build."""
    for name in ("electronegativity", "short_range", "site_kernel"):
        for kernel in kernel_tuple(settings[name]) or ():
            kernel.check()
    if settings["charge_aware"] is not None:
        settings["charge_aware"].check()


def _check_charges(potential: Potential) -> None:
    """Refuse charge models that do not work for the elements of the model."""
    if potential.charges is not None:
        if potential.charges.to_learn:
            raise ValueError(f"the values of {', '.join(potential.charges.to_learn)} are missing")
        potential.charges.site_parameters(np.array(potential.species))
    if potential.charge_kernel is not None:
        potential.charge_kernel.check()


def _prior(part: SitePart | None) -> dict[str, Any] | None:
    """The prior of one part of the parameters as plain data."""
    if part is None:
        return None
    return {
        "deltas": list(part.deltas),
        "mean": _by_symbol(part.offset_mean),
        "spread": part.offset_spread,
        "scales": _by_symbol(part.offset_scales),
        "held": None if part.held is None else part.held.tolist(),
    }


def _held(prior: Mapping[str, Any] | None, species: tuple[int, ...]) -> FloatArray | None:
    """What :func:`_prior` stored of energies that are held."""
    if prior is None or prior.get("held") is None:
        return None
    held = np.array(prior["held"], dtype=np.float64)
    if held.shape != (len(species), len(species)):
        raise ValueError("what is known of the given element energies does not fit the elements")
    return held


def _element_prior(part: LearnedPart | None) -> dict[str, Any] | None:
    """The prior of the learned element parameters as plain data."""
    if part is None:
        return None
    elements = part.elements
    return {
        "kinds": list(elements.kinds),
        "elements": element_names(elements.species),
        "start": elements.start.tolist(),
        "spread": elements.spread.tolist(),
    }


def _with_spreads(model: SiteModel | None, prior: Mapping[str, Any] | None) -> list[tuple[FeatureMap, float]]:
    """The kernels of a part with their prior spreads."""
    if model is None or prior is None:
        return []
    return list(zip(model.feature_maps, map(float, prior["deltas"]), strict=True))


def _elements(stored: Mapping[str, Any] | None) -> ElementParameters | None:
    """What :func:`_element_prior` stored."""
    if stored is None:
        return None
    species = element_codes(stored["elements"])
    return ElementParameters(
        tuple(stored["kinds"]), species, np.array(stored["start"]), np.array(stored["spread"])
    )


def _posterior(
    header: dict[str, Any], arrays: dict[str, Any], potential: Potential, charges: ChargeModel | None
) -> Posterior | None:
    """The posterior, if the file holds a complete one."""
    stored = header.get("posterior")
    if stored is None:
        return None
    chi, energy = stored["electronegativity"], stored["short_range"]
    chi_site, energy_site = potential.electronegativity, potential.short_range
    aware = potential.charge_kernel is not None
    parameters = Parameters.build(
        potential.species,
        charges=None if aware else charges,  # those that an energy sees are held
        electronegativity_kernels=_with_spreads(chi_site, chi),
        electronegativity_mean={} if chi is None else _by_number(chi["mean"]),
        electronegativity_spread=0.0 if chi is None else chi["spread"],
        short_range_kernels=_with_spreads(energy_site, energy),
        short_range_mean=None if energy is None else _by_number(energy["mean"]),
        short_range_spread=0.0 if energy is None else energy["spread"],
        elements=_elements(stored["elements"]),
        site_maps=() if aware else next((own.feature_maps for own in potential.sites.values()), ()),
        site_deltas={} if aware else {kind: stored["sites"][kind] for kind in potential.sites},
        short_range_first=stored.get("short_range_first", False),  # files of version 0.1 do not say
        short_range_scales={} if energy is None else _by_number(energy.get("scales", {})),
        short_range_held=_held(energy, potential.species),
    )
    if potential.charge_kernel is not None:
        if parameters.short_range is None:
            raise ValueError("the posterior belongs to a short-range energy that the file does not hold")
        dependence = ChargeDependence.on(potential, potential.charge_kernel)
        parameters = Parameters.charge_aware(potential.species, parameters.short_range, dependence)
    parameters = parameters.with_remainders(stored["remainders"])
    u, lower = arrays["posterior/u"], np.asfortranarray(arrays["posterior/lower"])  # as a fit leaves it
    if u.shape != (parameters.size,) or lower.shape != (parameters.size, parameters.size):
        raise ValueError("the posterior does not fit the parameters")
    factors = {kind: Factors(**own) for kind, own in stored.get("factors", {}).items()}
    return Posterior(parameters, u, lower, stored["noise"], factors)


def _name_given(baseline: Any) -> str | None:
    """The name of the baseline before ``charge_from`` changed it; in files only."""
    given = resolve_baseline(baseline)
    return None if given is None else given.name


def _baseline(header: Mapping[str, Any], given: Any) -> tuple[Any, Baseline | None]:
    """What the user would have written for the baseline, and the baseline itself."""
    name = header.get("baseline")
    if name is None:
        if given is not None:
            raise InputError("a baseline was given, but the model was fitted without one")
        return None, None
    charge_from = header["settings"].get("charge_from", "baseline")
    spec = given
    if spec is None:
        spec = header.get("baseline_given") or name
        try:
            return spec, resolve_baseline(name)
        except InputError:
            raise InputError(
                f"the model was fitted on top of the calculator {name}, which the file does not hold; "
                "pass it: kqeq.load(path, baseline=calculator)"
            ) from None
    # constants by total charge are part of the fit, not of what the user gives
    _, mark, shift = name.partition(f"+{PREFIX}:")
    resolved = resolve_baseline(spec, charge_from)
    if mark and resolved is not None:
        resolved = Sum([*parts_of(resolved), shift_from_name(f"{PREFIX}:{shift}")])
    if resolved is not None and resolved.name != name:
        raise InputError(f"the model was fitted on top of {name}, but the baseline given is {resolved.name}")
    return spec, resolved


def _site_models(potential: Potential) -> dict[str, SiteModel | None]:
    """All kernel models by the names of their parts in the file."""
    powers = dict(zip(power_names(len(potential.charge_powers)), potential.charge_powers, strict=True))
    return {name: getattr(potential, name) for name in PARTS} | dict(potential.sites) | powers


def _kernel_settings(stored: Any, networks: Networks) -> Any:
    """Kernel settings, one or a list of them, from plain data."""
    if stored is None or stored == AUTO:
        return stored

    def kernel_of(own: Mapping[str, Any]) -> SOAPKernel | NetworkKernel:
        if "network" not in own:
            return SOAPKernel(**own)
        options = {key: value for key, value in own.items() if key not in {"network", "sha256"}}
        return NetworkKernel(networks[own["network"], own["sha256"]], **options)

    kernels = [kernel_of(own) for own in (stored if isinstance(stored, list) else [stored])]
    for kernel in kernels:
        kernel.check()
    return kernels if isinstance(stored, list) else kernels[0]


def _descriptor_settings(descriptor: Descriptor) -> dict[str, Any]:
    """Settings of a descriptor as plain data; scales of networks are arrays."""
    if isinstance(descriptor, Conditioned):
        return {**_descriptor_settings(descriptor.inner), "condition": descriptor.condition}
    if isinstance(descriptor, Merged):
        return {**_descriptor_settings(descriptor.inner), "neighbours": PERIODS}
    if isinstance(descriptor, NetworkFeatures) and descriptor.scaling is not None:
        return {
            "network": descriptor.network.name,
            "sha256": descriptor.network.digest,
            "charged": descriptor.charged,
        }
    if not isinstance(descriptor, SOAPDescriptor):
        raise UnsupportedError(f"a model with the descriptor {descriptor!r} cannot be stored")
    settings = asdict(descriptor)
    if descriptor.weighting is None:
        del settings["weighting"]
    else:
        settings["weighting"] = descriptor.weighting.to_dict()
    return settings


def _scaling_arrays(descriptor: Descriptor, prefix: str, z: int) -> dict[str, FloatArray]:
    """Mean and spread of the features of a network for one element; nothing for other descriptors."""
    if isinstance(descriptor, Conditioned):
        return _scaling_arrays(descriptor.inner, prefix, z)
    if not isinstance(descriptor, NetworkFeatures) or descriptor.scaling is None:
        return {}
    return {
        f"{prefix}/mean": descriptor.scaling.mean[z],
        f"{prefix}/spread": np.array([descriptor.scaling.spread[z]]),
    }


def _upgrade(header: dict[str, Any]) -> dict[str, Any]:
    """The header of an older version in the layout of this one."""
    if header["version"] >= 2:
        return _upgrade_posterior(header)
    header = dict(header)
    settings = header["settings"]
    site_kernel = settings.get("site_kernel") or settings["electronegativity"]
    kernels = {
        **dict.fromkeys(ENVIRONMENT_KINDS, site_kernel),
        "electronegativity": settings["electronegativity"],
    }
    parts: dict[str, Any] = {}
    for name, stored in header["parts"].items():
        kernel = kernels.get(name, settings["short_range"])
        if stored is None or kernel is None:
            parts[name] = None
            continue
        own = {key: value for key, value in stored.items() if key != "offsets"}
        own.setdefault("features", name)
        own["descriptor"] = _descriptor_settings(SOAPKernel(**kernel).descriptor())
        parts[name] = {"offsets": stored["offsets"], "kernels": [own]}
    header["parts"] = parts
    if header.get("posterior") is not None:
        known = dict(header["posterior"])
        for name in ("chi", "energy", "coupled"):
            if known.get(name) is not None:
                known[name] = {**known[name], "deltas": [known[name]["delta"]]}
        if "sites" in known:
            known["sites"] = {kind: [delta] for kind, delta in known["sites"].items()}
        if "remainder" in known:
            known["remainders"] = [known["remainder"]]
        header["posterior"] = known
    return _upgrade_posterior(header)


def _upgrade_posterior(header: dict[str, Any]) -> dict[str, Any]:
    """Names that the parts of a posterior once had; that of a charge-aware energy had a layout of its own."""
    known = header.get("posterior")
    if not isinstance(known, Mapping) or not {"chi", "coupled"} & known.keys():
        return header
    known = dict(known)
    if "coupled" in known:
        values = known["remainders"] * (header["charge_kernel"]["order"] + 1)
        known = {
            "noise": known["noise"],
            "chi": None,
            "energy": known["coupled"],
            "elements": None,
            "sites": {},
            "remainders": {f"energy {number}": value for number, value in enumerate(values, start=1)},
        }
    new = {"chi": "electronegativity", "energy": "short_range", "energy_first": "short_range_first"}
    renamed = {new.get(name, name): value for name, value in known.items()}
    renamed["remainders"] = {
        re.sub("^(chi|energy)\\b", lambda found: new[found[0]], name): value
        for name, value in known["remainders"].items()
    }
    return {**header, "posterior": renamed}


def _site_model(
    stored: Mapping[str, Any] | None,
    arrays: dict[str, Any],
    name: str,
    maps: dict[str, FeatureMap],
    networks: Networks,
) -> SiteModel | None:
    """The kernel model of one part; its features may be those of a kernel before, in ``maps``."""
    if stored is None:
        return None
    terms = []
    for number, kernel in enumerate(stored["kernels"], start=1):
        own = kernel_name(name, number)
        coefficients: dict[int, FloatArray] = {
            atomic_numbers[symbol]: arrays[f"{own}/{symbol}/coefficients"] for symbol in kernel["elements"]
        }
        home = kernel["features"]
        if home == own:
            maps[own] = _feature_map(kernel, arrays, own, networks)
        elif home not in maps:
            raise ValueError(f"{own} shares the features of {home}, which the file does not hold")
        feature_map = maps[home]
        for z, rows in feature_map.representatives.items():
            if coefficients[z].shape != (rows.shape[0],):
                raise ValueError(f"the arrays of {chemical_symbols[z]} in {own} do not fit together")
        terms.append((feature_map, coefficients))
    if not terms:
        raise ValueError(f"{name} has no kernel")
    return SiteModel(tuple(terms), _by_number(stored["offsets"]))


def _feature_map(
    stored: Mapping[str, Any], arrays: dict[str, Any], name: str, networks: Networks
) -> FeatureMap:
    representatives: dict[int, sparse.csr_array] = {}
    for symbol in stored["elements"]:
        prefix = f"{name}/{symbol}"
        representatives[atomic_numbers[symbol]] = sparse.csr_array(
            (arrays[f"{prefix}/data"], arrays[f"{prefix}/indices"], arrays[f"{prefix}/indptr"]),
            shape=(int(arrays[f"{prefix}/shape"][0]), int(arrays[f"{prefix}/shape"][1])),
        )
    species = tuple(int(z) for z in stored["species"])
    settings = dict(stored["descriptor"])
    condition = settings.pop("condition", None)
    descriptor: Descriptor
    if "network" in settings:
        scaling = Scaling(
            {z: arrays[f"{name}/{chemical_symbols[z]}/mean"] for z in representatives},
            {z: float(arrays[f"{name}/{chemical_symbols[z]}/spread"][0]) for z in representatives},
        )
        network = networks[settings["network"], settings["sha256"]]
        descriptor = NetworkFeatures(network, settings["charged"], scaling)
    else:
        merged = settings.pop("neighbours", ELEMENTS) == PERIODS
        descriptor = SOAPDescriptor(**settings)
        if merged:
            descriptor = Merged(descriptor)
    if condition is not None:
        descriptor = Conditioned(descriptor, condition)
    feature_map = FeatureMap(descriptor, float(stored["zeta"]), representatives, species)
    features = max(block.stop for block in feature_map.descriptor.block_slices(species).values())
    for z, rows in representatives.items():
        if z not in species or rows.shape[1] != features:
            raise ValueError(f"the arrays of {chemical_symbols[z]} in {name} do not fit together")
    return feature_map


__all__ = ["FORMAT", "VERSION", "Record", "damaged", "load_record", "save_record"]
