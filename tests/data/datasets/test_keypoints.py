"""Names, mirror images and skeletons of the keypoints in a COCO file."""

from typing import Any

import pytest

from point_rend.data.datasets.keypoints import keypoint_metadata


def category(names: Any, **more: Any) -> dict[str, Any]:
    return {"id": 1, "name": "thing", "keypoints": names, **more}


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["left_eye", "right_eye", "nose"], [("left_eye", "right_eye")]),
        (["right eye", "Left Eye", "Right Eye"], [("Left Eye", "Right Eye")]),
        (["l_eye", "r_eye", "L.hand", "R.hand"], [("l_eye", "r_eye"), ("L.hand", "R.hand")]),
        (["EyeR", "EyeL", "LWing", "RWing"], [("EyeL", "EyeR"), ("LWing", "RWing")]),
        (["HANDLEFT", "HANDRIGHT"], [("HANDLEFT", "HANDRIGHT")]),
        (["tail", "rail", "left", "eyel", "eyer"], []),
    ],
)
def test_a_mirror_image_exchanges_left_and_right_in_any_spelling(names, pairs):
    metadata = keypoint_metadata([{"id": 2, "name": "other"}, category(names)])
    assert metadata["keypoint_names"] == names
    assert metadata["keypoint_flip_map"] == pairs


@pytest.mark.parametrize("first", [0, 1])
def test_lines_of_the_skeleton_join_named_keypoints(first):
    skeleton = [[first, first + 1], [first + 2, first]]
    faults = [[first], ["a", "b"], [first, 99], 7, [first, True]]
    metadata = keypoint_metadata([category(["a", "b", "c"], skeleton=[*skeleton, *faults])])
    lines = metadata["keypoint_connection_rules"]
    assert [line[:2] for line in lines] == [("a", "b"), ("c", "a")]
    assert len({line[2] for line in lines}) == 2
    for skeleton in ([], None, "1-2"):
        fields = keypoint_metadata([category(["a", "b", "c"], skeleton=skeleton)])
        assert fields["keypoint_connection_rules"] == []


@pytest.mark.parametrize(
    "categories",
    [
        [],
        [category([])],
        [category("abc")],
        [category(["a", 1])],
        [category(["a", "a"])],
        [category(["a", "b"]), category(["a", "c"])],
    ],
)
def test_without_one_list_of_different_names_there_are_no_keypoints(categories):
    assert keypoint_metadata(categories) == {}
