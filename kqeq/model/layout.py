"""What a model file may hold: tables of its header and arrays, and what has to agree among them.

Everything is checked here, before any of it is used.  To add a field, add a line to the table that it belongs to.
Settings that end as arguments of a constructor may have entries that no table names: the constructor refuses those that
it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from kqeq.baselines import CHARGE_FROM
from kqeq.charges.base import ENVIRONMENT_KINDS, SITE_KINDS
from kqeq.charges.recipe import KERNEL, LEARN, SOLVERS
from kqeq.charges.softness import pair_name
from kqeq.descriptors.merged import NEIGHBOURS
from kqeq.descriptors.networks.features import EXTRA
from kqeq.frames.states import CONDITIONS
from kqeq.io.schema import (
    ArrayField,
    Checker,
    SchemaError,
    anything,
    check_arrays,
    either,
    flag,
    mapping,
    number,
    optional,
    sequence,
    table,
    text,
)
from kqeq.kernels.charge_kernel import MAX_ORDER
from kqeq.kernels.settings import AUTO, SELECTIONS

PARTS = ("electronegativity", "short_range")

_SYMBOLS = tuple(chemical_symbols[1:])
_SYMBOL = text(_SYMBOLS)
_POSITIVE = number(low=1e-30)
_NOT_NEGATIVE = number(low=0.0)
_COUNT = number(low=0, high=1e15, whole=True)
_ENERGY = number(low=-1e15, high=1e15)
_FREE = number(infinite=True)

# ------------------------------------------------------------------ settings

_KERNEL = table(
    r_cut=number(low=0.1, high=100.0),
    n_max=number(low=1, high=100, whole=True),
    l_max=number(low=0, high=50, whole=True),
    sigma=number(low=1e-3, high=100.0),
    zeta=number(low=0.01, high=1000.0),
    n_representatives=optional(number(low=1, high=1e9, whole=True)),
    selection=text(SELECTIONS),
    delta=optional(_POSITIVE),
    smooth=text(),
    maybe={
        "weighting": optional(mapping(anything)),
        "condition": text(tuple(CONDITIONS)),
        "neighbours": text(NEIGHBOURS),
    },
    more=True,
)

_NAME = text(longest=200)
_HASH = text(longest=64)

_NETWORK_KERNEL = table(
    network=_NAME,
    sha256=_HASH,
    zeta=number(low=1.0, high=1000.0, whole=True),
    charged=flag,
    n_representatives=optional(number(low=1, high=1e9, whole=True)),
    selection=text(SELECTIONS),
    delta=optional(_POSITIVE),
    condition=optional(text(tuple(CONDITIONS))),
)

_ANY_KERNEL = either(_KERNEL, _NETWORK_KERNEL)

_KERNELS = either(_ANY_KERNEL, sequence(_ANY_KERNEL, shortest=1))
"""One kernel, or a sum of several."""

_ELEMENT_VALUES = optional(either(mapping(number(low=-1e6, high=1e6)), text((LEARN, KERNEL))))
_SOLVED: dict[str, Checker] = {"solver": text(SOLVERS), "accuracy": number(low=1e-11, high=1e-2)}

_CHARGES: dict[str, Checker] = {
    "QEq": table(
        model=text(),
        hardness=_ELEMENT_VALUES,
        width=_ELEMENT_VALUES,
        fragments=flag,
        maybe=_SOLVED,
        more=True,
    ),
    "ACKS2": table(
        model=text(),
        softness=_ELEMENT_VALUES,
        hardness=_ELEMENT_VALUES,
        width=_ELEMENT_VALUES,
        decay=number(low=-1e3, high=1e3),
        cutoff=number(low=1.0, high=100.0),
        reference_charges=optional(text()),
        maybe={
            **_SOLVED,
            "pair_softness": optional(
                either(mapping(either(number(low=0.0, high=1e6), text((LEARN,)))), text((LEARN,)))
            ),
        },
        more=True,
    ),
    "LatentCharges": table(
        model=text(),
        width=optional(mapping(number(low=-1e6, high=1e6))),
        fragments=flag,
        maybe=_SOLVED,
        more=True,
    ),
    "AtomicDipoles": table(
        model=text(),
        inner=optional(lambda value, place: _charge_model(value, place, inner=True)),
        polarizability=_ELEMENT_VALUES,
        damping=flag,
        more=True,
    ),
}


def _charge_model(value: Any, place: str, *, inner: bool = False) -> None:
    """Accept the settings of a charge model; of one without another inside where ``inner``."""
    table(model=text([name for name in _CHARGES if not (inner and name == "AtomicDipoles")]), more=True)(
        value, place
    )
    _CHARGES[value["model"]](value, place)


_SETTINGS = table(
    electronegativity=optional(either(_KERNELS, text([AUTO]))),
    short_range=optional(either(_KERNELS, text([AUTO]))),
    charges=optional(_charge_model),
    noise=optional(mapping(_POSITIVE)),
    targets=optional(either(text(), sequence(text()))),
    charges_key=optional(text()),
    label_prefix=text(),
    e0=optional(mapping(_ENERGY)),
    max_iterations=number(low=1, high=1e9, whole=True),
    maybe={
        "site_kernel": optional(_KERNELS),
        "solver": text(),
        "charge_aware": optional(anything),
        "charge_from": text(CHARGE_FROM),
        "optimize": optional(text()),
        "leave_out_failed": flag,
        "seed": number(low=0, whole=True),
    },
    more=True,
)

# -------------------------------------------------------------------- header

_ITERATION = table(
    number=_COUNT,
    loss=_FREE,
    decrement=_FREE,
    damping=_FREE,
    accepted=flag,
    maybe={"condition": _FREE, "method": text()},
)

_REPORT = table(
    n_frames=_COUNT,
    n_atoms=_COUNT,
    n_parameters=_COUNT,
    n_residuals=_COUNT,
    used=mapping(_COUNT),
    ignored=mapping(text()),
    representatives=mapping(mapping(_COUNT)),
    iterations=sequence(_ITERATION),
    converged=flag,
    loss=_FREE,
    seconds=_FREE,
    notes=sequence(text()),
    maybe={
        "learned": mapping(table(default=_FREE, value=_FREE, error=_FREE)),
        "errors": mapping(
            mapping(
                table(
                    rmse=_FREE,
                    mae=_FREE,
                    unit=text(),
                    n=_COUNT,
                    maybe={"mae_norm": _FREE, "calibration": mapping(_FREE)},
                )
            )
        ),
    },
)

_DESCRIPTOR = table(
    r_cut=number(low=0.1, high=100.0),
    n_max=number(low=1, high=100, whole=True),
    l_max=number(low=0, high=50, whole=True),
    sigma=number(low=1e-3, high=100.0),
    smooth=text(),
    maybe={
        "weighting": mapping(anything),
        "condition": text(tuple(CONDITIONS)),
        "neighbours": text(NEIGHBOURS),
    },
)

_NETWORK = table(network=_NAME, sha256=_HASH, charged=flag, maybe={"condition": text(tuple(CONDITIONS))})

_TERM = table(
    features=text(),
    descriptor=either(_DESCRIPTOR, _NETWORK),
    zeta=number(low=0.01, high=1000.0),
    species=sequence(number(low=1, high=len(_SYMBOLS), whole=True), shortest=1, distinct=True),
    elements=sequence(_SYMBOL, shortest=1, distinct=True),
)

_PART = table(offsets=mapping(_ENERGY, _SYMBOLS), kernels=sequence(_TERM, shortest=1))

_PRIOR = optional(
    table(
        deltas=sequence(_NOT_NEGATIVE),
        mean=mapping(_ENERGY, _SYMBOLS),
        spread=_NOT_NEGATIVE,
        # the first in files of version 1
        maybe={
            "delta": _NOT_NEGATIVE,
            "scales": mapping(_POSITIVE, _SYMBOLS),
            "held": optional(sequence(sequence(_ENERGY))),
        },
    ),
)

_PAIR_NAMES = tuple(map(pair_name, combinations_with_replacement(range(1, len(_SYMBOLS) + 1), 2)))

_ELEMENT_PRIOR = table(
    kinds=sequence(text(SITE_KINDS)),
    elements=sequence(either(_SYMBOL, text(_PAIR_NAMES))),
    start=sequence(number(low=0.0)),
    spread=sequence(_NOT_NEGATIVE),
)

_POSTERIOR = table(
    noise=mapping(_POSITIVE),
    electronegativity=_PRIOR,
    short_range=_PRIOR,
    elements=optional(_ELEMENT_PRIOR),
    sites=mapping(sequence(_NOT_NEGATIVE), ENVIRONMENT_KINDS),
    remainders=mapping(_NOT_NEGATIVE),
    # not in files of version 1
    maybe={"short_range_first": flag, "factors": mapping(table(scale=_POSITIVE, missed=_NOT_NEGATIVE))},
)

_HEADER = table(
    format=text(),
    version=_COUNT,
    kqeq=text(),
    settings=_SETTINGS,
    charges_key=optional(text()),
    species=sequence(_SYMBOL, shortest=1, distinct=True),
    energy_offsets=mapping(_ENERGY, _SYMBOLS),
    training_charges=sequence(number(low=-1e6, high=1e6), shortest=1, distinct=True),
    has_energy=flag,
    baseline=optional(text()),
    charges=optional(_charge_model),
    parts=mapping(optional(_PART)),
    report=_REPORT,
    maybe={
        "baseline_given": optional(text()),
        "sites": sequence(text(ENVIRONMENT_KINDS), distinct=True),
        "charge_kernel": optional(
            table(order=number(low=1, high=MAX_ORDER, whole=True), scale=number(low=1e-6, high=1e6))
        ),
        "posterior": optional(_POSTERIOR),
        "known_states": mapping(
            mapping(sequence(number(low=-1e6, high=1e6), shortest=1, distinct=True), _SYMBOLS),
            ("spin", "charge"),
        ),
        "descriptors": table(version=number(low=1, high=1e6, whole=True)),
        "charged_sizes": sequence(number(low=1, high=1e9, whole=True), distinct=True),
    },
)

# -------------------------------------------------------------------- arrays

_LARGEST_COEFFICIENT = 1e20

_COEFFICIENTS = (
    ArrayField(
        "{part}/{element}/coefficients",
        "float",
        ("rows",),
        low=-_LARGEST_COEFFICIENT,
        high=_LARGEST_COEFFICIENT,
    ),
)

_REPRESENTATIVES = (
    ArrayField("{part}/{element}/shape", "int", (2,), low=1),
    ArrayField("{part}/{element}/data", "float", ("nonzero",), low=-1.001, high=1.001),
    ArrayField("{part}/{element}/indices", "int", ("nonzero",), low=0, below="features"),
    ArrayField("{part}/{element}/indptr", "int", ("rows+1",), low=0, offsets="nonzero"),
)

_SCALING = (
    ArrayField("{part}/{element}/mean", "float", ("network",), low=-1e12, high=1e12),
    ArrayField("{part}/{element}/spread", "float", (1,), low=1e-12, high=1e12),
)
"""Of features of networks."""

_DETERMINATION_ARRAYS = (
    ArrayField("determination/covariance", "float", ("means", "means")),
    ArrayField("determination/prior", "float", ("means", "means")),
)

_POSTERIOR_ARRAYS = (
    ArrayField("posterior/u", "float", ("parameters",)),
    ArrayField("posterior/lower", "float", ("parameters", "parameters")),
)


def network_names(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and hashes of the networks whose features a model uses."""
    found: dict[tuple[str, str], None] = {}
    for part in header["parts"].values():
        for term in () if part is None else part["kernels"]:
            own = term["descriptor"]
            if "network" in own:
                found[own["network"], own["sha256"]] = None
    return list(found)


