"""Our heads and those of the stock project in one process."""

import subprocess
import sys

import pytest
from detectron2.modeling import (
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    build_mask_head,
    build_model,
    build_roi_heads,
)
from torch import nn

import point_rend
from point_rend import load_config, registration, stock_heads
from point_rend.config.defaults import STOCK_POINT_HEADS
from point_rend.registration import register
from tests.config.test_published_configs import CONFIGS, NARROW
from tests.conftest import REPOSITORY
from tests.synthetic import SHAPES, small_head_config

OURS = {
    "PointRendMaskHead": (ROI_MASK_HEAD_REGISTRY, point_rend.PointRendMaskHead),
    "ImplicitPointRendMaskHead": (ROI_MASK_HEAD_REGISTRY, point_rend.ImplicitPointRendMaskHead),
    "PointRendROIHeads": (ROI_HEADS_REGISTRY, point_rend.PointRendROIHeads),
}
STOCK = "detectron2.projects.point_rend"

REPORT = """
from detectron2.modeling import ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY
names = [(ROI_MASK_HEAD_REGISTRY, "PointRendMaskHead")]
names += [(ROI_MASK_HEAD_REGISTRY, "ImplicitPointRendMaskHead")]
names += [(ROI_HEADS_REGISTRY, "PointRendROIHeads")]
print(*sorted({registry.get(name).__module__.split(".")[0] for registry, name in names}))
"""

BLOCK_STOCK = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("{STOCK}"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocker())
"""


def run(code: str) -> str:
    """Run code in a new process and return its output."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def registered() -> dict[str, type]:
    return {name: registry.get(name) for name, (registry, _) in OURS.items()}


def assert_ours():
    assert registered() == {name: entry for name, (_, entry) in OURS.items()}


def sources(model: nn.Module) -> set[str]:
    """The projects from which a model and its parts come: "ours", "stock" or others."""
    kinds = {"point_rend": "ours", STOCK: "stock"}
    modules = {type(part).__module__.rpartition(".")[0] for part in model.modules()}
    return {kinds.get(module, "others") for module in modules}


def stock_project():
    return pytest.importorskip(STOCK)


def test_without_the_stock_project_only_stock_heads_fails():
    code = f"""
{BLOCK_STOCK}
import point_rend
{REPORT}
import torch
from detectron2.modeling import build_mask_head
from tests.synthetic import *
head = build_mask_head(small_head_config(), SHAPES).eval()
with torch.no_grad():
    detections = head(random_features(1), as_detections(random_proposals([2])))
print(tuple(detections[0].pred_masks.shape))
try:
    with point_rend.stock_heads():
        pass
except RuntimeError as error:
    print("refused:", error)
"""
    family, shape, refusal = run(code).splitlines()
    assert family == "point_rend"
    assert shape == "(2, 1, 224, 224)"
    assert refusal.startswith(f"refused: stock_heads(): {STOCK}")


def test_the_package_registers_ours():
    assert_ours()


def test_inside_the_context_the_stock_heads_are_built_and_ours_after_it():
    stock = stock_project()
    cfg = small_head_config("MODEL.POINT_HEAD.NUM_CLASSES", 5)
    with stock_heads():
        assert registered()["PointRendMaskHead"] is stock.PointRendMaskHead
        assert registered()["ImplicitPointRendMaskHead"] is stock.ImplicitPointRendMaskHead
        assert registered()["PointRendROIHeads"].__module__.startswith(STOCK)
        assert type(build_mask_head(cfg, SHAPES)) is stock.PointRendMaskHead
    assert_ours()
    assert type(build_mask_head(cfg, SHAPES)) is point_rend.PointRendMaskHead


SMALL = (
    *NARROW,
    *("MODEL.VIT.EMBED_DIM", "32", "MODEL.VIT.DEPTH", "2", "MODEL.VIT.NUM_HEADS", "2"),
    *("MODEL.VIT.GLOBAL_BLOCKS", "[1]", "MODEL.SWIN.DEPTHS", "[1, 1, 1, 1]"),
    *("MODEL.SWIN.EMBED_DIM", "24", "MODEL.MVIT.LAST_BLOCKS", "[0, 1, 2, 3]"),
    # Others need a `loss_weight`, which the stock project's mask heads lack.
    *("MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT", "1.0"),
)
SHIPPED = [path for path in CONFIGS.rglob("*pointrend_*.yaml") if not path.name.startswith("Base-")]


