"""Settings of a kernel on descriptors of environments, and their defaults."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sklearn.base import BaseEstimator

from kqeq.descriptors.base import Descriptor
from kqeq.descriptors.conditioned import Conditioned
from kqeq.descriptors.merged import ELEMENTS, NEIGHBOURS, PERIODS, Merged
from kqeq.descriptors.networks import NetworkFeatures, resolve_network
from kqeq.descriptors.soap.descriptor import SOAPDescriptor
from kqeq.descriptors.soap.weighting import Weighting
from kqeq.frames.states import CONDITIONS
from kqeq.frames.structures import Structure
from kqeq.io.rules import FLAG, NOTHING, Rule, check_settings, choice, number, whole

DEFAULT_REPRESENTATIVES = 300
"""Representatives per element where none are asked for."""

AUTOMATIC_TOTAL = 1000
"""Representatives of all elements together in a kernel that nobody has chosen, as far as that is less."""

DIPOLES_EACH, DIPOLES_TOTAL = 500, 2000
"""The same for each element, and of all together, where nothing but dipoles is fitted: labels are few."""

SELECTIONS = ("fps", "cur", "leverage", "gradients")
"""Ways to choose representative environments."""


_RULES: Mapping[str, Rule] = {
    "zeta": number(minimum=1),
    "n_representatives": whole(minimum=1) | NOTHING,
    "selection": choice(*SELECTIONS),
    "delta": number(above=0) | NOTHING,
    "condition": choice(*CONDITIONS) | NOTHING,
}
"""Those of the descriptor are in its own module."""


class SOAPKernel(BaseEstimator):  # type: ignore[misc]
    """Settings of a kernel on SOAP descriptors.

    Parameters
    ----------
    r_cut : float
        Cutoff radius, Å.
    n_max, l_max : int
        Radial and angular basis size of :class:`dscribe.descriptors.SOAP` (``rbf="gto"``).
    sigma : float
        Width of the Gaussians that smear the atoms, Å.
    zeta : float
        Power of the normalised dot product; larger is more selective.
    n_representatives : int, optional
        Representative environments **per element**.  ``None`` takes up to 300, as many as there are; a number
        that exceeds the distinct environments of the training frames is met with a warning.
    selection : {"fps", "cur", "leverage", "gradients"}
        Farthest-point sampling, CUR decomposition, random choice in proportion to leverage scores (seeded), or the
        greedy choice of those that explain most of the variance of gradients, for forces.
    delta : float, optional
        Prior standard deviation of the modelled quantity (eV/e for electronegativities, eV per atom for
        the short-range energy).  ``None`` takes the default of the role.
    smooth : {"none", "switch"}
        Treatment of the outer cutoff; see :class:`kqeq.descriptors.soap.SOAPDescriptor`.
    weighting : dict, optional
        Radial weighting of neighbours with the settings of :class:`dscribe.descriptors.SOAP`, for example
        ``{"function": "pow", "r0": 2.0, "c": 1.0, "d": 1.0, "m": 4.0}``: those that are near count more.
    condition : {"spin", "spin^2", "charge", "charge^2"}, optional
        Multiplies the kernel with the number of unpaired electrons, or with the charge, of the atom's fragment, or
        with its
        square (:mod:`kqeq.frames.states`): in a sum with a kernel without condition, what the state changes.
    neighbours : {"elements", "periods"}
        What neighbours are told apart by.  ``"periods"`` gives those of one period of the periodic table a common
        density (:mod:`kqeq.descriptors.merged`), so that what is learned next to nitrogen helps next to oxygen: in a sum
        with a kernel that tells elements apart, where there are few frames of many molecules.
    """

    def __init__(
        self,
        r_cut: float = 5.0,
        n_max: int = 6,
        l_max: int = 4,
        sigma: float = 0.5,
        zeta: float = 2.0,
        n_representatives: int | None = None,
        selection: str = "fps",
        delta: float | None = None,
        smooth: str = "switch",
        weighting: Mapping[str, Any] | None = None,
        condition: str | None = None,
        neighbours: str = ELEMENTS,
    ) -> None:
        self.r_cut = r_cut
        self.n_max = n_max
        self.l_max = l_max
        self.sigma = sigma
        self.zeta = zeta
        self.n_representatives = n_representatives
        self.selection = selection
        self.delta = delta
        self.smooth = smooth
        self.weighting = weighting
        self.condition = condition
        self.neighbours = neighbours

    def descriptor(self) -> Descriptor:
        """The descriptor that these settings stand for; validates its part of them."""
        descriptor: Descriptor = SOAPDescriptor(
            r_cut=self.r_cut,
            n_max=self.n_max,
            l_max=self.l_max,
            sigma=self.sigma,
            smooth=self.smooth,  # type: ignore[arg-type]  # the descriptor validates it
            weighting=Weighting.of(self.weighting),
        )
        if self.neighbours != ELEMENTS:
            descriptor = Merged(descriptor)
        return descriptor if self.condition is None else Conditioned(descriptor, self.condition)

    def check(self) -> None:
        """Validate all settings.

        Raises
        ------
        InputError
            Naming the setting, its value and what was expected.
        """
        check_settings(self, {**_RULES, "neighbours": choice(*NEIGHBOURS)})
        self.descriptor()

    def to_dict(self) -> dict[str, Any]:
        """Parameters as plain data."""
        settings = dict(self.get_params(deep=False))
        if self.condition is None:
            del settings["condition"]
        if self.neighbours == ELEMENTS:
            del settings["neighbours"]
        if self.weighting is None:
            del settings["weighting"]  # files that do without can be read by versions that do not know it
        else:
            settings["weighting"] = dict(self.weighting)
        return settings


class NetworkKernel(BaseEstimator):  # type: ignore[misc]
    """Settings of a kernel on features of a trained network (:class:`kqeq.NetworkFeatures`).

    Parameters
    ----------
    network : str or Network
        ``"so3lr"`` (extra ``so3lr``; weights come with it), ``"chgnet"`` or ``"chgnet:VERSION"`` (extra ``chgnet``,
        likewise), ``"mace:FILE"`` (extra ``mace``; your model, or a foundation model that is on this machine),
        ``"so3lr:FILE"``; or an object with the methods of :class:`kqeq.descriptors.networks.Network`.
    zeta : int
        Power of the normalised dot product, a whole number; larger is more selective.
    charged : bool
        Whether the network is told the total charge, if it knows what to do with one.  Features then differ between
        charge states of one geometry; the derivative of the energy with respect to the charge goes through the network
        and is not known (:class:`kqeq.Prediction` has no chemical potential and no hardness then).
    n_representatives, selection, delta, condition : optional
        As for :class:`kqeq.SOAPKernel`.
    """

    def __init__(
        self,
        network: Any = "so3lr",
        zeta: int = 2,
        charged: bool = False,
        n_representatives: int | None = None,
        selection: str = "fps",
        delta: float | None = None,
        condition: str | None = None,
    ) -> None:
        self.network = network
        self.zeta = zeta
        self.charged = charged
        self.n_representatives = n_representatives
        self.selection = selection
        self.delta = delta
        self.condition = condition

    def features(self) -> NetworkFeatures:
        """The descriptor that these settings stand for, without the scales that a fit finds, and without condition."""
        return NetworkFeatures(resolve_network(self.network), bool(self.charged))

    def descriptor_for(self, structures: Iterable[Structure]) -> Descriptor:
        """The descriptor of a fit to ``structures``: its features are scaled by what they are there."""
        scaled = self.features().scaled(structures)
        return scaled if self.condition is None else Conditioned(scaled, self.condition)

    def check(self) -> None:
        """Validate all settings.

        Raises
        ------
        InputError
            Naming the setting, its value and what was expected.
        UnsupportedError
            If the package of the network is not installed; the message names the extra.
        """
        check_settings(self, {**_RULES, "zeta": whole(minimum=1), "charged": FLAG})
        self.features()

    def to_dict(self) -> dict[str, Any]:
        """Parameters as plain data, the network by name and hash."""
        network = resolve_network(self.network)
        return {**self.get_params(deep=False), "network": network.name, "sha256": network.digest}


Kernel = SOAPKernel | NetworkKernel
"""Settings of any kernel."""

Kernels = tuple[Kernel, ...]
"""The kernels of a sum."""


def kernel_tuple(given: Kernel | Sequence[Kernel] | str | None) -> Kernels | None:
    """One kernel, or a sequence of kernels that are summed, as a tuple; ``None`` where none are named."""
    if given is None or isinstance(given, str):
        return None
    return (given,) if isinstance(given, Kernel) else tuple(given)


AUTO = "auto"
"""Stands for :func:`automatic_electronegativity` and :func:`automatic_short_range`, and for a search of their spreads."""


def automatic_electronegativity() -> Kernels:
    """Kernels of the electronegativity where nothing is said about them: middle and long.

    Charge moves along chains and between ions further than bonds reach.  A sharp one of 2.5 Å in place of the long one
    makes left-out and test frames of chains, Ag3, NaCl and Zn3O3 worse (:doc:`/decisions`).
    """
    return (
        SOAPKernel(r_cut=4.0, n_max=6, l_max=4, sigma=0.3, zeta=2),
        SOAPKernel(r_cut=6.0, n_max=8, l_max=4, sigma=0.5, zeta=2),
    )


def automatic_latent() -> Kernels:
    """The same for latent charges: sharp and middle.

    Charges that are functions of the environment change with the nearest atoms: 120 dipeptides give others 141 meV/Å and
    0.064 e·Å with the sharp kernel, 157 and 0.092 with the middle one, 135 and 0.072 with both; water and alkanes are
    better as well, NaCl and chains of carbon, where charge moves further, worse (:doc:`/decisions`).
    """
    return (
        SOAPKernel(r_cut=2.5, n_max=6, l_max=4, sigma=0.2, zeta=2),
        SOAPKernel(r_cut=4.0, n_max=6, l_max=4, sigma=0.3, zeta=2),
    )


def automatic_dipoles() -> Kernels:
    """The same where nothing but dipoles is fitted: middle, and near neighbours by element and by period.

    Chosen by left-out compositions of 385 molecules of QM9 and of 170 dipeptides (docs/decisions.md).
    """
    near = {"function": "pow", "r0": 1.5, "c": 1.0, "d": 1.0, "m": 3.0}
    return (
        SOAPKernel(r_cut=4.0, n_max=6, l_max=4, sigma=0.3, zeta=2),
        SOAPKernel(r_cut=4.0, n_max=6, l_max=4, sigma=0.3, zeta=2, weighting=near),
        SOAPKernel(r_cut=4.0, n_max=6, l_max=4, sigma=0.3, zeta=2, weighting=near, neighbours=PERIODS),
    )


def automatic_short_range() -> Kernels:
    """Kernels of the short-range energy where nothing is said about them: long, middle and sharp.

    Their spreads are typical of what left-out frames of the packaged data sets ask for.
    """
    return (
        SOAPKernel(r_cut=5.0, n_max=8, l_max=6, sigma=0.5, zeta=4, delta=0.3),
        SOAPKernel(r_cut=4.0, n_max=6, l_max=4, sigma=0.3, zeta=2, delta=1.0),
        SOAPKernel(r_cut=2.5, n_max=6, l_max=4, sigma=0.2, zeta=2, delta=2.5),
    )


def farther(kernels: Kernels) -> Kernels:
    """Automatic kernels of the short-range energy after one that reaches further than the first of them.

    A search takes it in place of the first where left-out frames are predicted much better (conjugated chains, whose
    energies 5 Å do not determine: :doc:`/decisions`), and leaves it away elsewhere.
    """
    far = SOAPKernel(
        r_cut=8.0,
        n_max=9,
        l_max=5,
        sigma=0.6,
        zeta=4,
        delta=0.3,
        n_representatives=kernels[0].n_representatives,
    )
    return (far, *kernels)


def automatic_by_charge(values: Collection[float]) -> Kernels:
    """What a total charge changes in the short-range energy, where one composition has several: middle and selective.

    The square of the charge tells apart what more than two charges do.

    Parameters
    ----------
    values : collection of float
        The total charges, e.
    """
    states = ("charge", "charge^2") if len(values) > 2 else ("charge",)
    return tuple(
        SOAPKernel(r_cut=r_cut, sigma=0.4, zeta=zeta, delta=1.0, condition=state)
        for r_cut, zeta in ((4.0, 2), (5.0, 6))
        for state in states
    )


def default_electronegativity() -> SOAPKernel:
    """What a single kernel of the electronegativity has for settings that are not given."""
    return SOAPKernel(r_cut=4.0, n_max=6, l_max=4, sigma=0.3, zeta=2)


def default_short_range() -> SOAPKernel:
    """What a single kernel of the short-range energy has for settings that are not given."""
    return SOAPKernel(r_cut=5.0, n_max=8, l_max=6, sigma=0.5, zeta=4)


__all__ = [
    "AUTO",
    "AUTOMATIC_TOTAL",
    "DEFAULT_REPRESENTATIVES",
    "DIPOLES_EACH",
    "DIPOLES_TOTAL",
    "SELECTIONS",
    "Kernel",
    "Kernels",
    "NetworkKernel",
    "SOAPKernel",
    "automatic_by_charge",
    "automatic_dipoles",
    "automatic_electronegativity",
    "automatic_latent",
    "automatic_short_range",
    "default_electronegativity",
    "default_short_range",
    "farther",
    "kernel_tuple",
]
