"""Random numbers as a function of a key, such as seed and iteration, not of earlier draws.

An interrupted training then draws the same numbers as an uninterrupted one, whatever an evaluation,
another process or a worker draws in between.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed Python, NumPy and torch on all devices.

    Args:
        key: Numbers of 0 or more. The streams of different keys are independent.
    """
    torch.manual_seed(_seed_others(key))


@contextlib.contextmanager
def random_numbers_of(*key: int) -> Iterator[None]:
    """Let Python, NumPy and torch on the CPU draw from the stream of a key within a block.

    After the block their generators continue as if nothing had been drawn.

    Args:
        key: As for :func:`seed_all`.
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
    # NumPy treats (1, 2) and (1, 2, 0) alike: the length distinguishes them.
    words = np.random.SeedSequence((len(key), *key)).generate_state(8)
    random.seed(words[:3].tobytes())
    np.random.seed(words[3:6])
    return int.from_bytes(words[6:].tobytes(), "little")
