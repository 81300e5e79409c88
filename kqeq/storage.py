"""The model file: one ZIP archive of a JSON header and plain arrays, versioned, no pickle, written atomically.

Layout, version 1::

    header.json          format, version, library version, settings, element offsets, report
    <part>/<Z>/data|indices|indptr    representatives of one element, sparse rows (part: chi, short_range)
    <part>/<Z>/coefficients           kernel coefficients
    posterior/lower                   optional: Cholesky factor of the posterior precision

The training set is not stored.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from scipy import sparse

from kqeq import __version__
from kqeq.atomic_write import atomic_path
from kqeq.baseline import Baseline, resolve_baseline
from kqeq.charges import charge_model_from_dict
from kqeq.errors import InputError, ModelFileError
from kqeq.estimator import KQEq
from kqeq.fitting.report import FitReport
from kqeq.fitting.solver import Iteration
from kqeq.kernels import FeatureMap, SOAPKernel
from kqeq.potential import Potential, SiteModel
from kqeq.typing import FloatArray

FORMAT = "kqeq-model"
VERSION = 1
PARTS = ("electronegativity", "short_range")


def save_model(model: KQEq, path: str | PathLike[str], *, posterior: bool = False) -> None:
    """Write a fitted model; see :meth:`kqeq.KQEq.save`."""
    potential = model._fitted()
    arrays: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    for name in PARTS:
        part: SiteModel | None = getattr(potential, name)
        if part is None:
            parts[name] = None
            continue
        feature_map = part.feature_map
        parts[name] = {
            "zeta": feature_map.zeta,
            "species": list(feature_map.species),
            "offsets": _by_symbol(part.offsets),
            "elements": [chemical_symbols[z] for z in feature_map.representatives],
        }
        for z, rows in feature_map.representatives.items():
            prefix = f"{name}/{chemical_symbols[z]}"
            arrays[f"{prefix}/data"] = rows.data
            arrays[f"{prefix}/indices"] = rows.indices
            arrays[f"{prefix}/indptr"] = rows.indptr
            arrays[f"{prefix}/shape"] = np.array(rows.shape)
            arrays[f"{prefix}/coefficients"] = part.coefficients[z]
    if posterior:
        result = getattr(model, "result_", None)
        if result is None:
            raise InputError(
                "posterior=True, but this model was loaded from a file and holds no posterior; fit it again to store one"
            )
        arrays["posterior/lower"] = result.solution.lower
        arrays["posterior/u"] = result.solution.u
    header = {
        "format": FORMAT,
        "version": VERSION,
        "kqeq": __version__,
        "settings": _settings(model),
        "charges_key": model.charges_key_,
        "species": [chemical_symbols[z] for z in potential.species],
        "energy_offsets": _by_symbol(potential.energy_offsets),
        "training_charges": list(potential.training_charges),
        "has_energy": potential.has_energy,
        "baseline": None if potential.baseline is None else potential.baseline.name,
        "parts": parts,
        "report": asdict(model.fit_report_),
    }
    text = json.dumps(header, indent=1, ensure_ascii=False, default=_plain)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_member("header.json"), text)
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(_member(f"{name}.npy"), buffer.getvalue())


def load_model(path: str | PathLike[str], *, baseline: Any = None) -> KQEq:
    """Read a model file.

    Parameters
    ----------
    path : path-like
    baseline : ase calculator, optional
        Needed if the model was fitted on top of a calculator: calculators are not stored.

    Returns
    -------
    KQEq
        Fitted; predicts bit for bit what the saved model predicted.

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, damaged, no model file, or from a newer version of the package.
    InputError
        If the baseline calculator is missing or is not the kind the model was fitted with.
    """
    source = Path(path)
    try:
        with zipfile.ZipFile(source) as archive:
            names = set(archive.namelist())
            if "header.json" not in names:
                raise ModelFileError(f"{source} is a ZIP archive but no kqeq model (it has no header.json)")
            header = json.loads(archive.read("header.json"))
            _check_header(header, source)
            arrays = {
                name.removesuffix(".npy"): _read_array(archive, name)
                for name in names
                if name.endswith(".npy")
            }
    except FileNotFoundError:
        raise ModelFileError(f"there is no model file {source}") from None
    except IsADirectoryError:
        raise ModelFileError(f"{source} is a folder, not a model file") from None
    except (zipfile.BadZipFile, EOFError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelFileError(
            f"{source} is no kqeq model file, or is truncated or damaged ({error}); copy it again, or save the "
            "model again with model.save(path)"
        ) from None
    except ModelFileError:
        raise
    except OSError as error:
        raise ModelFileError(f"cannot read the model file {source}: {error.strerror or error}") from None
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or a compression that Python lacks
        raise ModelFileError(f"{source} is no kqeq model file ({error})") from None
    spec, resolved = _baseline(header.get("baseline"), baseline)
    try:
        return _build(header, arrays, spec, resolved)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ModelFileError(
            f"{source} lacks a part of the model or holds a wrong one ({error!r}); it is damaged: copy it again, or "
            "save the model again with model.save(path)"
        ) from None


def _member(name: str) -> zipfile.ZipInfo:
    """A member with a fixed date, so that equal models give equal files."""
    return zipfile.ZipInfo(name, date_time=(2020, 1, 1, 0, 0, 0))


def _read_array(archive: zipfile.ZipFile, name: str) -> Any:
    try:
        return np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
    except ValueError as error:
        raise ModelFileError(
            f"{archive.filename}: the array {name} cannot be read ({error}); files with pickled objects are refused "
            "because they can run code"
        ) from None


def _check_header(header: Any, source: Path) -> None:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ModelFileError(f"{source} is no kqeq model file (its header does not say so)")
    version = header.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ModelFileError(
            f"{source} has file version {version}, written by kqeq {header.get('kqeq')}; this is kqeq {__version__}, "
            f"which reads versions up to {VERSION}. Upgrade with pip install --upgrade kqeq"
        )


def _by_symbol(values: Mapping[int, float]) -> dict[str, float]:
    return {chemical_symbols[z]: float(value) for z, value in values.items()}


def _by_number(values: Mapping[str, float]) -> dict[int, float]:
    return {atomic_numbers[symbol]: float(value) for symbol, value in values.items()}


def _plain(value: Any) -> Any:
    """What JSON does not know: numbers of NumPy (from a grid search, for example) and read-only mappings."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} cannot be stored in a model file")