def power_names(order: int) -> tuple[str, ...]:
    """Names of the parts of a charge-aware short-range energy beyond the first."""
    return tuple(f"power{b}" for b in range(1, order + 1))


def kernel_name(part: str, number: int) -> str:
    """Name of the arrays of a kernel of a part; numbers start at 1."""
    return part if number == 1 else f"{part}.{number}"


def check_model(header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Check a whole model file.

    Parameters
    ----------
    header : mapping
    arrays : mapping of str to array

    Raises
    ------
    SchemaError
        Naming the first place that is wrong.
    """
    _HEADER(header, "header")
    species, parts = header["species"], header["parts"]
    numbers = [chemical_symbols.index(symbol) for symbol in species]
    _agree(numbers == sorted(numbers), "header.species is not in ascending order")
    _agree(set(header["energy_offsets"]) == set(species), "header.energy_offsets does not name all species")
    kinds, aware = header.get("sites", []), header.get("charge_kernel")
    expected = [*PARTS, *kinds, *(() if aware is None else power_names(aware["order"]))]
    _agree(set(parts) == set(expected), f"header.parts names {sorted(parts)}, expected {sorted(expected)}")
    _agree(all(parts[name] is not None for name in expected[2:]), "a part of the model is empty")
    _agree(
        (parts["electronegativity"] is None) == (header["charges"] is None),
        "the model has electronegativities without charges, or charges without electronegativities",
    )
    _agree(any(parts[name] is not None for name in PARTS), "the model has no part at all")
    on_baseline = aware is not None and header["baseline"] is not None  # its charges may be all there are
    _agree(
        header["charges"] is not None or not (kinds or (aware and not on_baseline)),
        "the model lacks the charges of its parts",
    )
    _agree(aware is None or parts["short_range"] is not None, "the model lacks its short-range energy")
    for name in (*PARTS, "charges"):
        stored = header["charges"] if name == "charges" else parts[name]
        given = header["settings"][name]
        # kernels that the fit chooses may be none: of a short-range energy where there are no energies
        _agree(
            (stored is None) == (given is None) or (stored is None and isinstance(given, str)),
            f"settings and content differ in {name}",
        )
    used: set[str] = set()
    before: set[str] = set()
    for name in expected:
        if parts[name] is not None:
            _check_part(name, header, arrays, used, before)
    if any(name.startswith("determination/") for name in arrays):  # files of version 1 have none
        check_arrays(_DETERMINATION_ARRAYS, arrays, used, {"means": 2 * len(species)})
        for name in ("covariance", "prior"):
            values = arrays[f"determination/{name}"]
            largest = float(np.abs(values).max())
            good = (
                largest < 1e20
                and float(np.linalg.eigvalsh(0.5 * (values + values.T))[0]) > -1e-6 * largest - 1e-12
            )
            _agree(good, f"determination/{name} is no covariance")
    if header.get("posterior") is not None:
        check_arrays(_POSTERIOR_ARRAYS, arrays, used)
        _agree(
            bool((np.diagonal(arrays["posterior/lower"]) > 0).all()), "posterior/lower is no Cholesky factor"
        )
    unknown = sorted(set(arrays) - used)
    _agree(not unknown, f"the arrays {[name[:100] for name in unknown[:3]]} belong to no part of the model")


def _check_part(
    name: str, header: Mapping[str, Any], arrays: Mapping[str, Any], used: set[str], before: set[str]
) -> None:
    """Check the kernels of one part of a model; their features may be those of kernels ``before``."""
    part, species = header["parts"][name], header["species"]
    numbers = [chemical_symbols.index(symbol) for symbol in species]
    _agree(
        set(part["offsets"]) == set(species),
        f"header.parts.{name}.offsets does not name the species of the model",
    )
    for position, term in enumerate(part["kernels"], start=1):
        own, home = kernel_name(name, position), term["features"]
        place = f"header.parts.{name}.kernels[{position - 1}]"
        for key, found, wanted in (
            ("elements", set(term["elements"]), set(species)),
            ("species", term["species"], numbers),
        ):
            _agree(found == wanted, f"{place}.{key} does not name the species of the model")
        _agree(
            home == own or home in before,
            f"{place} shares the features of {home!r}, which the file does not hold",
        )
        for element in term["elements"]:
            names = {"part": home, "element": element}
            check_arrays(_REPRESENTATIVES[:1], arrays, used, **names)
            shape = arrays[f"{home}/{element}/shape"]
            dimensions = {"rows": int(shape[0]), "features": int(shape[1])}
            check_arrays(_COEFFICIENTS, arrays, used, dimensions, part=own, element=element)
            if home == own:
                check_arrays(_REPRESENTATIVES[1:], arrays, used, dimensions, **names)
                _check_rows(arrays, f"{home}/{element}", dimensions["features"])
                if "network" in term["descriptor"]:
                    check_arrays(_SCALING, arrays, used, {"network": dimensions["features"] - EXTRA}, **names)
        before.add(own)


def _check_rows(arrays: Mapping[str, Any], prefix: str, features: int) -> None:
    """No column may occur twice in a row of a sparse matrix."""
    indices, indptr = arrays[f"{prefix}/indices"].astype(np.int64), arrays[f"{prefix}/indptr"]
    keys = indices + features * np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    rising = len(keys) < 2 or bool((np.diff(keys) > 0).all())
    _agree(rising or len(np.unique(keys)) == len(keys), f"{prefix}/indices names a column of a row twice")


def _agree(good: bool, problem: str) -> None:
    if not good:
        raise SchemaError(problem)


__all__ = ["PARTS", "check_model", "kernel_name", "network_names", "power_names"]
