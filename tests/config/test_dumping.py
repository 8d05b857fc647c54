"""Configs written by a training, read by this package and by programs that know the stock one."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config

from point_rend import load_config, registration
from point_rend.config.checks import check_config
from point_rend.config.defaults import OWN_DEFAULTS, value_of
from point_rend.config.dumping import dump_config
from point_rend.config.loading import parse_config
from tests.config.test_config import COCO_1X, stock_cfg, write
from tests.config.test_published_configs import CONFIGS, SMALL, flat

SHIPPED = sorted(path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("Base-"))


def comments(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))


def read_by_stock(text: str, folder: Path, *, deeplab: bool = False) -> CfgNode:
    """Read a config as programs do that only know the projects of Detectron2."""
    cfg = stock_cfg()
    if deeplab:
        add_deeplab_config(cfg)
    cfg.merge_from_file(write(folder / "config.yaml", text))
    return cfg


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_stock_project_reads_every_shipped_config_or_the_keys_it_lacks_are_named(
    path: Path, tmp_path: Path
):
    cfg = load_config(str(path))
    text = dump_config(cfg)
    # Such as a second point head, or large-scale jitter.
    beyond_stock = {key for key, default in OWN_DEFAULTS.items() if value_of(cfg, key) != default}
    if beyond_stock:
        named = {line.removeprefix("#   ") for line in comments(text).splitlines()}
        assert beyond_stock <= named
        return
    assert "add_pointrend_config" not in comments(text)
    stock = flat(read_by_stock(text, tmp_path, deeplab="add_deeplab_config" in comments(text)))
    ours = flat(cfg)
    assert stock.keys() <= ours.keys()
    differing = {key for key, value in stock.items() if str(value) != str(ours[key])}
    assert differing - {"MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"} == {
        "MODEL.POINT_HEAD.NUM_CLASSES"
    }  # YAML has no tuples of tuples
    head = "SEM_SEG_HEAD" if path.parent.name == "SemanticSegmentation" else "ROI_HEADS"
    if path.parent.name != "Demo":
        assert stock["MODEL.POINT_HEAD.NUM_CLASSES"] == stock[f"MODEL.{head}.NUM_CLASSES"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_written_config_is_read_as_it_was(path: Path):
    cfg = load_config(str(path))
    cfg.freeze()
    before = cfg.clone()
    read = parse_config(dump_config(cfg), "text")
    assert cfg == before
    read.MODEL.POINT_HEAD.NUM_CLASSES = cfg.MODEL.POINT_HEAD.NUM_CLASSES
    assert {k: str(v) for k, v in flat(read).items() if "CASCADE" not in k} == {
        k: str(v) for k, v in flat(cfg).items() if "CASCADE" not in k
    }


def test_keys_that_only_this_package_reads_are_named_where_they_are_set(tmp_path: Path):
    opts = [
        *("MODEL.POINT_HEAD.SUBDIVISION_CELLS_PER_PIXEL", "1.5"),
        *("TEST.BOUNDARY_METRICS", "True"),
    ]
    text = dump_config(load_config(COCO_1X, opts))
    assert comments(text).splitlines() == [
        "# Detectron2 and its PointRend project lack the following keys, which",
        "# point_rend.add_pointrend_config(cfg) adds:",
        "#   MODEL.POINT_HEAD.SUBDIVISION_CELLS_PER_PIXEL",
        "#   TEST.BOUNDARY_METRICS",
    ]
    with pytest.raises(KeyError, match=r"SUBDIVISION_CELLS_PER_PIXEL|BOUNDARY_METRICS"):
        read_by_stock(text, tmp_path)
    read = parse_config(text, "text")
    assert read.MODEL.POINT_HEAD.SUBDIVISION_CELLS_PER_PIXEL == 1.5
    assert read.TEST.BOUNDARY_METRICS is True


def test_the_meta_architecture_of_this_package_is_named_with_that_of_detectron2():
    assert comments(dump_config(load_config(COCO_1X))) == ""
    semantic = "SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes.yaml"
    text = comments(dump_config(load_config(semantic)))
    assert "PointRendSemanticSegmentor needs `import point_rend`" in text
    assert "Detectron2's SemanticSegmentor takes the same weights" in text


def test_a_point_head_that_the_stock_project_lacks_is_named():
    residual = ["MODEL.POINT_HEAD.NAME", "ResidualPointHead"]
    assert comments(dump_config(load_config(COCO_1X, residual))) == (
        "# MODEL.POINT_HEAD.NAME ResidualPointHead: Detectron2 has no such point head.\n"
    )


def test_steps_that_fit_the_image_are_written_out():
    name = "SemanticSegmentation/pointrend_semantic_R_101_FPN_P3-P5_1x_cityscapes.yaml"
    cfg = load_config(name, ["MODEL.POINT_HEAD.SUBDIVISION_STEPS", "-1"])
    assert parse_config(dump_config(cfg), "text").MODEL.POINT_HEAD.SUBDIVISION_STEPS == 3


@pytest.mark.parametrize(
    "name",
    [
        COCO_1X,
        "InstanceSegmentation/implicit_pointrend_R_50_FPN_1x_coco.yaml",
        "SemanticSegmentation/pointrend_semantic_R_101_FPN_P3-P5_1x_cityscapes.yaml",
    ],
)
def test_the_stock_project_evaluates_the_same_model_from_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    cfg = load_config(name, SMALL)
    ours = build_model(cfg).eval()
    read = read_by_stock(dump_config(cfg), tmp_path)
    for registry, entry in registration._OURS:  # as in a process without this package
        if entry.__name__ in registration._stock:
            monkeypatch.setitem(
                registry._obj_map, entry.__name__, registration._stock[entry.__name__]
            )
    if "Semantic" in name:  # as the comment in the file advises
        read.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    model = build_model(read).eval()
    model.load_state_dict(ours.state_dict())
    image = {"image": torch.randint(0, 256, (3, 64, 96)), "height": 64, "width": 96}
    with torch.no_grad():
        (expected,), (result,) = ours([image]), model([image])
    if "Semantic" in name:
        torch.testing.assert_close(result["sem_seg"], expected["sem_seg"], rtol=1e-4, atol=1e-5)
        return
    assert len(expected["instances"]) > 0
    torch.testing.assert_close(
        result["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor
    )
    same = result["instances"].pred_masks == expected["instances"].pred_masks
    assert same.float().mean() > 0.9999


class TestRepeatedClassCounts:
    """A written config has the class count twice: of the head and of its point head."""

    KEY = "MODEL.ROI_HEADS.NUM_CLASSES"

    def test_the_second_follows_when_the_command_line_sets_the_first(self):
        text = dump_config(load_config(COCO_1X))
        assert parse_config(text, "text").MODEL.POINT_HEAD.NUM_CLASSES == 80
        cfg = parse_config(text, "text", [self.KEY, "3"])
        assert cfg.MODEL.POINT_HEAD.NUM_CLASSES == -1
        check_config(cfg, training=True)

    def test_so_it_does_for_label_maps(self):
        semantic = "SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes.yaml"
        text = dump_config(load_config(semantic))
        cfg = parse_config(text, "text", ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3"])
        assert cfg.MODEL.POINT_HEAD.NUM_CLASSES == -1
        # The class count of detectors means nothing here.
        cfg = parse_config(text, "text", [self.KEY, "3"])
        assert cfg.MODEL.POINT_HEAD.NUM_CLASSES == 19

    def test_a_contradiction_remains_one(self):
        text = dump_config(load_config(COCO_1X))
        both = [self.KEY, "3", "MODEL.POINT_HEAD.NUM_CLASSES", "80"]
        with pytest.raises(ValueError, match=r"POINT_HEAD.NUM_CLASSES is 80, but .* is 3"):
            check_config(parse_config(text, "text", both), training=True)
        differing = "MODEL: {ROI_HEADS: {NUM_CLASSES: 7}, POINT_HEAD: {NUM_CLASSES: 80}}"
        cfg = parse_config(differing, "text", [self.KEY, "3"])
        assert cfg.MODEL.POINT_HEAD.NUM_CLASSES == 80
