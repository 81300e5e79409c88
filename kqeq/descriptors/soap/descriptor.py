"""SOAP descriptors as dscribe defines them, with derivatives that cost about as much as the values.

The settings and the radial basis (α, β) are dscribe's; the rows equal ``dscribe.descriptors.SOAP.create``
(``rbf="gto"``, no compression) normalised to one, for the elements present.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache, partial
from typing import Any, Literal, get_args

from kqeq.backend import is_numpy
from kqeq.backend.threads import pool, thread_count
from kqeq.descriptors.base import FeatureGradients
from kqeq.descriptors.soap import basis
from kqeq.descriptors.soap.arrays import expansion
from kqeq.descriptors.soap.arrays import features as array_features
from kqeq.descriptors.soap.arrays.expansion import ArraySOAPState
from kqeq.descriptors.soap.host import adjoint
from kqeq.descriptors.soap.host import features as host_features
from kqeq.descriptors.soap.host.adjoint import SOAPState
from kqeq.descriptors.soap.host.features import Directions
from kqeq.descriptors.soap.weighting import Weighting
from kqeq.errors import InputError
from kqeq.frames.neighbours import Pairs, find_pairs
from kqeq.frames.structures import Structure
from kqeq.io.rules import Rule, check_values, choice, number, whole
from kqeq.typing import Array, FloatArray, IntArray

Smoothing = Literal["none", "switch"]

SWITCH_RANGE = (0.75, 1.25)
"""Where neighbours fade out with ``smooth="switch"``, in units of dscribe's padding beyond r_cut."""

_RULES: Mapping[str, Rule] = {
    "r_cut": number(above=1),  # the radial functions of dscribe need more than 1 Å
    "n_max": whole(minimum=1),
    "l_max": whole(0, 20),
    "sigma": number(above=0),
    "smooth": choice(*get_args(Smoothing)),
}


