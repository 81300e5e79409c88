"""Descriptors around another one: what they pass on to it.

Dimensions: N atoms, F descriptor features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kqeq.descriptors.base import Descriptor, FeatureGradients, PositionGradient, SiteJacobian
from kqeq.typing import Array, IntArray


@dataclass(frozen=True, eq=False)
class AroundState:
    """Rows of the descriptor inside.

    Attributes
    ----------
    inner : DescriptorState
    """

    inner: Any

    @property
    def values(self) -> Array:
        """Normalised rows, (N, F)."""
        return self.inner.values

    def adjoint(self, gradient: Array) -> PositionGradient:
        """Pull ∂E/∂p, (N, F), back to positions and strain."""
        return self.inner.adjoint(gradient)  # type: ignore[no-any-return]

    def site_jacobian(self, gradient: Array) -> SiteJacobian:
        """Likewise, row by row."""
        return self.inner.site_jacobian(gradient)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Around:
    """What does not depend on what is around the descriptor inside.

    Attributes
    ----------
    inner : Descriptor
    """

    inner: Descriptor

    @property
    def cutoff(self) -> float:
        """That of the descriptor inside."""
        return self.inner.cutoff

    @property
    def whole_powers(self) -> bool:
        """That of the descriptor inside."""
        return self.inner.whole_powers

    @property
    def knows_charge(self) -> bool:
        """Whether rows depend on the total charge."""
        return self.inner.knows_charge

    def feature_gradients(
        self,
        state: Any,
        centres: IntArray,
        directions: Any,
        coefficients: Array,
        *,
        projections: Array | None = None,
    ) -> FeatureGradients:
        """Those of the descriptor inside."""
        return self.inner.feature_gradients(
            state.inner, centres, directions, coefficients, projections=projections
        )


__all__ = ["Around", "AroundState"]
