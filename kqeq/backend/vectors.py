"""Vectors of four (or, wide, eight) doubles for compiled loops: registers that numba's own language has no word for.

LLVM finds vectors in plain loops, but not always the ones that fit: it spills accumulators, starts short loops with long
preambles, and compiles several versions of each.  Loops that matter are written with these instead; one such loop is
compiled once, and runs on any processor (LLVM splits vectors where registers are shorter).

All functions are for compiled code only.  Arrays are one-dimensional and contiguous; indices are not checked.
Products and sums may be contracted (fused multiply-add), nothing else is reordered.

What costs numba time is the number of statements, not what they do: an unrolled product of small matrices takes it a
second.  :func:`tile` and :func:`dots` are such products in one word, written in LLVM's language at once.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

WIDTH = 4
"""Numbers of a vector."""

_DOUBLE = ir.DoubleType()
_VECTOR = ir.VectorType(_DOUBLE, WIDTH)
_WORD = ir.IntType(64)
_LANE = ir.IntType(32)


class _VectorType(types.Type):
    """Numba's type of a vector of some width."""

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(name=f"kqeq_float64x{width}")


vector, wide = _VectorType(WIDTH), _VectorType(2 * WIDTH)


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.VectorType(_DOUBLE, kind.width))  # type: ignore[no-untyped-call]


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    # the address alone: a proxy of the whole array would be twenty instructions more
    data = context.data_model_manager[kind].get(builder, array, "data")
    return builder.gep(data, [index])


def _splat(builder: Any, scalar: Any, width: int = WIDTH) -> Any:
    empty = ir.Constant(ir.VectorType(_DOUBLE, width), ir.Undefined)
    one = builder.insert_element(empty, scalar, _LANE(0))
    return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(_LANE, width), [0] * width))


def _is_row(kind: Any) -> bool:
    return isinstance(kind, types.Array) and kind.ndim == 1 and kind.dtype == types.float64


def _read(builder: Any, pointer: Any, width: int = WIDTH) -> Any:
    kind = ir.VectorType(_DOUBLE, width).as_pointer()
    return builder.load(builder.bitcast(pointer, kind), align=8)


def _write(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=8)


def _place(context: Any, builder: Any, kind: Any, array: Any, start: Any, number: Any, step: Any) -> Any:
    return _pointer(context, builder, kind, array, builder.add(start, builder.mul(number, step)))


def _load(typing: Any, array: Any, index: Any) -> Any:
    """Four numbers of an array from an index on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _read(builder, _pointer(context, builder, signature.args[0], *args))

    return (vector(array, types.int64), generate) if _is_row(array) else None


def _load_wide(typing: Any, array: Any, start: Any, number: Any, step: Any) -> Any:
    """Eight numbers of an array from ``start + number step`` on."""
    whole = types.int64

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _read(builder, _place(context, builder, signature.args[0], *args), wide.width)

    return (wide(array, whole, whole, whole), generate) if _is_row(array) else None


def _load_spread_wide(typing: Any, array: Any, start: Any, number: Any, step: Any) -> Any:
    """One number of an array, at ``start + number step``, eight times."""
    whole = types.int64

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scalar = builder.load(_place(context, builder, signature.args[0], *args))
        return _splat(builder, scalar, wide.width)

    return (wide(array, whole, whole, whole), generate) if _is_row(array) else None


def _spreading(result: Any) -> Any:
    def declared(typing: Any, scalar: Any) -> Any:
        """One number, as often as the vector is wide."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return _splat(builder, args[0], result.width)

        return result(types.float64), generate

    return intrinsic(declared)


def _store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write a vector to an array from an index on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _write(builder, args[2], _pointer(context, builder, signature.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return (types.void(array, types.int64, vector), generate) if _is_row(array) and value == vector else None


def _store_wide(typing: Any, array: Any, start: Any, number: Any, step: Any, value: Any) -> Any:
    """Write a wide vector to an array from ``start + number step`` on."""
    whole = types.int64

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _write(builder, args[4], _place(context, builder, signature.args[0], *args[:4]))
        return context.get_dummy_value()

    if not _is_row(array) or value != wide:
        return None
    return types.void(array, whole, whole, whole, wide), generate


def _gain(builder: Any, a: Any, b: Any, total: Any) -> Any:
    """The total and a product."""
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), total, flags=("contract",))


