"""Random numbers that are a function of a key."""

import itertools
import random

import numpy as np
import torch

from point_rend.utils.seeding import random_numbers_of, seed_all


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_key_gives_the_same_numbers_after_any_draws() -> None:
    results = []
    for _ in range(2):
        seed_all(5, 7)
        results.append(draws())
    draws()
    with random_numbers_of(5, 7):
        results.append(draws())
    assert results[0] == results[1] == results[2]


def test_different_keys_give_different_numbers() -> None:
    keys = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 0, 0), (2**31,), (2**32,), (2**40, 1)]
    found = []
    for key in keys:
        with random_numbers_of(*key):
            found.append(draws())
    for one, other in itertools.combinations(found, 2):
        assert all(a != b for a, b in zip(one, other, strict=True))


def test_after_a_block_the_generators_continue_as_if_nothing_had_been_drawn() -> None:
    seed_all(1)
    expected = [draws(), draws()]
    seed_all(1)
    first = draws()
    with random_numbers_of(2):
        draws()
    assert [first, draws()] == expected


def test_the_numbers_of_consecutive_keys_are_uniform_and_uncorrelated() -> None:
    found = np.empty((2000, 3))
    for position in range(len(found)):
        with random_numbers_of(3, position):
            found[position] = draws()
    assert np.all(np.abs(found.mean(axis=0) - 0.5) < 0.03)  # 4.6 standard deviations
    columns = np.concatenate([found[:-1], found[1:]], axis=1)
    assert np.all(np.abs(np.corrcoef(columns.T) - np.eye(6)) < 0.1)