@dataclass(frozen=True)
class SOAPDescriptor:
    """Smooth overlap of atomic positions.

    Parameters
    ----------
    r_cut : float
        Cutoff of the radial functions in Å, larger than 1.
    n_max : int
        Number of radial functions, at least 1.
    l_max : int
        Largest degree of the spherical harmonics, 0 to 20.
    sigma : float
        Width of the Gaussians on the atoms in Å.
    smooth : {"none", "switch"}
        What happens at the outer cutoff, R = r_cut + padding with dscribe's padding σ √(−2 ln 0.001).

        ``"none"`` is plain dscribe: a neighbour that crosses R changes the row at once; by 2e-5 of its
        norm for a pair of atoms with (r_cut, n_max, l_max) = (4, 4, 3), 1e-3 with (5, 8, 6), 2e-3 with
        σ = 0.3 Å, and less in dense surroundings.

        ``"switch"`` multiplies neighbours by a quintic that falls from 1 at r_cut + 0.75 padding to 0 at
        r_cut + 1.25 padding, with two continuous derivatives: no jump, 25 % more pairs.  Rows differ from
        plain dscribe's by less than the neighbours that dscribe leaves out (liquid water, σ = 0.5 Å: 1.3e-3
        for r_cut 4.5, n_max 8, l_max 6; 4e-5 for 4.0, 4, 3).  A longer sharp padding was measured, too, and
        is worse in every respect: twice dscribe's padding doubles the pairs, changes rows by 3e-3 and
        leaves a jump (4e-7; 5e-5 for σ = 0.3 Å).
    weighting : Weighting or dict, optional
        Weight of neighbours by distance (:class:`kqeq.descriptors.soap.weighting.Weighting`), or dscribe's settings of
        it, for example ``{"function": "pow", "r0": 2.0, "c": 1.0, "d": 1.0, "m": 4.0}``.

    Raises
    ------
    InputError
        If a setting is out of range.
    """

    r_cut: float
    n_max: int
    l_max: int
    sigma: float = 0.5
    smooth: Smoothing = "none"
    weighting: Weighting | None = None

    def __post_init__(self) -> None:
        check_values("SOAP", {name: getattr(self, name) for name in _RULES}, _RULES)
        for name in ("r_cut", "sigma"):
            object.__setattr__(self, name, float(getattr(self, name)))
        for name in ("n_max", "l_max"):
            object.__setattr__(self, name, int(getattr(self, name)))
        object.__setattr__(self, "weighting", Weighting.of(self.weighting))

    @property
    def cutoff(self) -> float:
        """Distance beyond which neighbours have no influence, Å."""
        return self.tables.cutoff

    @property
    def whole_powers(self) -> bool:
        """Products of power spectra are not negative."""
        return False

    @property
    def knows_charge(self) -> bool:
        """The geometry is all that matters."""
        return False

    @cached_property
    def tables(self) -> adjoint.Tables:
        """Structure-independent input of the kernels."""
        return _tables(self)

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, own.name) for own in fields(self)))

    def __hash__(self) -> int:
        """Of the settings; asked for some tens of times in one prediction of a small molecule."""
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        """The settings alone: hashes of texts differ between processes."""
        return {own.name: getattr(self, own.name) for own in fields(self)}

    def block_slices(self, species: tuple[int, ...]) -> dict[tuple[int, int], slice]:
        """Where the block of each element pair (Z1 <= Z2) lies in a row laid out for ``species``."""
        return basis.block_slices(tuple(species), self.n_max, self.l_max)

    def feature_count(self, species: tuple[int, ...]) -> int:
        """Length F of a row laid out for ``species``."""
        return basis.feature_count(len(species), self.n_max, self.l_max)

    def evaluate(
        self, structure: Structure, *, derivatives: bool = True, pairs: Pairs | None = None
    ) -> SOAPState:
        """Descriptors of one structure in the layout of its own elements.

        Parameters
        ----------
        structure : Structure
        derivatives : bool
            Accepted for the protocol; derivatives need nothing extra here.
        pairs : Pairs, optional
            Neighbours (a full or a half list) reaching at least :attr:`cutoff`, for example shared between
            descriptors or from a :class:`kqeq.frames.neighbours.NeighbourFinder`.

        Raises
        ------
        InputError
            If ``pairs`` reaches less far than :attr:`cutoff`, or the cell is singular.
        """
        return adjoint.evaluate(structure, self._pairs(structure, pairs), self.tables)

    def _pairs(self, structure: Structure, pairs: Pairs | None) -> Pairs:
        cutoff = self.cutoff
        if pairs is None:
            return find_pairs(structure, cutoff, full=False)
        if pairs.cutoff < cutoff:
            raise InputError(
                f"the neighbour list reaches {pairs.cutoff:g} Å, this descriptor needs {cutoff:g} Å"
            )
        return pairs

    def evaluate_many(self, structures: Sequence[Structure], *, derivatives: bool = True) -> list[SOAPState]:
        """Descriptors of many structures, one by one in parallel; see :meth:`evaluate`."""
        threads = thread_count()
        frames = list(structures)
        if threads == 1 or len(frames) < 2:
            return [self.evaluate(s, derivatives=derivatives) for s in frames]
        adjoint.kernels()  # compile once, not in every thread
        return list(pool(threads).map(partial(self.evaluate, derivatives=derivatives), frames))

    def evaluate_arrays(
        self,
        structure: Structure,
        like: Array,
        *,
        pairs: Pairs | None = None,
        memory: int | None = None,
    ) -> ArraySOAPState:
        """Descriptors as arrays of the library, and on the device, of ``like`` (NumPy, CuPy, ...).

        Parameters
        ----------
        structure : Structure
        like : array
        pairs : Pairs, optional
            As in :meth:`evaluate`.
        memory : int, optional
            Bytes for temporary arrays; :func:`kqeq.backend.memory_budget` by default.
        """
        if pairs is not None or is_numpy(like):
            pairs = self._pairs(structure, pairs)
        return expansion.evaluate(structure, pairs, self.tables, like, memory)

    def prepare_directions(self, species: tuple[int, ...], rows: FloatArray) -> Directions:
        """Lay directions (M, F) out once for ``feature_gradients`` of many structures."""
        return host_features.prepare_directions(self.tables, len(species), rows)

    def feature_gradients(
        self,
        state: SOAPState | ArraySOAPState,
        centres: IntArray,
        directions: Array | Directions,
        coefficients: Array,
        *,
        projections: Array | None = None,
    ) -> FeatureGradients:
        """Derivatives of f_m = Σ_i f_im with ∂f_im/∂p_i = C_im d_m, for all m at once.

        Parameters
        ----------
        state : SOAPState or ArraySOAPState
        centres : (n,) array
            Different atoms i that the sum runs over, on the host.
        directions : (M, F) array or Directions
            d_m in the layout of the state; if the same directions serve many structures on the host, prepare them
            once with :meth:`prepare_directions`.
        coefficients : (n, M) array
            C_im.
        projections : (n, M) array, optional
            p_i · d_m, if known.

        Raises
        ------
        InputError
            If shapes do not agree.
        """
        if isinstance(state, SOAPState):
            return host_features.feature_gradients(state, centres, directions, coefficients, projections)
        return array_features.feature_gradients(state, centres, directions, coefficients, projections)


@lru_cache(maxsize=64)
def _tables(descriptor: SOAPDescriptor) -> adjoint.Tables:
    radial = basis.radial_basis(descriptor.r_cut, descriptor.n_max, descriptor.l_max, descriptor.sigma)
    inner = outer = radial.cutoff
    if descriptor.smooth == "switch":
        padding = radial.cutoff - descriptor.r_cut
        inner, outer = (descriptor.r_cut + factor * padding for factor in SWITCH_RANGE)
    return adjoint.make_tables(radial, inner, outer, descriptor.weighting)


__all__ = ["SWITCH_RANGE", "SOAPDescriptor", "Smoothing"]