def _settings(model: KQEq) -> dict[str, Any]:
    """Constructor arguments as plain data."""
    settings = model.get_params(deep=False)
    settings.pop("baseline")
    for name in ("electronegativity", "short_range", "charges"):
        settings[name] = None if settings[name] is None else settings[name].to_dict()
    if settings["targets"] is not None and not isinstance(settings["targets"], str):
        settings["targets"] = list(settings["targets"])
    return dict(settings)


def _build(header: dict[str, Any], arrays: dict[str, Any], spec: Any, resolved: Baseline | None) -> KQEq:
    settings = dict(header["settings"])
    for name in ("electronegativity", "short_range"):
        settings[name] = None if settings[name] is None else SOAPKernel(**settings[name])
    settings["charges"] = None if settings["charges"] is None else charge_model_from_dict(settings["charges"])
    model = KQEq(**settings, baseline=spec)
    potential = Potential(
        species=tuple(atomic_numbers[symbol] for symbol in header["species"]),
        energy_offsets=_by_number(header["energy_offsets"]),
        electronegativity=_site_model(header, arrays, "electronegativity", model.electronegativity),
        charges=model.charges,
        short_range=_site_model(header, arrays, "short_range", model.short_range),
        baseline=resolved,
        training_charges=tuple(header["training_charges"]),
        has_energy=header["has_energy"],
    )
    report = dict(header["report"])
    report["iterations"] = tuple(Iteration(**row) for row in report["iterations"])
    report["notes"] = tuple(report["notes"])
    model._set_fitted(potential, FitReport(**report), header["charges_key"])
    return model


def _baseline(name: str | None, given: Any) -> tuple[Any, Baseline | None]:
    if name is None:
        if given is not None:
            raise InputError("a baseline was given, but the model was fitted without one")
        return None, None
    spec = given if given is not None else (name if name.partition(":")[0] == "zbl" else None)
    if spec is None:
        raise InputError(
            f"the model was fitted on top of the calculator {name}, which the file does not hold; "
            "pass it: kqeq.load(path, baseline=calculator)"
        )
    resolved = resolve_baseline(spec)
    if resolved is not None and resolved.name != name:
        raise InputError(f"the model was fitted on top of {name}, but the baseline given is {resolved.name}")
    return spec, resolved


def _site_model(
    header: dict[str, Any], arrays: dict[str, Any], name: str, kernel: SOAPKernel | None
) -> SiteModel | None:
    stored = header["parts"][name]
    if stored is None or kernel is None:
        return None
    representatives: dict[int, sparse.csr_array] = {}
    coefficients: dict[int, FloatArray] = {}
    for symbol in stored["elements"]:
        prefix = f"{name}/{symbol}"
        z = atomic_numbers[symbol]
        representatives[z] = sparse.csr_array(
            (arrays[f"{prefix}/data"], arrays[f"{prefix}/indices"], arrays[f"{prefix}/indptr"]),
            shape=(int(arrays[f"{prefix}/shape"][0]), int(arrays[f"{prefix}/shape"][1])),
        )
        coefficients[z] = arrays[f"{prefix}/coefficients"]
    species = tuple(int(z) for z in stored["species"])
    feature_map = FeatureMap(kernel.descriptor(), float(stored["zeta"]), representatives, species)
    features = max(block.stop for block in feature_map.descriptor.block_slices(species).values())
    for z, rows in representatives.items():
        if z not in species or rows.shape[1] != features or coefficients[z].shape != (rows.shape[0],):
            raise ValueError(f"the arrays of {chemical_symbols[z]} in {name} do not fit together")
    return SiteModel(feature_map, coefficients, _by_number(stored["offsets"]))


__all__ = ["FORMAT", "VERSION", "load_model", "save_model"]
