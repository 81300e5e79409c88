"""What the rest of the package asks of a descriptor.

A descriptor turns a structure into one normalised row per atom and can push derivatives with
respect to those rows back to positions and cell.  Everything is expressed by three contractions,
so that nobody ever needs the dense (N, N, 3, F) derivative tensor:

``adjoint``
    one scalar, E = E(p): from G = ∂E/∂p to ∂E/∂r and the strain derivative (forces, stress);
``site_jacobian``
    N scalars f_i = f_i(p_i) at once, from G_i = ∂f_i/∂p_i to the sparse matrix ∂f_i/∂r_k
    (how every electronegativity depends on every position);
``feature_gradients``
    M scalars Σ_i f_im(p_i) at once, with ∂f_im/∂p_i = C_im d_m (all kernel features together,
    for fitting to forces).

Dimensions: N atoms, F descriptor features, M directions.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from kqeq.frames.neighbours import Pairs
from kqeq.frames.structures import Structure
from kqeq.typing import Array, FloatArray, IntArray


@dataclass(frozen=True)
class PositionGradient:
    """Derivative of one scalar with respect to positions and strain.

    Attributes
    ----------
    positions : (N, 3) array
        ∂E/∂r_k, in units of E per Å.
    strain : (3, 3) array
        ∂E/∂ε with r → r(1 + ε), r a row vector, for atoms and cell; equals Σ_pairs r_ij ⊗ ∂E/∂r_ij.
        Row: component of r_ij, column: component of the gradient.
    """

    positions: Array
    strain: Array


@dataclass(frozen=True)
class SiteJacobian:
    """Derivatives of one scalar per atom with respect to all positions and to strain.

    Attributes
    ----------
    positions : sparse (3N, N) matrix in CSR format (an array where the library has no sparse ones)
        Row 3k + a, column i: ∂f_i/∂r_ka.
    strain : (9, N) array
        Row 3a + b, column i: ∂f_i/∂ε_ab.
    """

    positions: Any
    strain: Array


@dataclass(frozen=True)
class FeatureGradients:
    """Derivatives of M scalars with respect to all positions and to strain.

    Attributes
    ----------
    positions : (3N, M) array
        Row 3k + a: derivative with respect to r_ka.
    strain : (9, M) array
        Row 3a + b: derivative with respect to ε_ab.
    """

    positions: Array
    strain: Array


class DescriptorState(Protocol):
    """Descriptor rows of one structure, and what their derivatives need."""

    @property
    def values(self) -> Array:
        """Normalised descriptor rows, shape (N, F)."""

    @property
    def species(self) -> tuple[int, ...]:
        """Atomic numbers, ascending, that define the layout of the F features."""

    def adjoint(self, gradient: Array) -> PositionGradient:
        """Pull ∂E/∂p, shape (N, F), back to positions and strain."""

    def site_jacobian(self, gradient: Array) -> SiteJacobian:
        """Pull every row G_i = ∂f_i/∂p_i of an (N, F) array back separately."""


class Descriptor(Protocol):
    """A recipe for descriptors; hashable, immutable."""

    def block_slices(self, species: tuple[int, ...]) -> dict[tuple[int, int], slice]:
        """Where the block of each element pair (Z1 <= Z2) lies in a row laid out for ``species``.

        Blocks of the same pair have the same inner order whatever the other species are, so rows
        of different layouts are compared block by block: absent elements cost nothing.
        """

    @property
    def cutoff(self) -> float:
        """How far a neighbour list has to reach, Å."""

    @property
    def whole_powers(self) -> bool:
        """Whether only whole powers of products of rows are covariances."""

    @property
    def knows_charge(self) -> bool:
        """Whether rows depend on the total charge of the structure, and not on its geometry alone."""

    def evaluate(
        self, structure: Structure, *, derivatives: bool = True, pairs: Pairs | None = None
    ) -> DescriptorState:
        """Descriptors of one structure in the layout of its own elements.

        With ``derivatives=False`` only ``values`` will be asked for.  ``pairs`` is a neighbour list that
        reaches at least ``cutoff``, for example shared between descriptors.
        """

    def evaluate_arrays(
        self, structure: Structure, like: Array, *, pairs: Pairs | None = None
    ) -> DescriptorState:
        """The same in the library, and on the device, of ``like``."""

    def prepare_directions(self, species: tuple[int, ...], rows: FloatArray) -> Any:
        """Lay directions (M, F) out once for :meth:`feature_gradients` of many structures."""

    def feature_gradients(
        self,
        state: Any,
        centres: IntArray,
        directions: Any,
        coefficients: Array,
        *,
        projections: Array | None = None,
    ) -> FeatureGradients:
        """Derivatives of f_m = Σ_i f_im with ∂f_im/∂p_i = C_im d_m, for all m at once.

        Parameters
        ----------
        state : DescriptorState
            What :meth:`evaluate` or :meth:`evaluate_arrays` of the same descriptor returned.
        centres : (n,) array
            Different atoms i that the sum runs over, on the host.
        directions : (M, F) array, or what :meth:`prepare_directions` made of one
            d_m in the layout of the state.
        coefficients : (n, M) array
            C_im, one row for each of ``centres``.
        projections : (n, M) array, optional
            p_i · d_m, if known.

        Raises
        ------
        InputError
            If shapes do not agree.
        """


__all__ = [
    "Descriptor",
    "DescriptorState",
    "FeatureGradients",
    "PositionGradient",
    "SiteJacobian",
]