def _fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """``a b + c``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _gain(builder, *args)

    return (a(a, a, a), generate) if isinstance(a, _VectorType) and a == b == c else None


def _arithmetic(name: str) -> Any:
    def declared(typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, name)(*args, flags=("contract",))

        return (a(a, a), generate) if isinstance(a, _VectorType) and a == b else None

    declared.__name__ = name
    return intrinsic(declared)


def _sum_of(builder: Any, value: Any) -> Any:
    lanes = [builder.extract_element(value, _LANE(i)) for i in range(WIDTH)]
    return builder.fadd(builder.fadd(lanes[0], lanes[2]), builder.fadd(lanes[1], lanes[3]))


def _next_line(typing: Any, array: Any) -> Any:
    """Index of the first number of an array that lies at a multiple of 64 bytes, the length of a line of the cache."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], _WORD(0))
        away = builder.neg(builder.ptrtoint(pointer, _WORD))
        return builder.lshr(builder.and_(away, _WORD(63)), _WORD(3))

    return (types.int64(array), generate) if _is_row(array) else None


_ZERO = ir.Constant(_VECTOR, [0.0] * WIDTH)


def _rows(context: Any, builder: Any, kind: Any, array: Any, start: Any, step: Any, count: int) -> list[Any]:
    """Pointers to the first number of several rows."""
    first = _pointer(context, builder, kind, array, start)
    return [builder.gep(first, [builder.mul(step, _WORD(i))]) for i in range(count)]


def _on(builder: Any, pointer: Any, offset: Any, vectors: int = 0) -> Any:
    """The pointer at an offset, and some vectors on."""
    return builder.gep(pointer, [builder.add(offset, _WORD(WIDTH * vectors))])


def _as_it_is(module: Any) -> Any:
    """What tells LLVM not to unroll a loop: it takes long, and loops of ten rounds become slower."""
    disable = module.add_metadata(["llvm.loop.unroll.disable"])
    loop = module.add_metadata([ir.MetaDataString(module, f"loop {len(module.metadata)}")])
    loop.operands = (loop, disable)  # its first operand is the loop itself
    return loop


