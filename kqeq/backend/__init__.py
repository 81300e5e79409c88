"""The one place that knows which array library is in use, and which device.

Array code in this package is written against the array API standard; the namespace comes from the
array itself (:func:`namespace`), never from a global switch.  What the standard lacks (special
functions, scattered sums, triangular solves, FFTs, transfers) is here, for NumPy, CuPy and, through its
NumPy buffer, ``array_api_strict`` (which the tests use to expose NumPy-only calls; its arrays on a device
other than the CPU refuse every silent conversion, as those of a GPU do).

Data move between host and device in :func:`asarray_like` and :func:`to_numpy` only, which
:func:`record_transfers` counts; :func:`to_float` reads single numbers.
"""

from kqeq.backend.arrays import (
    CPU,
    Device,
    Transfers,
    arange,
    asarray_like,
    empty,
    eye,
    full,
    is_cupy,
    is_numpy,
    namespace,
    nbytes,
    place,
    record_transfers,
    to_float,
    to_numpy,
    zeros,
)
from kqeq.backend.cuda import (
    cuda_device,
    cuda_name,
    cuda_versions,
    raw_kernel,
    use_raw_kernels,
)
from kqeq.backend.linear import (
    all_positive_definite,
    cho_solve,
    cholesky,
    inverse,
    solve_triangular,
)
from kqeq.backend.memory import (
    HOST_MEMORY,
    cache_budget,
    chunk_elements,
    limit_memory,
    memory_budget,
)
from kqeq.backend.operations import (
    erf,
    erfc,
    index_add,
    inverse_or_zero,
    irfftn,
    pair_matrix,
    put_rows,
    rfftn,
    scatter_add,
    segment_sum,
    selection_matrix,
)

__all__ = [
    "CPU",
    "HOST_MEMORY",
    "Device",
    "Transfers",
    "all_positive_definite",
    "arange",
    "asarray_like",
    "cache_budget",
    "cho_solve",
    "cholesky",
    "chunk_elements",
    "cuda_device",
    "cuda_name",
    "cuda_versions",
    "empty",
    "erf",
    "erfc",
    "eye",
    "full",
    "index_add",
    "inverse",
    "inverse_or_zero",
    "irfftn",
    "is_cupy",
    "is_numpy",
    "limit_memory",
    "memory_budget",
    "namespace",
    "nbytes",
    "pair_matrix",
    "place",
    "put_rows",
    "raw_kernel",
    "record_transfers",
    "rfftn",
    "scatter_add",
    "segment_sum",
    "selection_matrix",
    "solve_triangular",
    "to_float",
    "to_numpy",
    "use_raw_kernels",
    "zeros",
]
