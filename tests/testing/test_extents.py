"""Byte ranges against the set of bytes that a tensor's elements occupy."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from isotherm.testing.extents import NOTHING, Extent, of_strides


def bytes_of(extent: Extent) -> set[int]:
    ranges = zip(extent.starts.tolist(), extent.stops.tolist(), strict=True)
    return {byte for start, stop in ranges for byte in range(start, stop)}


def plain_bytes(start: int, shape: list[int], strides: list[int], itemsize: int) -> set[int]:
    return {
        start + sum(index * stride for index, stride in zip(indices, strides, strict=True)) * itemsize + byte
        for indices in itertools.product(*(range(size) for size in shape))
        for byte in range(itemsize)
    }


layouts = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 13)), max_size=3).map(
    lambda dims: ([size for size, _ in dims], [stride for _, stride in dims])
)
itemsizes = st.sampled_from([1, 2, 4, 8])


@given(st.integers(0, 20), layouts, itemsizes)
def test_strides_become_the_bytes_of_their_elements(
    start: int, layout: tuple[list[int], list[int]], itemsize: int
) -> None:
    extent = of_strides(start, *layout, itemsize)
    assert bytes_of(extent) == plain_bytes(start, *layout, itemsize)
    assert (extent.starts[1:] > extent.stops[:-1]).all(), "sorted, and apart from each other"


@given(layouts, layouts, st.integers(0, 30), st.integers(0, 30), itemsizes)
def test_overlap_cover_and_union_are_those_of_sets(
    one: tuple[list[int], list[int]],
    other: tuple[list[int], list[int]],
    one_start: int,
    other_start: int,
    itemsize: int,
) -> None:
    a, b = of_strides(one_start, *one, itemsize), of_strides(other_start, *other, itemsize)
    bytes_a, bytes_b = bytes_of(a), bytes_of(b)
    assert a.overlaps(b) == bool(bytes_a & bytes_b)
    assert a.covers(b) == (bytes_b <= bytes_a)
    assert bytes_of(Extent.union([a, b])) == bytes_a | bytes_b


def test_columns_of_a_tensor_do_not_overlap() -> None:
    table = torch.zeros(5, 6, dtype=torch.int32)
    left, right = Extent.of_tensor(table[:, :3]), Extent.of_tensor(table[:, 3:])
    assert not left.overlaps(right)
    assert left.overlaps(Extent.of_tensor(table[:, 2:4]))
    assert len(left.starts) == 5
    assert Extent.of_tensor(table, origin=64).starts.tolist() == [64]
    assert len(Extent.of_tensor(table.t()).starts) == 1
    assert bytes_of(Extent.of_tensor(table[2, 1:3])) == set(range(52, 60))


def test_nothing_touches_nothing() -> None:
    assert Extent.of(7, 7) is NOTHING
    assert not NOTHING.overlaps(Extent.of(0, 9))
    assert Extent.of(0, 9).covers(NOTHING)
    assert Extent.union([]) is NOTHING
