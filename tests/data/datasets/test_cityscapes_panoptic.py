"""Cityscapes for a Panoptic FPN, with the panoptic labels of cityscapesscripts."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cityscapesscripts.helpers.labels import id2label, labels
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.cityscapes import load_cityscapes_instances
from detectron2.structures import Instances
from PIL import Image

from point_rend import get_config_file, load_config
from point_rend.cli import prepare_panoptic, train
from point_rend.data.datasets.cityscapes_panoptic import register_cityscapes_panoptic
from point_rend.evaluation.build import build_evaluator
from point_rend.evaluation.metric_names import build_metric_names
from tests.runs import metrics
from tests.tiny_datasets import TINY_MODEL, process_state_restored, write_cityscapes

NAMES = [f"cityscapes_fine_panoptic_separated_{split}" for split in ("train", "val")]
CONFIG = get_config_file("PanopticSegmentation/pointrend_panoptic_R_50_FPN_65k_cityscapes.yaml")
SMALL = [
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.POINT_HEAD.FC_DIM", "16"),
    *("MODEL.SEM_SEG_HEAD.POINT_HEAD.TRAIN_NUM_POINTS", "32", "INPUT.CROP.SIZE", "[48, 64]"),
    *("SOLVER.MAX_ITER", "1", "TEST.BOUNDARY_METRICS", "True"),
    *("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", "10"),
]
THINGS = [x for x in labels if x.hasInstances and not x.ignoreInEval]
STUFF = [x for x in labels if not x.hasInstances and not x.ignoreInEval]

# Detectron2's loader calls shapely in an old way and leaves its worker processes to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'resolution' argument:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed running multiprocessing pool:ResourceWarning"),
]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write Cityscapes without panoptic labels, where Detectron2 looks for it."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    root = tmp_path / "data" / "cityscapes"
    for split in ("train", "val"):
        write_cityscapes(root, split=split)
    with process_state_restored():
        for name in NAMES:
            DatasetCatalog.data.pop(name, None)
            MetadataCatalog.data.pop(name, None)
        register_cityscapes_panoptic()
        yield root


@pytest.fixture
def labeled(root: Path) -> Path:
    """Add the panoptic labels."""
    convert2panoptic(str(root / "gtFine"), setNames=["train", "val"])
    return root


@pytest.mark.usefixtures("root")
def test_the_classes_are_those_of_cityscapesscripts_and_of_detectron2() -> None:
    assert (len(THINGS), len(STUFF)) == (8, 11)
    for name in NAMES:
        known = MetadataCatalog.get(name)
        assert known.thing_classes == [x.name for x in THINGS]
        assert known.thing_classes == _get_builtin_metadata("cityscapes")["thing_classes"]
        assert known.thing_dataset_id_to_contiguous_id == {x.id: k for k, x in enumerate(THINGS)}
        assert known.stuff_classes == ["things", *(x.name for x in STUFF)]
        ids = {0: 0} | {x.id: x.trainId + 1 for x in STUFF}
        assert known.stuff_dataset_id_to_contiguous_id == ids
        assert [tuple(x) for x in known.thing_colors] == [x.color for x in THINGS]
        assert [tuple(x) for x in known.stuff_colors[1:]] == [x.color for x in STUFF]


def test_label_maps_have_one_class_of_things_then_the_train_ids_of_stuff(
    labeled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = labeled / "gtFine" / "cityscapes_panoptic_stuff_val"
    capsys.readouterr()
    prepare_panoptic.main(NAMES)
    assert f"{NAMES[1]}: 2 label maps written, 0 kept: {folder}\n" in capsys.readouterr().out
    for file in folder.iterdir():
        of_polygons = labeled / "gtFine/val/tinytown" / file.name.replace("panoptic", "labelIds")
        classes = [id2label[int(x)] for x in np.array(Image.open(of_polygons)).ravel()]
        expected = [
            255 if x.ignoreInEval else 0 if x.hasInstances else x.trainId + 1 for x in classes
        ]
        with Image.open(file) as image:
            assert image.mode == "L"
            assert np.array(image).ravel().tolist() == expected
        assert {*expected} == {0, 1, 255}
    prepare_panoptic.main(NAMES[1:])
    assert f"{NAMES[1]}: 0 label maps written, 2 kept" in capsys.readouterr().out


def test_instances_are_those_of_detectron2(labeled: Path) -> None:
    folders = (str(labeled / "leftImg8bit/val"), str(labeled / "gtFine/val"))
    expected = {x["file_name"]: x for x in load_cityscapes_instances(*folders)}
    found = DatasetCatalog.get(NAMES[1])
    assert {x["image_id"] for x in found} == {f"tinytown_{k:06d}_000019" for k in range(2)}
    for record in found:
        assert record["annotations"] == expected[record["file_name"]]["annotations"]
        assert len(record["annotations"]) == 3
        file = Path(record["sem_seg_file_name"])
        assert file.parent.name == "cityscapes_panoptic_stuff_val"
        assert file.name == f"{record['image_id']}_gtFine_panoptic.png"


def test_the_ground_truth_has_the_best_metrics_in_all_tasks(labeled: Path, tmp_path: Path) -> None:
    prepare_panoptic.main(NAMES[1:])
    opts = ["OUTPUT_DIR", str(tmp_path / "output"), "TEST.BOUNDARY_METRICS", "True"]
    cfg = load_config(CONFIG, opts)
    evaluator = build_evaluator(cfg, NAMES[1])
    evaluator.reset()
    for record in DatasetCatalog.get(NAMES[1]):
        file = labeled / "gtFine/val/tinytown" / f"{record['image_id']}_gtFine_instanceIds.png"
        ids = torch.from_numpy(np.array(Image.open(file)).astype(np.int32))
        things = [x for x in ids.unique().tolist() if x >= 1000]
        found = Instances(tuple(ids.shape))
        found.pred_masks = torch.stack([ids == x for x in things])
        found.scores = torch.ones(len(things))
        found.pred_classes = torch.tensor(
            [[x.id for x in THINGS].index(identity // 1000) for identity in things]
        )
        road = ids == 7
        segments = [
            {"id": k, "isthing": True, "category_id": category}
            for k, category in enumerate(found.pred_classes.tolist(), start=1)
        ]
        segments.append({"id": 9, "isthing": False, "category_id": 1})
        panoptic = 9 * road.int()
        for k, mask in enumerate(found.pred_masks, start=1):
            panoptic[mask] = k
        sem_seg = torch.nn.functional.one_hot(road.long(), 12).permute(2, 0, 1).float()
        output = {"instances": found, "sem_seg": sem_seg, "panoptic_seg": (panoptic, segments)}
        evaluator.process([record], [output])
    results = evaluator.evaluate()
    for metric in ("PQ", "PQ_th", "PQ_st", "PQ-car", "PQ-road"):
        assert results["panoptic_seg"][metric] == 100
    assert np.isnan(results["panoptic_seg"]["PQ-sky"])
    assert results["segm"] == {"AP": 100, "AP50": 100}
    assert results["boundary"]["AP"] == 100
    assert results["sem_seg"]["mIoU"] == results["sem_seg"]["IoU-road"] == 100
    cfg.DATASETS.TEST = NAMES[1:]
    named = build_metric_names(cfg)
    assert all(named.include(f"{task}/{x}") for task, found in results.items() for x in found)


@pytest.mark.usefixtures("labeled")
def test_the_recipe_is_trained_and_evaluated(tmp_path: Path) -> None:
    prepare_panoptic.main(NAMES)
    argv = ["--config-file", CONFIG, *TINY_MODEL, "INPUT.MIN_SIZE_TRAIN", "[48, 96]", *SMALL]
    train.main([*argv, "OUTPUT_DIR", str(tmp_path / "output")])
    training, evaluation = metrics(tmp_path / "output")
    assert {"loss_mask_point", "loss_sem_seg_point", "loss_rpn_cls"} <= training.keys()
    assert {"panoptic_seg/PQ", "panoptic_seg/SQ_st", "segm/AP", "sem_seg/mIoU"} <= evaluation.keys()
    assert {"boundary/AP", "boundary_sem_seg/mIoU"} <= evaluation.keys()


def without_list(root: Path) -> str:
    (root / "gtFine" / "cityscapes_panoptic_train.json").unlink()
    return (
        r"the list of panoptic labels is missing: .*_panoptic_train.json; write them with "
        r"`python -m cityscapesscripts.preparation.createPanopticImgs --dataset-folder .*/gtFine`"
    )


def without_pictures(root: Path) -> str:
    shutil.rmtree(root / "gtFine" / "cityscapes_panoptic_val")
    return (
        r"val: 2 of 2 panoptic labels are missing, such as .*_gtFine_panoptic.png; write them with"
    )


def without_label_maps(root: Path) -> str:
    shutil.rmtree(root / "gtFine" / "cityscapes_panoptic_stuff_train")
    return (
        f"the label maps of stuff are missing: .*; write them with `.* prepare-panoptic {NAMES[0]}`"
    )


def with_another_image(root: Path) -> str:
    folder = root / "leftImg8bit/train/tinytown"
    name = "tinytown_{:06d}_000019_"
    shutil.copy(
        folder / f"{name.format(0)}leftImg8bit.png", folder / f"{name.format(7)}leftImg8bit.png"
    )
    for kind in ("polygons.json", "instanceIds.png", "labelIds.png"):
        folder = root / "gtFine/train/tinytown"
        shutil.copy(
            folder / f"{name.format(0)}gtFine_{kind}", folder / f"{name.format(7)}gtFine_{kind}"
        )
    return r"train.json has no segments of image tinytown_000007_000019"


@pytest.mark.parametrize(
    "spoil", [without_list, without_pictures, without_label_maps, with_another_image]
)
def test_missing_files_are_named_before_a_training(
    spoil: Callable[[Path], str], labeled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_panoptic.main(NAMES)
    expected = spoil(labeled)
    argv = ["--config-file", CONFIG, *TINY_MODEL, "INPUT.MIN_SIZE_TRAIN", "[48, 96]", *SMALL]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        train.main([*argv, "OUTPUT_DIR", str(tmp_path / "output")])
    assert ended.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "error:" in x]
    assert re.search(expected, line)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mine", "data set 'mine' is not registered: expected one of .*_panoptic_separated"),
        ("coco_2017_val", "coco_2017_val has no panoptic_json, panoptic_root, sem_seg_root"),
        (NAMES[0], "the list of panoptic labels is missing"),
    ],
)
@pytest.mark.usefixtures("root")
def test_sets_without_panoptic_labels_are_refused(
    name: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        prepare_panoptic.main([name])
    assert ended.value.code == 2
    assert re.search(expected, capsys.readouterr().err)
