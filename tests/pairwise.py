"""Pairwise covering arrays: few combinations that contain every pair of values."""

from collections.abc import Sequence
from itertools import combinations, product


def pairwise_rows(*factors: Sequence) -> list[tuple]:
    """Return rows, one value per factor, that contain every pair of values of any two factors.

    Greedy: each row covers as many of the remaining pairs as a single row can.
    """

    def pairs(row: tuple[int, ...]) -> set:
        return set(combinations(enumerate(row), 2))

    candidates = list(product(*[range(len(values)) for values in factors]))
    missing = set().union(*map(pairs, candidates))
    rows = []
    while missing:
        best = max(candidates, key=lambda row: len(pairs(row) & missing))
        missing -= pairs(best)
        rows.append(tuple(values[i] for values, i in zip(factors, best, strict=True)))
    return rows
