"""Element parameters from polarizabilities, without a kernel fit.

The polarizability does not depend on electronegativities, so hardness, width, atomic polarizability and bond
softness can be learned from polarizability labels before anything else is known (theory sections 3 and 6).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from kqeq.charges.base import ChargeModel
from kqeq.charges.parameters import ElementParameters
from kqeq.constants import COULOMB
from kqeq.errors import InputError
from kqeq.fitting.least_squares.solver import JacobianKind, Solution, minimise
from kqeq.frames.structures import Structure
from kqeq.typing import FloatArray

DEFAULT_NOISE = 0.1 / COULOMB
"""Error of a component that is tolerated: 0.1 Å³, in e²·Å²/eV."""

TOLERANCES: tuple[float, ...] = (100.0, 10.0, 1.0)
"""Noise of successive minimisations, in units of the noise asked for.

From the defaults straight to small residuals, Gauss–Newton steps are large and may end in a poor local minimum; with much
noise the prior holds them back, and each minimum is a good start for the next.  Losses reached without and with it, ACKS2
with dipoles: 170 and 9.4 (alkanes C2 to C6, noise 0.02 Å³), 284 and 236 (20 geometries of N-methylacetamide), in the
same time."""

# components of a symmetric tensor that are compared, with the weight that makes their sum the one over all nine
_ROWS, _COLUMNS = np.triu_indices(3)
_WEIGHTS = np.where(_ROWS == _COLUMNS, 1.0, np.sqrt(2.0))


class _Problem:
    """Polarizabilities as a least-squares problem in standardised logarithms."""

    linear = False
    linear_columns: slice | None = None

    def __init__(
        self,
        model: ChargeModel,
        parameters: ElementParameters,
        structures: Sequence[Structure],
        targets: FloatArray,
        noise: float,
    ) -> None:
        self.model = model
        self.parameters = parameters
        self.structures = structures
        self.targets = targets
        self.noise = noise

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.parameters.size

    def rows(
        self, u: FloatArray, *, jacobian: JacobianKind
    ) -> Iterator[tuple[FloatArray, FloatArray | None]]:
        """Weighted residuals and Jacobians, structure by structure."""
        model = self.parameters.apply(self.model, u)
        for structure, target in zip(self.structures, self.targets, strict=True):
            system = model.bind(structure, many_responses=True)
            alpha = system.polarizability()
            assert alpha is not None
            scale = _WEIGHTS / self.noise
            residual = scale * (target - alpha)[_ROWS, _COLUMNS]
            if jacobian != "full":
                yield residual, None
                continue
            change = system.polarizability_response(self.parameters.directions(structure.numbers, u))
            yield residual, scale[:, None] * change[_ROWS, _COLUMNS]


def learn_from_polarizabilities(
    model: ChargeModel,
    structures: Sequence[Structure],
    polarizabilities: Sequence[FloatArray] | FloatArray,
    *,
    noise: float = DEFAULT_NOISE,
    spreads: Mapping[str, float] | None = None,
    max_iterations: int = 60,
) -> ChargeModel:
    """Learn the parameters that a charge model marks with ``"learn"`` from polarizability tensors.

    Least squares in the logarithms of the parameters, with Gaussian priors around the defaults, approached from larger
    noise (:data:`TOLERANCES`).

    Parameters
    ----------
    model : ChargeModel
        For example ``AtomicDipoles(ACKS2(softness="learn", hardness="learn"), polarizability="learn")``.
    structures : sequence of Structure
    polarizabilities : sequence of (3, 3) arrays
        e²·Å²/eV (Å³ divided by :data:`kqeq.constants.COULOMB`).
    noise : float
        Error of a component that is tolerated, e²·Å²/eV.
    spreads : mapping, optional
        Standard deviations of the logarithms by kind; :data:`kqeq.charges.parameters.SPREADS` by default.
    max_iterations : int
        Of each minimisation.

    Returns
    -------
    ChargeModel
        A copy with the learned values; the elements of the structures have values, others keep the defaults.

    Raises
    ------
    InputError
        If nothing is to be learned, for labels of a wrong number or shape, or structures without a polarizability.
    """
    return learn(
        model, structures, polarizabilities, noise=noise, spreads=spreads, max_iterations=max_iterations
    )[0]


def learn(
    model: ChargeModel,
    structures: Sequence[Structure],
    polarizabilities: Sequence[FloatArray] | FloatArray,
    *,
    noise: float = DEFAULT_NOISE,
    spreads: Mapping[str, float] | None = None,
    max_iterations: int = 60,
) -> tuple[ChargeModel, ElementParameters, Solution]:
    """As :func:`learn_from_polarizabilities`, with the parameters and the solver's solution."""
    if not model.to_learn:
        raise InputError(
            f'{model!r} has nothing to learn; mark parameters with "learn", for example ACKS2(softness="learn")'
        )
    targets = np.array(list(polarizabilities), dtype=np.float64)
    if len(structures) == 0 or targets.shape != (len(structures), 3, 3) or not np.isfinite(targets).all():
        raise InputError(
            f"polarizabilities of {len(structures)} structures have shape {targets.shape}; expected one finite 3x3 "
            "tensor (e²·Å²/eV) per structure, and at least one structure"
        )
    if not (np.isfinite(noise) and noise > 0.0):
        raise InputError(f"noise is {noise!r}; expected a positive standard deviation (e²·Å²/eV)")
    periodic = [i for i, structure in enumerate(structures) if structure.periodic]
    if periodic:
        raise InputError(
            f"structure {periodic[0]} is periodic; element parameters are learned from the polarizabilities of isolated "
            "systems"
        )
    species = {z for structure in structures for z in structure.species}
    parameters = ElementParameters.build(model, species, spreads)
    start = np.zeros(parameters.size)
    for factor in TOLERANCES:
        problem = _Problem(model, parameters, structures, targets, factor * noise)
        solution = minimise(
            problem, start, max_iterations=max_iterations, tolerance=1e-4 * factor, negligible=1e-3 * factor
        )
        start = solution.u
    return parameters.apply(model, solution.u), parameters, solution


__all__ = ["DEFAULT_NOISE", "TOLERANCES", "learn", "learn_from_polarizabilities"]
