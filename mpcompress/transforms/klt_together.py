"""Items that are coded in step, so that the rows of all of them go through one matrix product.

A product of one to eight rows spends its time on reading the basis. So the encoder stops where it wants such a product
(`klt_sample.Product`), and goes on when all items have stopped: those that come first in the order of the stream, and
want the same basis, share a product. Tensors of different shapes meet from their roots on, level for level. Every row
has the bits of a product of its own (`klt_products`). Items in step hold their buffers at the same time: they are few,
and small, so that these stay in a processor's cache; large ones have little to win, since nearly all their rows are
in large groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from mpcompress.transforms.klt_basis import Bases
from mpcompress.transforms.klt_sample import Coding, Product

__all__ = ["SHARED_ELEMENTS", "alone", "shares", "together"]

SHARED_ELEMENTS = 1 << 19
_MOST = 16

T = TypeVar("T")


def shares(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of items that are coded in step, in order but for large before small in each share.

    Their elements are at most SHARED_ELEMENTS, or those of a single item: so the n-th of a share, from 1 on, has at
    most an n-th of that, and buffers kept for each place stay small.
    """
    share: list[int] = []
    room = SHARED_ELEMENTS
    for number, size in enumerate(sizes):
        if share and (size > room or len(share) == _MOST):
            yield sorted(share, key=lambda of: -sizes[of])
            share, room = [], SHARED_ELEMENTS
        share.append(number)
        room -= size
    if share:
        yield sorted(share, key=lambda of: -sizes[of])


def alone(bases: Bases, coding: Coding[T]) -> T:
    """The result of one item."""
    try:
        product = next(coding)
        while True:
            product = coding.send(bases.forward(product.slot, product.rows, product.depth))
    except StopIteration as ended:
        result: T = ended.value
        return result


def together(bases: Bases, codings: Sequence[Coding[T]]) -> list[T]:
    """The results of items that are coded in step; an error of one of them ends all."""
    if len(codings) == 1:
        return [alone(bases, codings[0])]
    results: dict[int, T] = {}
    waiting: dict[int, Product] = {}

    def go_on(number: int, found: object) -> None:
        try:
            waiting[number] = codings[number].send(found)  # type: ignore[arg-type] # None starts a generator
        except StopIteration as ended:
            results[number] = ended.value

    for number in range(len(codings)):
        go_on(number, None)
    while waiting:
        turn, slot = min((product.turn, product.slot) for product in waiting.values())
        numbers = [number for number, product in waiting.items() if (product.turn, product.slot) == (turn, slot)]
        asked = [waiting.pop(number) for number in numbers]
        components = bases.forward_few(slot, [of.rows for of in asked], [of.depth for of in asked])
        for number, found in zip(numbers, components, strict=True):
            go_on(number, found)
    return [results[number] for number in range(len(codings))]
