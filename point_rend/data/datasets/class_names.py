"""Lists of class names: matched by name, and compared for messages."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from point_rend.utils.errors import shorten

KINDS = {"thing": "instance classes", "stuff": "semantic classes"}
SHOWN = 8  # names of a list in a message
SHOWN_CHARACTERS = 60  # of a name in a message


def match_by_name(own: Sequence[str], others: Sequence[str]) -> list[int] | None:
    """Return the index of each name in another list of the same names.

    Returns:
        The indices; None if the lists have different names, or one name twice in another order.
    """
    if list(own) == list(others):
        return list(range(len(own)))
    index = {name: k for k, name in enumerate(others)}
    if len(own) != len(others) or len(index) < len(others) or {*own} != {*others}:
        return None
    return [index[name] for name in own]


def same_but_for_spelling(own: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether names are the same, in this order, but for case, spaces and underscores."""
    return list(map(plain_name, own)) == list(map(plain_name, others))


def compare_names(
    source: str, own: Sequence[str], where: str, others: Sequence[str], *, kind: str
) -> str:
    """Describe two lists of class names and their difference in one sentence.

    Args:
        source: Origin of the first list.
        own: The first list.
        where: Origin of the second list.
        others: The second list.
        kind: thing or stuff.
    """
    lists = f"{source} has {summarize(own)}, {where} has {summarize(others)}"
    text = f"the {KINDS[kind]} differ: {lists}"
    known, wanted = {*own}, {*others}
    lacking = [name for name in own if name not in wanted]
    further = [name for name in others if name not in known]
    if lacking and len(lacking) < len(own):
        text += f"; only the former has {_shown(lacking)}"
    if further and len(further) < len(others):
        text += f"; only the latter has {_shown(further)}"
    if not known & wanted:
        text += "; they have no name in common"
    counts = Counter(own) | Counter(others)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        text += f"; {_shown(twice)} occurs more than once"
    if not lacking and not further and not twice:
        text += "; only the order differs"
    by_plain = {plain_name(name): name for name in further}
    pairs = [f"{x!r} is {by_plain[plain_name(x)]!r}" for x in lacking if plain_name(x) in by_plain]
    if pairs:
        text += f"; but for case, spaces, hyphens and underscores {_shown(pairs)}"
    return text


def summarize(names: Sequence[str]) -> str:
    """Return the number of classes and the names of the first."""
    return f"{len(names)} ({_shown(names)})"


def plain_name(name: str) -> str:
    """Return what remains of a name without case, spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name)).casefold()


def _shown(names: Sequence[str]) -> str:
    shown = [shorten(str(name), SHOWN_CHARACTERS) for name in names[:SHOWN]]
    return ", ".join(shown) + (", ..." if len(names) > SHOWN else "")
