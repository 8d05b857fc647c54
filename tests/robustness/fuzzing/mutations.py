"""Changes of real files, as data that hypothesis can draw and shrink."""

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hypothesis import strategies as st

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from tests.checkpoint.nets import net

Mutation = tuple[int, str, bytes]


def mutations(pieces: Iterable[bytes], largest: int) -> st.SearchStrategy[list[Mutation]]:
    """Draw changes at places of a file: replaced, inserted, removed and repeated bytes, an end.

    Args:
        pieces: Bytes that are meaningful in the format, which random bytes hardly ever are.
        largest: Largest place.
    """
    content = st.sampled_from(sorted(set(pieces))) | st.binary(min_size=1, max_size=9)
    kinds = st.sampled_from(["replace", "replace", "insert", "remove", "repeat", "end"])
    return st.lists(st.tuples(st.integers(0, largest), kinds, content), min_size=1, max_size=6)


def mutated(content: bytes, changes: Iterable[Mutation]) -> bytes:
    """Return a file after changes."""
    for place, kind, piece in changes:
        at = place % (len(content) + 1)
        match kind:
            case "replace":
                content = content[:at] + piece + content[at + len(piece) :]
            case "insert":
                content = content[:at] + piece + content[at:]
            case "remove":
                content = content[:at] + content[at + len(piece) :]
            case "repeat":
                content = content[:at] + content[max(0, at - 40) : at] * len(piece) + content[at:]
            case "end":
                content = content[:at]
    return content


def loads_or_is_refused(content: bytes, suffix: str) -> bool:
    """Load a checkpoint: it loads, or there is one error of one line that names it."""
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"model.{suffix}")
        path.write_bytes(content)
        try:
            SafeDetectionCheckpointer(net()).load(str(path))
        except (ValueError, OSError) as error:
            message = " ".join(str(error).split())  # as the commands print it
            assert str(path) in message, message
            assert message.isprintable(), message
            return False
        finally:
            logging.disable(logging.NOTSET)
    return True
