"""Random numbers as a function of what they are for, not of what was drawn before.

A training that is interrupted then draws the same numbers as one that is not, whatever an
evaluation, another process or a worker has drawn in between.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed Python, NumPy and torch on all devices.

    Args:
        key: What the random numbers are for; each number 0 or more. The streams of different keys
            have nothing to do with each other.
    """
    torch.manual_seed(_seed_others(key))


@contextlib.contextmanager
def random_numbers_of(*key: int) -> Iterator[None]:
    """Let Python, NumPy and torch on the CPU draw from a stream of its own within a block.

    Behind the block their generators go on as if nothing had been drawn.

    Args:
        key: As of :func:`seed_all`.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(_seed_others(key))
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed_others(key: tuple[int, ...]) -> int:
    """Seed Python and NumPy, and return a seed for torch."""
    # To NumPy (1, 2) and (1, 2, 0) are the same: the length tells them apart.
    words = np.random.SeedSequence((len(key), *key)).generate_state(8)
    random.seed(words[:3].tobytes())
    np.random.seed(words[3:6])
    return int.from_bytes(words[6:].tobytes(), "little")
