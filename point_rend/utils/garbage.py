"""Python's search for cycles, out of the way of loops that create many objects without any."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def cycles_uncollected() -> Iterator[None]:
    """Pause the search for cycles, which again and again visits all objects of the process."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
