"""Parameter names of older versions."""

import logging
import re
from collections.abc import MutableMapping
from typing import Any

logger = logging.getLogger(__name__)


_LEGACY_NAMES = (
    (re.compile(r"(^|\.)mask_point_head\."), r"\1mask_head.point_head."),
    (re.compile(r"(^|\.)mask_coarse_head\."), r"\1mask_head.coarse_head."),
    (re.compile(r"(^|\.)coarse_mask_fc(\d+)\."), r"\1fc\2."),
)


def upgrade_state_dict(
    state_dict: MutableMapping[str, Any], prefix: str = ""
) -> list[tuple[str, str]]:
    """Rename, in place, the keys of older PointRend checkpoints to those of the present modules.

    In the first version, ``mask_point_head`` and ``mask_coarse_head`` were siblings of the mask
    head, and the layers of the coarse head were called ``coarse_mask_fc1``, … The order of the keys
    and the ``_metadata`` of a module's state stay.

    Args:
        state_dict: Parameters by name.
        prefix: Only keys with this prefix are considered, and only what follows it.

    Returns:
        The renamed keys as (old, new); empty for a state dict of the present version.

    Raises:
        ValueError: If two keys would get the same name; then nothing is renamed.
    """
    old_keys: dict[str, str] = {}  # by the new key
    for key in state_dict:
        renamed = key
        if key.startswith(prefix):
            name = key[len(prefix) :]
            for pattern, replacement in _LEGACY_NAMES:
                name = pattern.sub(replacement, name)
            renamed = prefix + name
        if renamed in old_keys:
            raise ValueError(
                f"the checkpoint holds the same parameter twice, as {old_keys[renamed]!r} and as "
                f"{key!r}: remove one of them"
            )
        old_keys[renamed] = key
    renames = [(old, new) for new, old in old_keys.items() if old != new]
    if renames:
        entries = {new: state_dict[old] for new, old in old_keys.items()}
        state_dict.clear()
        state_dict.update(entries)
        old, new = renames[0]
        logger.warning(
            "The checkpoint is of an older PointRend: %d keys renamed, such as %s to %s",
            len(renames),
            old,
            new,
        )
    return renames
