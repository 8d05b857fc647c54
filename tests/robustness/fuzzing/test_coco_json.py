"""COCO files, from any bytes and from a good file with changed values.

Every file is refused by a ValueError of one short line, or is read, scored and prepared for a
training without any other error, as the commands do it.
"""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import detection_utils
from detectron2.data.datasets import load_coco_json
from detectron2.data.transforms import HFlipTransform, ResizeTransform, TransformList
from detectron2.structures import polygons_to_bitmask
from hypothesis import example, given
from hypothesis import strategies as st

from point_rend.data.checks.annotations import check_ground_truth, clean_annotations
from point_rend.data.datasets.coco import read_coco, repair_fields
from point_rend.evaluation.coco_ap import CocoAP
from tests.data.datasets.test_packed_coco import compactly, plainly
from tests.robustness.fuzzing.test_rle import VALUES

HEIGHT, WIDTH = 24, 32
GOOD: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH},
        {"id": 2, "file_name": "2.png", "height": HEIGHT, "width": WIDTH},
    ],
    "categories": [{"id": 1, "name": "a"}, {"id": 7, "name": "b"}],
    "annotations": [
        {
            "id": number,
            "image_id": image,
            "category_id": 7,
            "iscrowd": 0,
            "area": 144,
            "bbox": [4, 4, 12, 12],
            "segmentation": mask,
        }
        for number, (image, mask) in enumerate(
            [
                (1, [[4, 4, 16, 4, 16, 16, 4, 16]]),
                (1, {"size": [HEIGHT, WIDTH], "counts": [100, 50, 618]}),
                (2, {"size": [HEIGHT, WIDTH], "counts": "T3b1Zc0"}),
            ]
        )
    ],
}
PLACES = [
    [kind, number, *rest]
    for kind in GOOD
    for number in range(len(GOOD[kind]))
    for rest in ([], *([key] for key in GOOD[kind][0]))
]
PLACES += [["annotations", 0, field, k] for field in ("bbox", "segmentation") for k in range(4)]
PLACES += [["annotations", 0, "segmentation", 0, k] for k in range(8)]
PLACES += [["annotations", k, "segmentation", key] for k in (1, 2) for key in ("size", "counts")]
PLACES += [["annotations", 1, "keypoints"], ["annotations", 1, "ignore"], ["images"], ["info"]]
NUMBERS = st.sampled_from([0, -1, 0.5, 1e9, -1e9, 2.1e8, 1e300, 10**400, 2**31, 2**63, 1 << 40])
CHANGES = st.lists(st.tuples(st.sampled_from(PLACES), VALUES | NUMBERS), min_size=1, max_size=4)
TRANSFORMS = TransformList([ResizeTransform(HEIGHT, WIDTH, 48, 64), HFlipTransform(64)])


@pytest.fixture(scope="module", autouse=True)
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("coco") / "a.json"
    FILES.append(path)
    yield path
    FILES.pop()


FILES: list[Path] = []


def read(content: bytes) -> dict[str, Any] | None:
    """Read a file as all commands do; None if it is refused."""
    FILES[-1].write_bytes(content)
    found = accepted(lambda: read_coco(str(FILES[-1])))
    assert repr(outcome(compactly)) == repr(outcome(plainly))
    return found


def outcome(read: Callable[[str], Any]) -> Any:
    """Return a result, or the text of an error."""
    try:
        return read(str(FILES[-1]))
    except ValueError as error:
        return str(error)


def changed(changes: list[tuple[list[Any], Any]]) -> Any:
    """Return the good content with some of its places changed."""
    content: Any = copy.deepcopy(GOOD)
    for path, value in changes:
        place = content
        try:
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
        except (LookupError, TypeError):  # changed before
            continue
    return content


def accepted(step: Callable[[], Any]) -> Any:
    """Return the result of a step; None after an error of one short line that names the file."""
    try:
        return step()
    except ValueError as error:
        message = str(error)
    assert str(FILES[-1]) in message
    assert "\n" not in message
    assert len(message) < 1500
    return None


def score(content: dict[str, Any]) -> None:
    """Score perfect results, with masks and without."""
    for task in ("segm", "bbox"):
        own = copy.deepcopy(content)
        accepted(
            lambda own=own, task=task: check_ground_truth(FILES[-1], own, masks=task == "segm")
        )
        evaluation = CocoAP(own)
        results = [x | {"score": 0.5} for x in own["annotations"]]
        message = "no valid mask"
        try:
            evaluation.metrics(results, task)
        except ValueError as error:
            message = str(error)
        assert "no valid mask" in message  # which the check has named before


def prepare_training() -> None:
    """Load a file as Detectron2 does, clean it, and transform what is left as a training does."""
    records = load_coco_json(str(FILES[-1]), "images")
    for record in records:
        annotations = record["annotations"]
        repair_fields(annotations)
        sizes = [(record["height"], record["width"])] * len(annotations)
        for cleaned in clean_annotations(annotations, sizes, masks=True):
            if cleaned.annotation is None:
                continue
            own = cleaned.annotation
            own.pop("keypoints", None)
            detection_utils.transform_instance_annotations(own, TRANSFORMS, (48, 64))
            mask = own["segmentation"]
            if isinstance(mask, list):
                mask = polygons_to_bitmask(mask, 48, 64)
            assert np.asarray(mask).shape[0] == 48 or record["height"] != HEIGHT


@example(b"")
@example(b"null")
@example(b"{}")
@example(b"[" * 100_000)
@example(b'{"images": [], "images": []}')
@example(b"\xef\xbb\xbf{}")
@example(json.dumps(GOOD).encode("utf-16"))
@example(json.dumps(GOOD).encode()[:-9])
@example(b'{"a": 1' + b"0" * 5000 + b"}")
@given(st.binary(max_size=200))
def test_any_bytes(content: bytes) -> None:
    read(content)


@example([(["annotations", 0, "segmentation", 0, 0], 3e8)])
@example([(["annotations", 0, "segmentation", 0, 0], float("nan"))])
@example([(["annotations", 0, "segmentation", 0, 0], 10**400)])
@example([(["annotations", 0, "segmentation"], [[3e8, 1, 3e8, 2, 3e8, 3]])])
@example([(["annotations", 0, "segmentation"], [[0, 0, 900, 900] * 500])])
@example([(["annotations", 0, "segmentation"], [[]])])
@example([(["annotations", 0, "iscrowd"], None), (["annotations", 0, "area"], [5])])
@example([(["annotations", 0, "bbox", 2], 1e9)])
@example([(["annotations", 1, "keypoints"], [1, 2, None])])
@example([(["images", 0, "height"], 10**5), (["images", 0, "width"], 10**5)])
@example([(["images", 0, "file_name"], "\ud800")])
@example([(["categories", 0, "id"], 2**63)])
@example([(["categories", 0, "id"], -(2**62))])
@example([(["categories", 1, "name"], "a")])
@example([(["annotations", 1, "ignore"], None)])
@example([(["images", 1, "id"], "b"), (["annotations", 2, "image_id"], "b")])
@given(CHANGES)
def test_any_change_of_a_good_file(changes: list[tuple[list[Any], Any]]) -> None:
    content = changed(changes)
    found = read(json.dumps(content).encode())
    if found is not None:
        score(found)
        prepare_training()
