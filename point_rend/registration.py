"""Registration of our backbones, and of our heads in place of the stock project's.

Detectron2 ships its own PointRend (``detectron2.projects.point_rend``), which other projects
import, and its registries refuse to register a name twice. Therefore the stock project is imported
first, if it is available, and its entries are then replaced by ours.
"""

import contextlib
import functools
import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.utils.registry import Registry

from point_rend.backbones.builders import BUILDERS
from point_rend.config.defaults import explicit_point_head
from point_rend.config.tasks import META_ARCHITECTURES
from point_rend.mask_head import (
    ImplicitPointRendMaskHead,
    ImplicitPointRendPointSupHead,
    MaskRCNNConvUpsamplePointSupHead,
    PointRendMaskHead,
)
from point_rend.meta_arch import PointRendPanopticFPN, PointRendSemanticSegmentor
from point_rend.roi_heads import PointRendCascadeROIHeads, PointRendROIHeads
from point_rend.semantic_seg import PointRendSemSegHead

_OURS: tuple[tuple[Registry, Any], ...] = (
    *((BACKBONE_REGISTRY, builder) for builder in BUILDERS),
    (ROI_MASK_HEAD_REGISTRY, PointRendMaskHead),
    (ROI_MASK_HEAD_REGISTRY, ImplicitPointRendMaskHead),
    (ROI_MASK_HEAD_REGISTRY, ImplicitPointRendPointSupHead),
    (ROI_MASK_HEAD_REGISTRY, MaskRCNNConvUpsamplePointSupHead),
    (ROI_HEADS_REGISTRY, PointRendROIHeads),
    (ROI_HEADS_REGISTRY, PointRendCascadeROIHeads),
    (SEM_SEG_HEADS_REGISTRY, PointRendSemSegHead),
    (META_ARCH_REGISTRY, PointRendSemanticSegmentor),
    (META_ARCH_REGISTRY, PointRendPanopticFPN),
)
_stock: dict[str, type] = {}
# The heads that have a point head, with the section that has their class count.
_POINT_HEAD_USERS = {
    "PointRendMaskHead": "ROI_HEADS",
    "ImplicitPointRendMaskHead": "ROI_HEADS",
    "PointRendSemSegHead": "SEM_SEG_HEAD",
}


def _set_entry(registry: Registry, name: str, entry: Any) -> None:
    # Registry has no public way to replace an entry; _obj_map is its only state.
    registry._obj_map.pop(name, None)
    if entry is not None:
        registry._obj_map[name] = entry


def register() -> None:
    """Register our heads; :func:`stock_heads` restores the previous entries."""
    # DeepLab's heads and backbone register themselves on import. The stock project needs OpenCV;
    # without it, its names are not registered.
    for project in ("deeplab", "point_rend"):
        with contextlib.suppress(ImportError):
            importlib.import_module(f"detectron2.projects.{project}")
    for registry, ours in _OURS:
        name = ours.__name__
        present = registry._obj_map.get(name)
        if present is not None and present is not ours:
            _stock[name] = present
        _set_entry(registry, name, ours)


def stock_module(name: str) -> ModuleType:
    """Import a module of the stock project, such as `point_features`."""
    return importlib.import_module(f"detectron2.projects.point_rend.{name}")


@contextlib.contextmanager
def stock_heads() -> Iterator[None]:
    """Restore the entries of the stock project during a ``with`` block.

    Models built inside the block are those of the stock project, including the mask heads that its
    ROI heads build by name. They are built from our configs, too: the heads get the class count
    that the stock project wants in ``MODEL.POINT_HEAD``, the semantic head also the keys in
    ``MODEL.SEM_SEG_HEAD.POINT_HEAD``, and Detectron2's meta-architectures take the place of ours.

    Raises:
        RuntimeError: if the stock project is not installed.
    """
    if not _stock:
        raise RuntimeError(
            "stock_heads(): detectron2.projects.point_rend could not be imported, so there are no "
            "stock heads to restore"
        )
    # The stock project has no meta-architectures: its heads work in Detectron2's own, and its mask
    # heads in Detectron2's cascade.
    entries = _stock | {
        name: META_ARCH_REGISTRY.get(meta.stock_name)
        for name, meta in META_ARCHITECTURES.items()
        if meta.stock_name
    }
    entries["PointRendCascadeROIHeads"] = CascadeROIHeads
    implicit = _stock.get(ImplicitPointRendMaskHead.__name__)
    if implicit is not None:  # its other name is of a project that is not part of Detectron2
        entries[ImplicitPointRendPointSupHead.__name__] = implicit
    before = [registry._obj_map.get(ours.__name__) for registry, ours in _OURS]
    with contextlib.ExitStack() as stack:
        for name, section in _POINT_HEAD_USERS.items():
            if name in _stock:
                stack.enter_context(_reading_our_configs(_stock[name], section))
        try:
            for registry, ours in _OURS:
                if ours.__name__ in entries:
                    _set_entry(registry, ours.__name__, entries[ours.__name__])
            yield
        finally:
            for (registry, ours), entry in zip(_OURS, before, strict=True):
                _set_entry(registry, ours.__name__, entry)


@contextlib.contextmanager
def _reading_our_configs(head: Any, section: str) -> Iterator[None]:
    """Let a head of the stock project read our configs during a ``with`` block.

    Args:
        head: The class.
        section: Section below MODEL with its class count.
    """
    construct = vars(head).get("__init__")
    if construct is None:  # that of a base class
        yield
        return

    @functools.wraps(construct)
    def construct_explicitly(self: Any, *args: Any, **kwargs: Any) -> None:
        if args and isinstance(args[0], CfgNode):
            args = (explicit_point_head(args[0], section), *args[1:])
        construct(self, *args, **kwargs)

    head.__init__ = construct_explicitly
    try:
        yield
    finally:
        head.__init__ = construct
