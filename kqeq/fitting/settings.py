"""What a fit is asked to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kqeq.backend import CPU, Device
from kqeq.baselines import CHARGE_FROM, Baseline
from kqeq.charges import AtomicDipoles, LatentCharges
from kqeq.charges.base import ChargeModel
from kqeq.charges.site_values import CHARGE
from kqeq.errors import InputError
from kqeq.fitting.least_squares.equations import SOLVERS
from kqeq.fitting.rows.blocks import BLOCKS
from kqeq.frames.labels import Labels
from kqeq.frames.structures import Structure
from kqeq.io.rules import (
    NAME,
    NOTHING,
    TEXT,
    Rule,
    check_values,
    choice,
    instance,
    number,
    protocol,
    sequence,
    unknown_name,
    whole,
)
from kqeq.kernels.charge_kernel import ChargeKernel
from kqeq.kernels.settings import (
    AUTO,
    AUTOMATIC_TOTAL,
    DEFAULT_REPRESENTATIVES,
    DIPOLES_EACH,
    DIPOLES_TOTAL,
    Kernels,
    NetworkKernel,
    SOAPKernel,
    automatic_dipoles,
    automatic_electronegativity,
    automatic_latent,
    farther,
)
from kqeq.potential.on_baseline import sees_baseline

_DEVIATION = number(above=0)

_ONE = instance(
    (SOAPKernel, NetworkKernel), "settings of a kernel, kqeq.SOAPKernel(...) or kqeq.NetworkKernel(...)"
)

_KERNEL = _ONE | sequence(_ONE, "a list of them, which are summed")

_CHARGES = protocol(
    ("bind", "check_settings", "check_structure", "site_parameters"),
    "a charge model, for example kqeq.QEq() or kqeq.ACKS2()",
)

RULES: Mapping[str, Rule] = {
    "electronegativity": _KERNEL | choice(AUTO) | NOTHING,
    "short_range": _KERNEL | choice(AUTO) | NOTHING,
    "site_kernel": _KERNEL | NOTHING,
    "charges": _CHARGES | NOTHING,
    "charge_aware": instance(ChargeKernel, "kqeq.ChargeKernel(...)") | NOTHING,
    "targets": NAME | sequence(NAME, 'a list of label kinds, for example ["energy", "forces"]') | NOTHING,
    "charge_from": choice(*CHARGE_FROM),
    "charges_key": NAME | NOTHING,
    "label_prefix": TEXT,
    "max_iterations": whole(minimum=1),
    "solver": choice(*SOLVERS),
    "optimize": choice(AUTO, "left-out", "evidence") | NOTHING,
    "seed": whole(minimum=0),
}
"""Settings of a fit, and of the estimator, by name; noise has a check of its own (:func:`check_noise`)."""

FARTHER_ATOMS = 40
"""Molecules up to this size may have an energy that reaches 8 Å (:func:`with_reach`)."""

DEFAULT_NOISE: Mapping[str, float] = {
    "energy": 1e-3,
    "forces": 0.03,
    "stress": 1e-3,
    "dipole": 0.01,
    "charges": 0.02,
    "polarizability": 0.005,
    "born_charges": 0.03,
}
"""Standard deviations of the labels: eV/atom, eV/Å, eV/Å³, e·Å, e, e²·Å²/eV, e."""


@dataclass(frozen=True)
class FitSettings:
    """What a fit is asked to do; validated by :func:`check_settings`.

    Attributes
    ----------
    electronegativity : tuple of kernels or None
        Kernels that are summed.
    short_range : tuple of kernels or None
    charges : ChargeModel or None
    baseline : Baseline or None
    noise : mapping of str to float
        Standard deviation by label kind.
    targets : tuple of str or None
        Label kinds to fit; ``None`` takes all that are present except partition charges.
    e0 : mapping of int to float or None
        Energies of elements, eV; ``None`` fits them.
    max_iterations : int
    optimize : "left-out", "evidence" or None
        What noises and prior spreads are learned by; ``None`` keeps the given ones.
    held : tuple of str
        Label kinds whose noise is not learned.
    automatic : tuple of str
        Which kernels, and whether the charge model, are not the user's (``electronegativity``, ``short_range``,
        ``charges``): that there are fewer environments than representatives is no news then.
    representatives_each, representatives_total : int
        Most representatives of an element, and of all elements together, in kernels that are not the user's.
    site_kernel : tuple of kernels or None
        For site parameters that depend on the environment; ``None`` shares the features of the electronegativity.
    may_reach : bool
        Whether the search chooses between the first two kernels of the energy (:func:`with_reach`).
    solver : {"auto", "cholesky", "qr"}
        How the linear problem of each step is solved (:mod:`kqeq.fitting.least_squares.equations`).
    charge_aware : ChargeKernel or None
        How the short-range energy depends on charges.
    leave_out_failed : bool
        Leave out frames whose baseline does not converge, instead of refusing.
    seed : int
        Of everything that is drawn or shuffled.
    device : Device
        Where to compute; results do not depend on it.
    """

    electronegativity: Kernels | None
    short_range: Kernels | None
    charges: ChargeModel | None
    baseline: Baseline | None = None
    noise: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_NOISE))
    targets: tuple[str, ...] | None = None
    e0: Mapping[int, float] | None = None
    max_iterations: int = 30
    optimize: str | None = None
    held: tuple[str, ...] = ()
    automatic: tuple[str, ...] = ()
    representatives_each: int = DEFAULT_REPRESENTATIVES
    representatives_total: int = AUTOMATIC_TOTAL
    site_kernel: Kernels | None = None
    charge_aware: ChargeKernel | None = None
    may_reach: bool = False
    solver: str = "auto"
    leave_out_failed: bool = False
    seed: int = 0
    device: Device = CPU


def wanted_labels(settings: FitSettings) -> tuple[str, ...]:
    """Kinds of labels that these settings would be fitted to if frames had them, but for those of special fits."""
    if settings.targets is not None:
        return tuple(settings.targets)
    energies = () if settings.short_range is None else ("energy", "forces", "stress")
    return energies + (() if settings.charges is None else ("dipole",))


def dipoles_alone(settings: FitSettings, labels: Iterable[Labels]) -> bool:
    """Whether dipoles, and Born charges, are all that these settings will be fitted to."""
    kinds = {kind for own in labels for kind in own.kinds}
    if settings.targets is None:
        kinds -= {"charges"}  # fitted on request only
    else:
        kinds &= set(settings.targets)
    if settings.charges is None or not settings.charges.to_learn:
        kinds -= {"polarizability"}
    return "dipole" in kinds and kinds <= {"dipole", "born_charges"}


def for_dipoles(settings: FitSettings) -> FitSettings:
    """Settings of a fit to dipoles alone: kernels, and the charge model, that nobody chose are those that suit it.

    Charges of an electronegativity model come from one hardness, which has to be right for the response as well; dipoles
    alone ask for charges that are functions of the environment, polarised by each other through atomic dipoles.  On a
    baseline, which has a response of its own, charges alone.
    """
    if settings.charges is None or "electronegativity" not in settings.automatic:
        return settings
    charges = settings.charges
    if "charges" in settings.automatic:
        polarised = settings.baseline is not None and settings.baseline.capabilities.dipole
        charges = LatentCharges() if polarised else AtomicDipoles(LatentCharges())
    return replace(
        settings,
        charges=charges,
        electronegativity=automatic_dipoles(),
        representatives_each=DIPOLES_EACH,
        representatives_total=DIPOLES_TOTAL,
    )


def automatic_charge_kernels(charges: ChargeModel) -> Kernels:
    """Kernels, where nobody chose any, of what a charge model takes from the environment."""
    return automatic_latent() if charges.quantity == CHARGE else automatic_electronegativity()


def with_charges(settings: FitSettings, charges: ChargeModel) -> FitSettings:
    """The same with another charge model, and kernels that suit it if nobody chose any."""
    now = settings.charges
    if "electronegativity" in settings.automatic and (now is None or now.quantity != charges.quantity):
        settings = replace(settings, electronegativity=automatic_charge_kernels(charges))
    return replace(settings, charges=charges)


def with_reach(settings: FitSettings, structures: Iterable[Structure]) -> FitSettings:
    """Settings whose search may take a farther kernel of the energy: molecules of :data:`FARTHER_ATOMS` atoms at most.

    Cells have hundreds of neighbours that far, and larger molecules did not gain by it (dipeptides).
    """
    searches = settings.optimize == "left-out" and "short_range" in settings.automatic
    if not searches or settings.short_range is None:
        return settings
    if any(s.periodic or len(s) > FARTHER_ATOMS for s in structures):
        return settings
    return replace(settings, short_range=farther(settings.short_range), may_reach=True)


def complete_noise(noise: Mapping[str, float] | None) -> dict[str, float]:
    """Standard deviations of all label kinds; defaults where none are given.

    Raises
    ------
    InputError
        For anything but a mapping, and for unknown kinds.
    """
    check_noise(noise)
    # a NumPy scalar of lower precision would spread its precision through the fit
    return {**DEFAULT_NOISE, **{kind: float(value) for kind, value in (noise or {}).items()}}


def check_noise(noise: Any) -> None:
    """Refuse standard deviations that make no sense.

    Raises
    ------
    InputError
    """
    rule = instance(Mapping, "a dict of standard deviations by label kind") | NOTHING
    rule.require(noise, "KQEq(noise=...)")
    for kind, value in (noise or {}).items():
        if kind not in DEFAULT_NOISE:
            raise unknown_name(kind, DEFAULT_NOISE, "noise for unknown label kind")
        remedy = "it is the size of the errors that the fit should tolerate"
        _DEVIATION.require(value, f'noise["{kind}"]', remedy)


def check_settings(settings: FitSettings) -> None:
    """Validate settings that do not depend on frames.

    Raises
    ------
    InputError
    """
    check_values("KQEq", {name: getattr(settings, name) for name in RULES if hasattr(settings, name)}, RULES)
    for kernels in (settings.electronegativity, settings.short_range, settings.site_kernel):
        for kernel in kernels or ():
            kernel.check()
    if settings.charges is not None:
        settings.charges.check_settings()
    _check_parts(settings)
    if settings.charge_aware is not None:
        settings.charge_aware.check()
        _check_charge_aware(settings)
    check_noise(settings.noise)
    _check_targets(settings)


def _check_parts(settings: FitSettings) -> None:
    """Refuse kernels and charge models that do not make a model together."""
    if (settings.electronegativity is None) != (settings.charges is None):
        given, missing = (
            ("charges", "electronegativity")
            if settings.electronegativity is None
            else ("electronegativity", "charges")
        )
        raise InputError(
            f"{given} was given but {missing} is None; a charge model needs both, and a short-range model neither "
            "(electronegativity=None, charges=None)"
        )
    if settings.charges is None and settings.short_range is None:
        raise InputError("there is nothing to fit: charges and short_range are both None")
    depends = settings.charges is not None and settings.charges.environment
    if settings.site_kernel is not None and not depends:
        raise InputError(
            "site_kernel was given, but no parameter of the charge model depends on the environment; mark some with "
            '"kernel", for example charges=kqeq.QEq(hardness="kernel"), or leave site_kernel=None'
        )


def _check_charge_aware(settings: FitSettings) -> None:
    """Refuse an energy that is to see charges where there are none."""
    baseline = settings.baseline
    on_baseline = sees_baseline(baseline, True)
    if (settings.charges is None and not on_baseline) or settings.short_range is None:
        raise InputError(
            "charge_aware makes the short-range energy depend on charges, but the model has no "
            f"{'short-range energy' if settings.short_range is None else 'charges'}: charges and short_range may "
            "not be None with it"
        )
    if baseline is not None and baseline.capabilities.holds_charge and not on_baseline:
        raise InputError(
            f"charge_aware lets the short-range energy tell charge states apart, but the baseline {baseline.name} "
            "holds the total charge and gives no charges of atoms; leave charge_aware out, or let the model carry the "
            'charge: charge_from="model"'
        )


def _check_targets(settings: FitSettings) -> None:
    """Refuse labels that do not exist, or that nothing in the model can follow."""
    learns = settings.charges is not None and bool(settings.charges.to_learn)
    for kind in settings.targets or ():
        if kind not in BLOCKS:
            raise unknown_name(kind, BLOCKS, "targets holds")
        if kind == "polarizability" and not learns:
            raise InputError(
                "targets holds 'polarizability', which no parameter of this fit changes: electronegativities do not "
                'determine it. Mark element parameters with "learn", for example charges=kqeq.AtomicDipoles('
                'kqeq.ACKS2(softness="learn"), polarizability="learn"), or leave it out'
            )


__all__ = [
    "DEFAULT_NOISE",
    "RULES",
    "FitSettings",
    "check_noise",
    "check_settings",
    "complete_noise",
    "dipoles_alone",
    "for_dipoles",
    "wanted_labels",
]
