"""Config keys, config files by name, safe loading of YAML, and checks.

``from point_rend.config import add_pointrend_config`` works as in the stock project. The public
names are imported on first use: Detectron2 takes seconds to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from point_rend.config.checks import check_config
    from point_rend.config.defaults import add_pointrend_config
    from point_rend.config.files import get_config_file
    from point_rend.config.loading import load_config

__all__ = ["add_pointrend_config", "check_config", "get_config_file", "load_config"]

_MODULES = {
    "add_pointrend_config": "defaults",
    "check_config": "checks",
    "get_config_file": "files",
    "load_config": "loading",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
