"""The evaluator of panoptic quality, on a set in COCO's panoptic format."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from point_rend.data.loader.samples import UnusableDataError
from point_rend.evaluation.panoptic_evaluator import PanopticEvaluator
from tests.tiny_datasets import process_state_restored
from tests.tiny_panoptic import STUFF, THINGS, PanopticSet, write_panoptic


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[PanopticSet]:
    with process_state_restored():
        yield write_panoptic(tmp_path / "data")


def outputs(tiny: PanopticSet) -> list[dict[str, Any]]:
    """Return the ground truth as the output of a model, under other ids."""
    found = []
    for ids, segments in tiny.truth:
        own = np.zeros_like(ids)
        info = []
        for number, segment in enumerate(segments, start=1):
            own[ids == segment["id"]] = number
            is_thing = segment["category_id"] in THINGS
            known = THINGS if is_thing else STUFF
            info.append(
                {"id": number, "isthing": is_thing, "category_id": known[segment["category_id"]]}
            )
        found.append({"panoptic_seg": (torch.from_numpy(own.astype(np.int32)), info)})
    return found


def evaluated(tiny: PanopticSet, found: list[dict[str, Any]], folder: Path) -> Any:
    evaluator = PanopticEvaluator(tiny.name, str(folder))
    evaluator.reset()
    records = DatasetCatalog.get(tiny.name)
    evaluator.process(records[: len(found)], found)
    return evaluator.evaluate()


def test_the_ground_truth_is_perfect_and_is_saved(tiny: PanopticSet, tmp_path: Path) -> None:
    results = evaluated(tiny, outputs(tiny), tmp_path / "out")["panoptic_seg"]
    names = [f"{key}{ending}" for key in ("PQ", "SQ", "RQ") for ending in ("", "_th", "_st")]
    assert [results[name] for name in names] == [100] * 9
    assert results["PQ-disc"] == results["PQ-sky"] == 100
    saved = json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]
    truth = json.loads(tiny.json_file.read_text())["annotations"]
    for own, expected in zip(saved, truth, strict=True):
        assert own["image_id"] == expected["image_id"]
        assert [x["category_id"] for x in own["segments_info"]] == [
            x["category_id"] for x in expected["segments_info"]
        ]


def test_labels_with_a_divisor_are_segments(tiny: PanopticSet, tmp_path: Path) -> None:
    MetadataCatalog.get(tiny.name).set(label_divisor=1000)
    found = []
    for output in outputs(tiny):
        ids, segments = output["panoptic_seg"]
        labels = torch.full_like(ids, -1)
        for segment in segments:
            if segment["isthing"]:
                labels[ids == segment["id"]] = 1000 * segment["category_id"] + segment["id"]
        found.append({"panoptic_seg": (labels, None)})
    results = evaluated(tiny, found, tmp_path / "out")["panoptic_seg"]
    assert results["PQ_th"] == 100
    assert results["PQ_st"] == 0


def test_every_process_adds_its_images_and_the_order_does_not_matter(
    tiny: PanopticSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = outputs(tiny)
    found[0]["panoptic_seg"][0][:20] = 0
    first = found[0]["panoptic_seg"]
    kept = {*np.unique(first[0]).tolist()}
    found[0]["panoptic_seg"] = (first[0], [x for x in first[1] if x["id"] in kept])
    expected = evaluated(tiny, found, tmp_path / "one")
    assert expected["panoptic_seg"]["PQ"] < 100
    records = DatasetCatalog.get(tiny.name)
    ranks = [PanopticEvaluator(tiny.name, str(tmp_path / "two")) for _ in found]
    for evaluator, record, output in zip(ranks, records, found, strict=True):
        evaluator.process([record], [output])
    gathered = [ranks[1]._images, ranks[0]._images, ranks[0]._images]
    monkeypatch.setattr(comm, "gather", lambda _: gathered)
    assert ranks[0].evaluate() == expected


def spoil_json(tiny: PanopticSet, **fields: Any) -> None:
    content = json.loads(tiny.json_file.read_text())
    content["annotations"][0]["segments_info"][0].update(fields)
    tiny.json_file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": 0}, "needs an id from 1 to 16777215"),
        ({"id": "1"}, "needs an id from 1 to 16777215"),
        ({"iscrowd": 2}, "iscrowd 0 or 1"),
        ({"id": 70000}, "segment 70000 is given twice"),
        ({"category_id": 55}, "has an unknown category"),
    ],
)
def test_bad_segments_are_named_before_the_evaluation(
    tiny: PanopticSet, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    spoil_json(tiny, **fields)
    with pytest.raises(ValueError, match=rf"panoptic\.json: image 1: .*{message}"):
        PanopticEvaluator(tiny.name, str(tmp_path))


def test_bad_labels_are_named(tiny: PanopticSet, tmp_path: Path) -> None:
    spoil_json(tiny, id=12345)
    with pytest.raises(UnusableDataError, match=r"000\.png: the map of the ground truth .* 300 is"):
        evaluated(tiny, outputs(tiny), tmp_path)
    (tiny.folder / "000.png").write_bytes(b"x")
    with pytest.raises(UnusableDataError, match=r"tiny_separated: .*000\.png"):
        evaluated(tiny, outputs(tiny), tmp_path)
    (tiny.folder / "000.png").unlink()
    with pytest.raises(UnusableDataError, match=r"tiny_separated: .*000\.png"):
        evaluated(tiny, outputs(tiny), tmp_path)
