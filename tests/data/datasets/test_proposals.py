"""Precomputed proposals: the result of Detectron2's reader, and nothing executed."""

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import detectron2.data.build
import numpy as np
import pytest
from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import BoxMode

from point_rend.data.datasets.proposals import load_proposals, proposals_as_data
from tests.checkpoint.nets import Reduced, WithState, in_object_array

IDS = [3, 11, 7]


def proposals(**changes: Any) -> dict[str, Any]:
    """Return proposals of the images IDS, as Detectron2's evaluator writes them."""
    random = np.random.default_rng(0)
    counts = (4, 0, 2)
    content = {
        "ids": list(IDS),
        "boxes": [random.uniform(0, 50, (n, 4)).astype(np.float32) for n in counts],
        "objectness_logits": [random.normal(size=n).astype(np.float32) for n in counts],
        "bbox_mode": BoxMode.XYXY_ABS.value,
    }
    content |= changes
    return {key: value for key, value in content.items() if value is not None}


def records() -> list[dict[str, Any]]:
    return [{"image_id": image_id, "file_name": f"{image_id}.jpg"} for image_id in (7, 3)]


def write(path: Path, content: Any, protocol: int = 2) -> str:
    path.write_bytes(pickle.dumps(content, protocol))
    return str(path)


FULL = proposals()
GOOD: dict[str, dict[str, Any]] = {
    "ours": FULL,
    "of Detectron": {
        "indexes": IDS,
        "boxes": FULL["boxes"],
        "scores": FULL["objectness_logits"],
        "cfg": "MODEL: {}",
    },
    "no mode": proposals(bbox_mode=None),
    "other mode": proposals(bbox_mode=BoxMode.XYWH_ABS),
    "ids as text": proposals(ids=[str(image_id) for image_id in IDS]),
    "ids of NumPy": proposals(ids=[np.int64(image_id) for image_id in IDS]),
    "ids in an array": proposals(ids=np.array(IDS)),
    "whole boxes": proposals(boxes=[boxes.round().astype(np.int32) for boxes in FULL["boxes"]]),
    "one array of boxes": proposals(
        boxes=np.ones((3, 2, 4)), objectness_logits=np.array([[1.0, 2], [3, 3], [0, -np.inf]])
    ),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", GOOD)
def test_the_result_is_that_of_detectron2(tmp_path: Path, name: str, protocol: int) -> None:
    path = write(tmp_path / "proposals.pkl", GOOD[name], protocol)
    expected = load_proposals_into_dataset(records(), path)
    actual = load_proposals(records(), path)
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert type(ours[key]) is type(value), key
            if isinstance(value, np.ndarray):
                assert ours[key].dtype == value.dtype
                assert np.array_equal(ours[key], value)
            else:
                assert ours[key] == value


def test_a_file_of_python_2_is_read_as_latin1(tmp_path: Path) -> None:
    raw = np.float32([1, 2, 30, 200]).tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\n%stcnumpy\n"
        b"dtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nU%c%stb"
    )
    boxes = array % (b"I4\n", len(raw), raw)
    logits = array % (b"", 4, raw[:4])
    content = b"(dU\x03idsp1\n(lI7\nasU\x05boxesp2\n(l%sasU\x06scores(l%sas." % (boxes, logits)
    path = tmp_path / "proposals.pkl"
    path.write_bytes(content)
    expected = load_proposals_into_dataset(records()[:1], str(path))
    (record,) = load_proposals(records()[:1], str(path))
    assert record["proposal_boxes"].tolist() == expected[0]["proposal_boxes"].tolist()
    assert record["proposal_boxes"].tolist() == [[1, 2, 30, 200]]
    assert record["proposal_objectness_logits"].tolist() == [1]


HOSTILE: dict[str, Callable[[str], Any]] = {
    "a call": lambda sentinel: Reduced(os.system, f"touch '{sentinel}'"),
    "a state": WithState,
    "in an array": lambda sentinel: in_object_array(Reduced(os.system, f"touch '{sentinel}'")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_code_in_a_file_is_refused_and_not_executed(tmp_path: Path, name: str) -> None:
    sentinel = tmp_path / "sentinel"
    for content in (HOSTILE[name](str(sentinel)), proposals(cfg=HOSTILE[name](str(sentinel)))):
        path = write(tmp_path / "proposals.pkl", content)
        with pytest.raises(ValueError, match=rf"^{path} is refused: it asks for .* run code$"):
            load_proposals(records(), path)
        assert not sentinel.exists()


NAN = [np.full((n, 4), np.nan) for n in (4, 0, 2)]
BAD = {
    "a list": ([1], "must hold a dict, not list"),
    "no ids": (proposals(ids=None), "ids is missing; there are bbox_mode, boxes, objectness"),
    "no boxes": (proposals(boxes=None), "boxes is missing"),
    "no scores": (proposals(objectness_logits=None), "objectness_logits is missing"),
    "ids as a number": (proposals(ids=3), "ids is int, expected a list"),
    "ids without dimension": (proposals(ids=np.array(3)), "ids is ndarray, expected a list"),
    "fewer ids": (proposals(ids=IDS[:2]), "2 ids, 3 boxes and 3 objectness_logits"),
    "an id that is a list": (proposals(ids=[3, 11, [7]]), "ids hold list"),
    "an id twice": (proposals(ids=[3, 7, 7]), "image 7 is there twice"),
    "no image": (proposals(ids=[1, 2, 4]), "no proposals for 2 of 2 images, such as image 3"),
    "an image less": (proposals(ids=[3, 11, 8]), "no proposals for 1 of 2 images, such as image 7"),
    "mode of relative boxes": (proposals(bbox_mode=2), r"bbox_mode is 2, expected 0 \(XYXY_ABS"),
    "mode as text": (proposals(bbox_mode="xyxy"), "bbox_mode is 'xyxy', expected 0"),
    "NaN": (proposals(boxes=NAN), "image 7: .* not finite"),
    "NaN scores": (proposals(objectness_logits=[n[:, 0] for n in NAN]), "image 7: .* not finite"),
    "text": (proposals(boxes=[np.array(["a"])] * 3), "image 7: boxes are <U1, expected an array"),
    "lists": (proposals(boxes=[[[1, 2, 3, 4]]] * 3), "image 7: boxes are list, expected an array"),
    "five columns": (proposals(boxes=[np.ones((n, 5)) for n in (4, 0, 2)]), r"shape \(2, 5\)"),
    "other numbers": (proposals(objectness_logits=[np.ones(3)] * 3), r"\(2, 4\) and .* \(3,\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = write(tmp_path / "proposals.pkl", content)
    with pytest.raises(ValueError, match=message) as error:
        load_proposals(records(), path)
    assert path in str(error.value)


def test_loaders_of_detectron2_use_it_within_a_block_only(tmp_path: Path) -> None:
    path = write(tmp_path / "proposals.pkl", Reduced(os.system, f"touch '{tmp_path}/sentinel'"))
    with proposals_as_data(), pytest.raises(ValueError, match="is refused"):
        detectron2.data.build.load_proposals_into_dataset(copy.deepcopy(records()), path)
    assert detectron2.data.build.load_proposals_into_dataset is load_proposals_into_dataset