@pytest.mark.parametrize("path", sorted(SHIPPED), ids=lambda path: path.stem)
def test_every_shipped_config_builds_the_stock_project_inside_the_context(path):
    """The class count is filled in, which our configs leave to the head; our point heads fail."""
    stock_project()
    cfg = load_config(str(path), () if path.parent.name == "Demo" else SMALL)
    cfg.freeze()
    before = cfg.clone()
    ours = build_model(cfg)
    if cfg.MODEL.POINT_HEAD.NAME not in STOCK_POINT_HEADS:
        with stock_heads(), pytest.raises(KeyError, match=cfg.MODEL.POINT_HEAD.NAME):
            build_model(cfg)
        return
    with stock_heads():
        model = build_model(cfg)
    assert cfg == before
    assert sources(model) == {"stock" if source == "ours" else source for source in sources(ours)}
    if not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:  # which the stock head ignores
        ours.load_state_dict(model.state_dict())  # the weights of one fit the other


def test_a_head_built_directly_inside_the_context_takes_our_configs_and_outside_it_does_not():
    stock = stock_project()
    cfg = small_head_config()
    assert cfg.MODEL.POINT_HEAD.NUM_CLASSES == -1
    with stock_heads(), stock_heads():
        head = stock.PointRendMaskHead(cfg, SHAPES)
    assert head.point_head.predictor.out_channels == cfg.MODEL.ROI_HEADS.NUM_CLASSES
    with pytest.raises(AssertionError):
        stock.PointRendMaskHead(cfg, SHAPES)


def test_a_class_count_that_is_set_is_left_to_the_stock_project():
    stock = stock_project()
    cfg = small_head_config("MODEL.POINT_HEAD.NUM_CLASSES", 7)
    with stock_heads(), pytest.raises(AssertionError):
        stock.PointRendMaskHead(cfg, SHAPES)


def test_stock_roi_heads_build_the_stock_mask_head_inside_the_context():
    stock = stock_project()
    opts = ("MODEL.POINT_HEAD.NUM_CLASSES", 5, "MODEL.ROI_HEADS.NAME", "PointRendROIHeads")
    with stock_heads():
        heads = build_roi_heads(small_head_config(*opts), SHAPES)
    assert type(heads).__module__.startswith(STOCK)
    assert type(heads.mask_head) is stock.PointRendMaskHead


def test_an_exception_inside_the_context_brings_ours_back():
    stock_project()
    with pytest.raises(KeyError, match="inside"), stock_heads():
        raise KeyError("inside")
    assert_ours()


def test_contexts_may_be_nested():
    stock = stock_project()
    with stock_heads():
        with stock_heads():
            pass
        assert registered()["PointRendMaskHead"] is stock.PointRendMaskHead
    assert_ours()


def test_registering_again_changes_nothing():
    stock = stock_project()
    register()
    assert_ours()
    with stock_heads():
        assert registered()["PointRendMaskHead"] is stock.PointRendMaskHead
    assert_ours()


def test_the_stock_registry_of_point_heads_is_left_alone():
    stock_project()
    from detectron2.projects.point_rend import point_head as stock_point_head

    assert stock_point_head.POINT_HEAD_REGISTRY is not point_rend.POINT_HEAD_REGISTRY
    for name in ("StandardPointHead", "ImplicitPointHead"):
        assert stock_point_head.POINT_HEAD_REGISTRY.get(name) is getattr(stock_point_head, name)
        assert point_rend.POINT_HEAD_REGISTRY.get(name) is getattr(point_rend, name)


def test_a_name_that_another_project_registered_before_us_is_taken_over(monkeypatch):
    """Copies of PointRend in other projects register the same names."""
    other = type("PointRendMaskHead", (), {})
    monkeypatch.setattr(registration, "_stock", {})
    monkeypatch.setitem(ROI_MASK_HEAD_REGISTRY._obj_map, other.__name__, other)
    register()
    assert_ours()
    with stock_heads():
        assert ROI_MASK_HEAD_REGISTRY.get("PointRendMaskHead") is other
    assert_ours()
