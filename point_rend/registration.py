"""Registration of our heads in place of the stock project's, whichever is imported first.

Detectron2 ships its own PointRend (``detectron2.projects.point_rend``), which other projects
import, and its registries refuse to register a name twice. Therefore the stock project is imported
first, if it is available, and its entries are then replaced by ours.
"""

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType

from detectron2.modeling import (
    META_ARCH_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.utils.registry import Registry

from point_rend.mask_head import ImplicitPointRendMaskHead, PointRendMaskHead
from point_rend.meta_arch import PointRendPanopticFPN, PointRendSemanticSegmentor
from point_rend.roi_heads import PointRendROIHeads
from point_rend.semantic_seg import PointRendSemSegHead

_OURS: tuple[tuple[Registry, type], ...] = (
    (ROI_MASK_HEAD_REGISTRY, PointRendMaskHead),
    (ROI_MASK_HEAD_REGISTRY, ImplicitPointRendMaskHead),
    (ROI_HEADS_REGISTRY, PointRendROIHeads),
    (SEM_SEG_HEADS_REGISTRY, PointRendSemSegHead),
    (META_ARCH_REGISTRY, PointRendSemanticSegmentor),
    (META_ARCH_REGISTRY, PointRendPanopticFPN),
)
_stock: dict[str, type] = {}


def _set_entry(registry: Registry, name: str, entry: type | None) -> None:
    # Registry has no public way to replace an entry; _obj_map is its only state.
    registry._obj_map.pop(name, None)
    if entry is not None:
        registry.register(entry)


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
    ROI heads build by name.

    Raises:
        RuntimeError: if the stock project is not installed.
    """
    if not _stock:
        raise RuntimeError(
            "stock_heads(): detectron2.projects.point_rend could not be imported, so there are no "
            "stock heads to restore"
        )
    before = [registry._obj_map.get(ours.__name__) for registry, ours in _OURS]
    try:
        for registry, ours in _OURS:
            if ours.__name__ in _stock:
                _set_entry(registry, ours.__name__, _stock[ours.__name__])
        yield
    finally:
        for (registry, ours), entry in zip(_OURS, before, strict=True):
            _set_entry(registry, ours.__name__, entry)
