"""Safe loading and sealed saving of checkpoints; published models by name."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
    from point_rend.checkpoint.class_metadata import read_metadata
    from point_rend.checkpoint.legacy_keys import upgrade_state_dict

__all__ = ["SafeDetectionCheckpointer", "read_metadata", "upgrade_state_dict"]

_MODULES = {
    "SafeDetectionCheckpointer": "checkpointer",
    "read_metadata": "class_metadata",
    "upgrade_state_dict": "legacy_keys",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used; Detectron2 takes seconds to import."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
