"""Vectors of four doubles for compiled loops: registers that numba's own language has no word for.

LLVM finds vectors in plain loops, but not always the ones that fit: it spills accumulators, starts short loops with long
preambles, and compiles several versions of each.  Loops that matter are written with these instead; one such loop is
compiled once, and runs on any processor (LLVM splits vectors where registers are shorter).

All functions are for compiled code only.  Arrays are one-dimensional and contiguous; indices are not checked.
Products and sums may be contracted (fused multiply-add), nothing else is reordered.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

WIDTH = 4
"""Numbers of a vector."""

_DOUBLE = ir.DoubleType()
_VECTOR = ir.VectorType(_DOUBLE, WIDTH)
_LANE = ir.IntType(32)
_MASK = ir.VectorType(_LANE, WIDTH)


class _VectorType(types.Type):
    """Numba's type of a vector."""

    def __init__(self) -> None:
        super().__init__(name="kqeq_float64x4")


vector = _VectorType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)  # type: ignore[no-untyped-call]


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(data, [index])


def _splat(builder: Any, scalar: Any) -> Any:
    empty = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(empty, scalar, ir.Constant(_LANE, 0))
    return builder.shuffle_vector(one, empty, ir.Constant(_MASK, [0] * WIDTH))


def _is_row(kind: Any) -> bool:
    return isinstance(kind, types.Array) and kind.ndim == 1 and kind.dtype == types.float64


def _load(typing: Any, array: Any, index: Any) -> Any:
    """Four numbers of an array from an index on."""
    if not _is_row(array):
        return None

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *args)
        return builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()), align=8)

    return vector(array, types.int64), generate


def _store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write four numbers to an array from an index on."""
    if not _is_row(array):
        return None

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        builder.store(args[2], builder.bitcast(pointer, _VECTOR.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), generate


def _spread(typing: Any, scalar: Any) -> Any:
    """One number four times."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0])

    return vector(types.float64), generate


def _load_spread(typing: Any, array: Any, index: Any) -> Any:
    """One number of an array, four times."""
    if not _is_row(array):
        return None

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, builder.load(_pointer(context, builder, signature.args[0], *args)))

    return vector(array, types.int64), generate


def _arithmetic(name: str, arguments: int) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        flags = ("contract",)
        if name == "fma":
            return builder.fadd(builder.fmul(args[0], args[1], flags=flags), args[2], flags=flags)
        return getattr(builder, name)(*args, flags=flags)

    signature = vector(*[vector] * arguments)

    if arguments == 3:

        def declared(typing: Any, a: Any, b: Any, c: Any) -> Any:
            return signature, generate
    else:

        def declared(typing: Any, a: Any, b: Any) -> Any:  # type: ignore[misc]
            return signature, generate

    declared.__name__ = name
    return intrinsic(declared)


fma: Any = _arithmetic("fma", 3)
"""a b + c."""
mul: Any = _arithmetic("fmul", 2)
add: Any = _arithmetic("fadd", 2)
sub: Any = _arithmetic("fsub", 2)


def _total(typing: Any, value: Any) -> Any:
    """The sum of the four numbers."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = [builder.extract_element(args[0], ir.Constant(_LANE, i)) for i in range(WIDTH)]
        return builder.fadd(builder.fadd(lanes[0], lanes[2]), builder.fadd(lanes[1], lanes[3]))

    return types.float64(vector), generate


def _turned(typing: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Four vectors as the rows of a matrix; its columns."""
    result = types.UniTuple(vector, WIDTH)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pick(x: Any, y: Any, lanes: list[int]) -> Any:
            return builder.shuffle_vector(x, y, ir.Constant(_MASK, lanes))

        a, b, c, d = args
        low, high = [0, 4, 2, 6], [1, 5, 3, 7]
        ab0, ab1, cd0, cd1 = pick(a, b, low), pick(a, b, high), pick(c, d, low), pick(c, d, high)
        first, second = [0, 1, 4, 5], [2, 3, 6, 7]
        rows = [pick(ab0, cd0, first), pick(ab1, cd1, first), pick(ab0, cd0, second), pick(ab1, cd1, second)]
        return cgutils.pack_array(builder, rows)

    return result(vector, vector, vector, vector), generate


load: Any = intrinsic(_load)
store: Any = intrinsic(_store)
spread: Any = intrinsic(_spread)
load_spread: Any = intrinsic(_load_spread)
total: Any = intrinsic(_total)
turned: Any = intrinsic(_turned)

__all__ = ["WIDTH", "add", "fma", "load", "load_spread", "mul", "spread", "store", "sub", "total", "turned"]
