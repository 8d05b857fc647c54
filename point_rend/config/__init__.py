"""Config keys, safe loading of YAML files, and checks.

``from point_rend.config import add_pointrend_config`` works as in the stock project.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from point_rend.config.defaults import add_pointrend_config

__all__ = ["add_pointrend_config"]


def __getattr__(name: str) -> Any:
    """Import ``add_pointrend_config`` on first use: Detectron2 takes seconds to import."""
    if name != "add_pointrend_config":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from point_rend.config.defaults import add_pointrend_config

    return add_pointrend_config
