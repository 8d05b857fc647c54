"""Evaluation and training of checkpoints on data sets whose classes have another order or names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from torch import nn

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.cli import train
from point_rend.data.datasets.class_matching import build_evaluated_classes
from point_rend.data.datasets.coco import register_coco
from point_rend.engine.trainer import Trainer
from tests.checkpoint.nets import log_of
from tests.cli.test_predict import PANOPTIC, SEMANTIC, TINY_SEMANTIC
from tests.runs import evaluate, instance_predictions, refusal, set_up
from tests.tiny_datasets import HEIGHT, KINDS, POINTREND, TINY_MODEL, WIDTH, CocoSet, write_coco
from tests.tiny_semantic import CLASSES, IGNORED, SemSegSet, label_map, write_label, write_sem_seg

MATCHING = "point_rend.data.datasets.class_matching"  # the logger

pytestmark = pytest.mark.usefixtures("_restored")


@pytest.fixture
def tiny(tmp_path: Path) -> CocoSet:
    return write_coco(tmp_path / "tiny")


def with_categories(written: CocoSet, name: str, identities: Sequence[int]) -> CocoSet:
    """Write the same annotations with other ids of the categories, thus in another order."""
    content = written.read()
    new = {x["id"]: y for x, y in zip(content["categories"], identities, strict=True)}
    for category in content["categories"]:
        category["id"] = new[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = new[annotation["category_id"]]
    other = CocoSet(str(Path(written.json_file).with_name(name)), written.image_root)
    other.rewrite(content)
    return other


def write_reordered(folder: Path, order: Sequence[int]) -> dict[str, SemSegSet]:
    """Write the same label maps twice, the second time with the classes in another order."""
    sets = {name: write_sem_seg(folder / f"{name}_maps") for name in ("tiny", "other")}
    Path(sets["other"].classes).write_text("\n".join(CLASSES[k] for k in order))
    for number in range(2):
        labels = label_map(number)
        moved = np.full_like(labels, IGNORED)
        for new, old in enumerate(order):
            moved[labels == old] = new
        write_label(sets["other"].label(number), moved)
    return sets


def instance_command(name: str, written: CocoSet, *more: str) -> list[str]:
    flags = ["--config-file", POINTREND, "--register-coco", name, *written]
    while more and more[0].startswith("--"):
        flags, more = [*flags, more[0]], more[1:]
    return [*flags, *TINY_MODEL, "DATASETS.TEST", f"('{name}',)", "DATASETS.TRAIN", "()", *more]


def semantic_command(name: str, written: SemSegSet, *more: str) -> list[str]:
    flags = ["--config-file", SEMANTIC, "--register-sem-seg", name, *written]
    names = ["DATASETS.TEST", f"('{name}',)", "DATASETS.TRAIN", "()"]
    return [*flags, "--eval-only", *TINY_MODEL, *TINY_SEMANTIC, *names, *more]


def save_model(argv: list[str], path: Path, **metadata: Any) -> list[str]:
    """Write a checkpoint of an untrained model; return the option that names it."""
    torch.manual_seed(3)
    model = Trainer.build_model(set_up(argv).cfg)
    SafeDetectionCheckpointer(model, str(path.parent), metadata=metadata).save(path.stem)
    return ["MODEL.WEIGHTS", str(path)]


def by_name(written: CocoSet, results: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
    names = {category["id"]: category["name"] for category in written.read()["categories"]}
    return {
        (x["image_id"], names[x["category_id"]], x["score"], x["segmentation"]["counts"])
        for x in results
    }


def test_instances_are_those_of_the_order_of_the_checkpoint_in_the_ids_of_the_set(
    tiny: CocoSet, tmp_path: Path
) -> None:
    other = with_categories(tiny, "other.json", (12, 3, 7))  # box, triangle, disc
    trained = ["DATASETS.TRAIN", "('tiny',)", "OUTPUT_DIR", str(tmp_path / "trained")]
    train.main(instance_command("tiny", tiny, *trained))
    weights = ["MODEL.WEIGHTS", str(tmp_path / "trained" / "model_final.pth")]
    results, found = {}, {}
    for name, written in {"tiny": tiny, "other": other}.items():
        output = ["OUTPUT_DIR", str(tmp_path / name), "TEST.DETECTIONS_PER_IMAGE", "50"]
        argv = instance_command(name, written, "--eval-only", *weights, *output)
        with log_of(MATCHING) as messages:
            results[name] = evaluate(argv)
        found[name] = by_name(written, instance_predictions(tmp_path / name, name))
    assert found["tiny"] == found["other"]
    assert len({category for _, category, *_ in found["tiny"]}) > 1
    np.testing.assert_equal(results["other"], results["tiny"])
    (warning,) = messages
    assert warning.endswith("only the order differs; they are matched by name")
    assert "has 3 (disc, box, triangle), DATASETS.TEST other has 3 (box, triangle, disc)" in warning


class Truth(nn.Module):
    """Returns the annotations of an image, with the classes in the order of their ids."""

    def __init__(self, written: CocoSet) -> None:
        super().__init__()
        content = written.read()
        self.classes = sorted(category["id"] for category in content["categories"])
        self.annotations = content["annotations"]

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"instances": self.instances(record["image_id"])} for record in batched_inputs]

    def instances(self, image_id: int) -> Instances:
        own = [x for x in self.annotations if x["image_id"] == image_id]
        masks = []
        for annotation in own:
            rle = annotation["segmentation"]
            if isinstance(rle, list) or isinstance(rle["counts"], list):
                rle = mask_util.frPyObjects(rle, HEIGHT, WIDTH)
            rle = mask_util.merge(rle) if isinstance(rle, list) else rle
            masks.append(mask_util.decode(rle).astype(bool))
        boxes = torch.tensor([x["bbox"] for x in own])
        boxes[:, 2:] += boxes[:, :2]
        return Instances(
            (HEIGHT, WIDTH),
            pred_boxes=Boxes(boxes),
            scores=torch.ones(len(own)),
            pred_classes=torch.tensor([self.classes.index(x["category_id"]) for x in own]),
            pred_masks=torch.from_numpy(np.stack(masks)),
        )


def test_the_truth_in_the_order_of_the_checkpoint_scores_100_in_any_other(
    tiny: CocoSet, tmp_path: Path
) -> None:
    other = with_categories(tiny, "other.json", (12, 3, 7))  # box, triangle, disc
    output = ["OUTPUT_DIR", str(tmp_path / "output")]
    cfg = set_up(instance_command("other", other, "--eval-only", *output)).cfg
    classes = build_evaluated_classes(cfg)
    classes.check("a checkpoint", {"thing_classes": list(KINDS)})
    assert Trainer.test(cfg, Truth(tiny), class_order=classes.order)["segm"]["AP"] == 100
    assert Trainer.test(cfg, Truth(tiny))["segm"]["AP"] == 0


@pytest.mark.parametrize("augmented", ["False", "True"])
def test_label_maps_are_those_of_the_order_of_the_checkpoint(
    augmented: str, tmp_path: Path
) -> None:
    sets = write_reordered(tmp_path, (2, 0, 3, 1))
    augmentation = ["TEST.AUG.ENABLED", augmented, "TEST.AUG.MIN_SIZES", "(48, 64)"]
    weights = save_model(
        semantic_command("tiny", sets["tiny"]), tmp_path / "model.pth", stuff_classes=list(CLASSES)
    )
    results = [
        evaluate(semantic_command(name, written, *weights, *augmentation))["sem_seg"]
        for name, written in sets.items()
    ]
    assert results[0] == pytest.approx(results[1])
    assert 0 < results[0]["mIoU"] < 100


def test_both_kinds_of_a_panoptic_model_are_matched(
    tiny: CocoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = (2, 0, 3, 1)  # of the semantic classes of the second set among those of the first
    maps = write_reordered(tmp_path, order)
    sets = {"tiny": tiny, "other": with_categories(tiny, "other.json", (12, 3, 7))}
    stuff = {"tiny": list(CLASSES), "other": [CLASSES[k] for k in order]}
    for name, written in sets.items():
        register_coco(f"{name}_things", *written)
        records = DatasetCatalog.get(f"{name}_things")
        for number, record in enumerate(records):
            record["sem_seg_file_name"] = str(maps[name].label(number))
        DatasetCatalog.register(name, lambda records=records: records)
        known = MetadataCatalog.get(f"{name}_things").as_dict() | {"name": name}
        known |= {"evaluator_type": "coco_panoptic_seg", "ignore_label": IGNORED}
        MetadataCatalog.get(name).set(**known, stuff_classes=stuff[name])
    monkeypatch.setattr("point_rend.evaluation.build.importlib.util.find_spec", lambda _: None)

    def command(name: str, *more: str) -> list[str]:
        small = [*TINY_SEMANTIC, "MODEL.ROI_HEADS.NUM_CLASSES", "3"]
        sets = ["DATASETS.TEST", f"('{name}',)", "OUTPUT_DIR", str(tmp_path / name)]
        return ["--config-file", PANOPTIC, *TINY_MODEL, *small, *sets, *more]

    trained = [*command("tiny"), "DATASETS.TRAIN", "('tiny',)"]
    train.main(trained)
    weights = ["MODEL.WEIGHTS", str(tmp_path / "tiny" / "model_final.pth"), "DATASETS.TRAIN", "()"]
    results, found = {}, {}
    for name, written in sets.items():
        results[name] = evaluate(["--eval-only", *command(name, *weights)])
        found[name] = by_name(written, instance_predictions(tmp_path / name, name))
    assert found["tiny"] == found["other"]
    assert found["tiny"]
    assert results["other"]["sem_seg"] == pytest.approx(results["tiny"]["sem_seg"])
    np.testing.assert_equal(results["other"]["segm"], results["tiny"]["segm"])


def test_other_classes_are_an_error_with_both_lists_unless_their_names_are_ignored(
    tiny: CocoSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored = ["disc", "box", "star"]
    command = instance_command("tiny", tiny, "--eval-only")
    weights = save_model(command, tmp_path / "model.pth", thing_classes=stored)
    line = refusal([*command, *weights], capsys)
    assert f"{weights[1]} has 3 (disc, box, star), DATASETS.TEST tiny has 3 (disc, box, tri" in line
    assert "only the former has star; only the latter has triangle" in line
    ignoring = instance_command("tiny", tiny, "--eval-only", "--ignore-class-names", *weights)
    with log_of(MATCHING) as messages:
        evaluate(ignoring)
    assert messages[0].endswith("taken by their position")


def test_another_number_of_classes_is_an_error_of_names_before_it_is_one_of_shapes(
    tiny: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = instance_command("tiny", tiny, "--eval-only")
    weights = save_model(command, tmp_path / "model.pth", thing_classes=["disc", "box"])
    line = refusal([*command, *weights], capsys)
    assert "has 2 (disc, box)" in line
    assert "only the latter has triangle" in line


def test_training_from_other_classes_warns_and_resuming_with_them_is_an_error(
    tiny: CocoSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command(written: CocoSet, *more: str) -> list[str]:
        output = ["OUTPUT_DIR", str(tmp_path / "output")]
        flags = [word for word in more if word.startswith("--")]
        more = tuple(word for word in more if word not in flags)
        names = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1"]
        return [*instance_command("tiny", written, *flags), *names, *output, *more]

    weights = save_model(
        command(tiny), tmp_path / "start.pth", thing_classes=["box", "disc", "triangle"]
    )
    with log_of(MATCHING) as messages:
        train.main(command(tiny, *weights))
    assert "has 3 (box, disc, triangle), DATASETS.TRAIN tiny has 3 (disc, box, tri" in messages[0]
    assert "start from those of the checkpoint by position" in messages[0]

    tiny.rewrite(with_categories(tiny, "other.json", (7, 3, 12)).read())  # box, disc, triangle
    DatasetCatalog.remove("tiny")
    MetadataCatalog.remove("tiny")
    line = refusal(command(tiny, "--resume", "SOLVER.MAX_ITER", "2"), capsys)
    assert "a training resumes with the same classes in the same order" in line
    assert "has 3 (disc, box, triangle), DATASETS.TRAIN tiny has 3 (box, disc, tri" in line