def _loop(builder: Any, count: Any, steps: list[Any], sums: list[Any], body: Any) -> list[Any]:
    """Sums after ``count`` rounds of ``body(offsets, sums)``, where offsets grow by ``steps`` from zero."""
    before = builder.block
    rounds, after = builder.append_basic_block("rounds"), builder.append_basic_block("after")
    builder.cbranch(builder.icmp_signed(">", count, _WORD(0)), rounds, after)
    builder.position_at_end(rounds)
    offsets = [builder.phi(_WORD) for _ in range(len(steps) + 1)]
    carried = [builder.phi(_VECTOR) for _ in sums]
    found = body(offsets[1:], carried)
    moved = [builder.add(o, s) for o, s in zip(offsets, [_WORD(1), *steps], strict=True)]
    starts, ends = [*[_WORD(0)] * len(offsets), *sums], [*moved, *found]
    for phi, start, end in zip([*offsets, *carried], starts, ends, strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(end, rounds)
    again = builder.cbranch(builder.icmp_signed("<", moved[0], count), rounds, after)
    if sums:
        again.set_metadata("llvm.loop", _as_it_is(builder.module))
    builder.position_at_end(after)
    results = [builder.phi(_VECTOR) for _ in sums]
    for phi, start, end in zip(results, sums, found, strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(end, rounds)
    return results


def tile(rows: int, columns: int, *, add: bool) -> Any:
    """A word for ``rows`` rows and ``columns`` vectors of a product of matrices, all sums in registers.

    ``word(count, a, a0, row, along, b, b0, step, c, c0, line)`` is, for i < rows and j < 4 columns,

        c[c0 + i line + j] (+)= Σ_k a[a0 + i row + k along] b[b0 + k step + j],     k < count

    added to what is there with ``add``.
    """

    def word(
        typing: Any,
        count: Any,
        a: Any,
        a0: Any,
        row: Any,
        along: Any,
        b: Any,
        b0: Any,
        step: Any,
        c: Any,
        c0: Any,
        line: Any,
    ) -> Any:
        whole = types.int64

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            left = _rows(context, builder, kinds[1], args[1], args[2], args[3], rows)
            (right,) = _rows(context, builder, kinds[5], args[5], args[6], _WORD(0), 1)
            out = _rows(context, builder, kinds[8], args[8], args[9], args[10], rows)
            places = [(_on(builder, out[i], _WORD(0), v), i, v) for i in range(rows) for v in range(columns)]
            start = [_read(builder, place) if add else _ZERO for place, _, _ in places]

            def body(offsets: Any, sums: Any) -> Any:
                own, other = offsets
                across = [_read(builder, _on(builder, right, other, v)) for v in range(columns)]
                factors = [_splat(builder, builder.load(builder.gep(row, [own]))) for row in left]
                return [
                    _gain(builder, factors[i], across[v], s)
                    for (_, i, v), s in zip(places, sums, strict=True)
                ]

            found = _loop(builder, args[0], [args[4], args[7]], start, body)
            for (place, _, _), value in zip(places, found, strict=True):
                _write(builder, value, place)
            return context.get_dummy_value()

        if not (_is_row(a) and _is_row(b) and _is_row(c)):
            return None
        return types.void(whole, a, whole, whole, whole, b, whole, whole, c, whole, whole), generate

    word.__name__ = f"tile_{rows}_{columns}"
    return intrinsic(word)


def dots(rows: int, columns: int, *, together: int = 1) -> Any:
    """A word for the dot products of ``rows`` rows with ``columns`` others, all sums in registers.

    ``word(length, a, a0, row, b, b0, step, c, c0, line)`` is, for i < rows and j < columns,

        c[c0 + i line + j] = Σ_f a[a0 + i row + f] b[b0 + j step + f],     f < length, a multiple of four

    with ``together`` sums for each, to hide how long a product takes where there are few.
    """

    def word(
        typing: Any,
        length: Any,
        a: Any,
        a0: Any,
        row: Any,
        b: Any,
        b0: Any,
        step: Any,
        c: Any,
        c0: Any,
        line: Any,
    ) -> Any:
        whole = types.int64

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            left = _rows(context, builder, kinds[1], args[1], args[2], args[3], rows)
            right = _rows(context, builder, kinds[4], args[4], args[5], args[6], columns)
            out = _rows(context, builder, kinds[7], args[7], args[8], args[9], rows)
            places = [(i, j) for i in range(rows) for j in range(columns)]
            number = len(places)

            def gained(offset: Any, part: int, sums: Any) -> Any:
                other = [_read(builder, _on(builder, pointer, offset, part)) for pointer in right]
                own = [_read(builder, _on(builder, pointer, offset, part)) for pointer in left]
                return [_gain(builder, own[i], other[j], s) for (i, j), s in zip(places, sums, strict=True)]

            def body(offsets: Any, sums: Any) -> Any:
                parts = [sums[p * number : (p + 1) * number] for p in range(together)]
                return [s for p, part in enumerate(parts) for s in gained(offsets[0], p, part)]

            stride = _WORD(WIDTH * together)
            rounds = builder.sdiv(args[0], stride)
            sums = _loop(builder, rounds, [stride], [_ZERO] * (number * together), body)
            if together > 1:
                rest = builder.sdiv(builder.srem(args[0], stride), _WORD(WIDTH))
                done = builder.mul(rounds, stride)

                def remaining(offsets: Any, sums: Any) -> Any:
                    return gained(builder.add(done, offsets[0]), 0, sums)

                sums[:number] = _loop(builder, rest, [_WORD(WIDTH)], sums[:number], remaining)
            for k, (i, j) in enumerate(places):
                value = sums[k]
                for p in range(1, together):
                    value = builder.fadd(value, sums[p * number + k], flags=("contract",))
                builder.store(_sum_of(builder, value), _on(builder, out[i], _WORD(j)))
            return context.get_dummy_value()

        if not (_is_row(a) and _is_row(b) and _is_row(c)):
            return None
        return types.void(whole, a, whole, whole, b, whole, whole, c, whole, whole), generate

    word.__name__ = f"dots_{rows}_{columns}"
    return intrinsic(word)


def exponentials(number: int) -> Any:
    """A word for exp(rates x) of one x, or of four neighbouring ones, x >= 0.

    ``word(rounds, x, x0, step, rates, fine, coarse, width, count, out, o, line)`` writes, for 4 ``rounds`` rates,

        out[o + q] = exp(rates[q] x[x0])                       where ``number`` is 1,
        out[o + q line + i] = exp(rates[q] x[x0 + i]), i < 4,  where it is 4.

    exp(a (c + f + d)) = exp(a c) exp(a f) exp(a d) with multiples c of ``count step`` and f of ``step``: the first two
    from tables ``coarse`` and ``fine`` of rows of ``width`` rates, the last from its series, whose next term is below
    6e-15 for abs(a d) <= 1/16.
    """

    def word(
        typing: Any,
        rounds: Any,
        x: Any,
        x0: Any,
        step: Any,
        rates: Any,
        fine: Any,
        coarse: Any,
        width: Any,
        count: Any,
        out: Any,
        o: Any,
        line: Any,
    ) -> Any:
        whole = types.int64

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds, step = signature.args, args[3]
            inverse = builder.fdiv(_DOUBLE(1.0), step)
            given = []
            for i in range(number):
                own = builder.load(_place(context, builder, kinds[1], args[1], args[2], _WORD(i), _WORD(1)))
                place = builder.fadd(builder.fmul(own, inverse), _DOUBLE(0.5))
                cell = builder.fptosi(place, _WORD)
                rest = builder.fsub(own, builder.fmul(builder.sitofp(cell, _DOUBLE), step))
                tables = [
                    _place(context, builder, kinds[k], args[k], _WORD(0), part(cell, args[8]), args[7])
                    for k, part in ((5, builder.urem), (6, builder.udiv))
                ]
                given.append((_splat(builder, rest), tables))
            rate = _pointer(context, builder, kinds[4], args[4], _WORD(0))
            first = _pointer(context, builder, kinds[9], args[9], args[10])
            factors = [_splat(builder, _DOUBLE(1.0 / math.factorial(k))) for k in range(8)]

            def body(offsets: Any, sums: Any) -> Any:
                (q,) = offsets
                rows = []
                for rest, tables in given:
                    y = builder.fmul(_read(builder, _on(builder, rate, q)), rest, flags=("contract",))
                    value = factors[7]
                    for factor in reversed(factors[:7]):
                        value = _gain(builder, value, y, factor)
                    known = [_read(builder, _on(builder, table, q)) for table in tables]
                    known = builder.fmul(*known, flags=("contract",))
                    rows.append(builder.fmul(value, known, flags=("contract",)))
                if number == 1:
                    _write(builder, rows[0], _on(builder, first, q))
                    return []
                for i, row in enumerate(_turned(builder, rows)):
                    at = builder.mul(builder.add(q, _WORD(i)), args[11])
                    _write(builder, row, _on(builder, first, at))
                return []

            _loop(builder, args[0], [_WORD(WIDTH)], [], body)
            return context.get_dummy_value()

        if not all(_is_row(kind) for kind in (x, rates, fine, coarse, out)):
            return None
        scalars = (whole, whole, out, whole, whole)
        return types.void(whole, x, whole, types.float64, rates, fine, coarse, *scalars), generate

    word.__name__ = f"exponentials_{number}"
    return intrinsic(word)


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of a matrix of four rows."""

    def pick(x: Any, y: Any, lanes: list[int]) -> Any:
        return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(_LANE, WIDTH), lanes))

    a, b, c, d = rows
    low, high = [0, 4, 2, 6], [1, 5, 3, 7]
    ab0, ab1, cd0, cd1 = pick(a, b, low), pick(a, b, high), pick(c, d, low), pick(c, d, high)
    first, second = [0, 1, 4, 5], [2, 3, 6, 7]
    return [pick(ab0, cd0, first), pick(ab1, cd1, first), pick(ab0, cd0, second), pick(ab1, cd1, second)]


load: Any = intrinsic(_load)
store: Any = intrinsic(_store)
load_wide: Any = intrinsic(_load_wide)
store_wide: Any = intrinsic(_store_wide)
load_spread_wide: Any = intrinsic(_load_spread_wide)
spread, spread_wide = _spreading(vector), _spreading(wide)
fma: Any = intrinsic(_fma)
mul: Any = _arithmetic("fmul")
add: Any = _arithmetic("fadd")
sub: Any = _arithmetic("fsub")
next_line: Any = intrinsic(_next_line)

__all__ = [
    "WIDTH",
    "add",
    "dots",
    "exponentials",
    "fma",
    "load",
    "load_spread_wide",
    "load_wide",
    "mul",
    "next_line",
    "spread",
    "spread_wide",
    "store",
    "store_wide",
    "sub",
    "tile",
]
