"""Writing of configs as YAML that programs of Detectron2 read, too."""

from detectron2.config import CfgNode

from point_rend.config.defaults import (
    DEEPLAB_DEFAULTS,
    OWN_DEFAULTS,
    STOCK_POINT_HEADS,
    explicit_point_head,
    value_of,
)
from point_rend.config.tasks import meta_architecture, point_head_user

CONFIG_NAME = "config.yaml"  # of the config that a training writes into its OUTPUT_DIR


def dump_config(cfg: CfgNode) -> str:
    """Write a config as YAML that needs this package for as few keys as possible.

    Keys that Detectron2's own PointRend project lacks are left out where they have their default,
    and the class count of the point head is written out. Thus a program that only calls the
    ``add_pointrend_config`` of that project reads the text, unless comments at its top name what
    else is needed. :func:`load_config` reads it in any case.

    Args:
        cfg: A complete config, which is not changed.
    """
    written = explicit_point_head(cfg, point_head_user(cfg))
    own = [key for key, default in OWN_DEFAULTS.items() if value_of(written, key) != default]
    deeplab = DEEPLAB_DEFAULTS.keys() if _uses_deeplab(written) else ()
    for key in (OWN_DEFAULTS | DEEPLAB_DEFAULTS).keys() - {*own, *deeplab}:
        _delete(written, key.split("."))
    comments = []
    if own:
        comments += [
            "Detectron2 and its PointRend project lack the following keys, which",
            "point_rend.add_pointrend_config(cfg) adds:",
            *(f"  {key}" for key in own),
        ]
    if deeplab:
        comments += [
            "detectron2.projects.deeplab.add_deeplab_config(cfg) adds the keys of DeepLab."
        ]
    name = written.MODEL.META_ARCHITECTURE
    stock_name = meta_architecture(written).stock_name
    if stock_name:
        comments += [
            f"MODEL.META_ARCHITECTURE {name} needs `import point_rend`;",
            f"Detectron2's {stock_name} takes the same weights.",
        ]
    point_head = written.MODEL.POINT_HEAD.NAME
    if point_head not in STOCK_POINT_HEADS:
        comments += [f"MODEL.POINT_HEAD.NAME {point_head}: Detectron2 has no such point head."]
    return "".join(f"# {line}\n" for line in comments) + written.dump()


def _uses_deeplab(cfg: CfgNode) -> bool:
    """Return whether a config uses a part or a key of Detectron2's DeepLab project."""
    heads = cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME
    return (
        any(name.startswith("DeepLab") for name in heads)
        or cfg.MODEL.BACKBONE.NAME == "build_resnet_deeplab_backbone"
        or cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupPolyLR"
        or any(value_of(cfg, key) != default for key, default in DEEPLAB_DEFAULTS.items())
    )


def _delete(node: CfgNode, path: list[str]) -> None:
    """Delete a key, and the sections around it that become empty."""
    name, *below = path
    if below:
        _delete(node[name], below)
    if not below or not node[name]:
        del node[name]
