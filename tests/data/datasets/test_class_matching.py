"""Class names of a checkpoint and of data sets: matched, compared, refused."""

import itertools

import pytest
from detectron2.data import MetadataCatalog

from point_rend.data.datasets.class_matching import (
    EvaluatedClasses,
    TrainedClasses,
    published_classes,
)
from point_rend.data.datasets.class_names import (
    compare_names,
    match_by_name,
    same_but_for_spelling,
)
from tests.checkpoint.nets import log_of

LOGGER = "point_rend.data.datasets.class_matching"
COCO = "zoo://pointrend_rcnn_R_50_FPN_3x_coco"
CITYSCAPES = "zoo://pointrend_semantic_R_101_FPN_1x_cityscapes"


@pytest.mark.parametrize("others", list(itertools.permutations("abcd")))
def test_the_index_of_every_name_is_its_place_in_the_other_list(others: tuple[str, ...]):
    own = ["a", "b", "c", "d"]
    indices = match_by_name(own, others)
    assert indices is not None
    assert [others[k] for k in indices] == own


@pytest.mark.parametrize(
    "others", [["a", "b"], ["a", "b", "c", "d"], ["a", "b", "x"], ["a", "a", "b"], ["A", "b", "c"]]
)
def test_lists_of_different_names_do_not_match(others: list[str]):
    assert match_by_name(["a", "b", "c"], others) is None
    assert match_by_name(others, ["a", "b", "c"]) is None


def test_a_name_that_occurs_twice_matches_in_the_same_order_only():
    assert match_by_name(["a", "a", "b"], ["a", "a", "b"]) == [0, 1, 2]
    assert match_by_name(["a", "a", "b"], ["a", "b", "a"]) is None


def test_spelling_is_case_spaces_hyphens_underscores_and_the_form_of_accents():
    own = ["Traffic light", "dining-table", "r\u00f6t"]
    assert same_but_for_spelling(own, ["traffic_light", "DiningTable", "ro\u0308t"])
    assert not same_but_for_spelling(own, ["dining-table", "Traffic light", "r\u00f6t"])
    assert not same_but_for_spelling(own, own[:2])


def test_the_comparison_shortens_lists_and_names_each_difference():
    own = [f"c{k}" for k in range(80)]
    text = compare_names("m.pth", own, "val", [*own[:-2], "C_78"], kind="thing")
    assert "m.pth has 80 (c0, c1, c2, c3, c4, c5, c6, c7, ...), val has 79 (c0," in text
    assert "only the former has c78, c79; only the latter has C_78" in text
    assert "underscores 'c78' is 'C_78'" in text
    assert len(text) < 400


def test_the_comparison_is_one_short_line_for_any_names_and_any_number_of_them():
    names = [f"{k} \x1b[31m\n" + "x" * 1000 for k in range(100_000)]
    text = compare_names("m.pth", names, "val", [*names, *names], kind="stuff")
    assert len(text) < 4000
    assert text.isprintable()


def test_published_models_have_the_classes_of_their_training_sets():
    metadata = published_classes(COCO)
    assert metadata["thing_classes"] == MetadataCatalog.get("coco_2017_train").thing_classes
    stuff = published_classes(CITYSCAPES)["stuff_classes"]
    assert stuff == MetadataCatalog.get("cityscapes_fine_sem_seg_train").stuff_classes
    assert published_classes("model_final.pth") == published_classes("") == {}


def test_weights_without_names_warn_where_the_training_sets_of_the_config_have_others():
    for trained, warns in {("b", "a"): True, ("a", "b"): False, ("x", "y", "z"): False}.items():
        classes = EvaluatedClasses(
            {"thing": ["a", "b"]}, "val", training_sets={"train": {"thing": trained}}
        )
        with log_of(LOGGER) as messages:
            classes.check("m.pkl", {})
        assert classes.order == {}
        assert [m for m in messages if "m.pkl has no class names" in m] == messages
        assert bool(messages) == warns


def test_published_weights_are_matched_with_a_set_of_the_same_names():
    names = MetadataCatalog.get("coco_2017_val").thing_classes
    classes = EvaluatedClasses({"thing": names[::-1]}, "mine")
    classes.check(COCO, {})
    assert classes.order == {"thing": list(range(80))[::-1]}
    with pytest.raises(ValueError, match=rf"{COCO} has 80 \(person, .* mine has 2 \(person, dog\)"):
        EvaluatedClasses({"thing": ["person", "dog"]}, "mine").check(COCO, {})


def test_kinds_are_matched_separately():
    classes = EvaluatedClasses({"thing": ["a", "b"], "stuff": ["x", "y", "z"]}, "val")
    classes.check("m.pth", {"thing_classes": ["a", "b"], "stuff_classes": ["z", "x", "y"]})
    assert classes.order == {"stuff": [2, 0, 1]}


def test_a_training_starts_from_other_classes_with_a_warning_only_if_they_are_as_many():
    classes = TrainedClasses({"thing": ["a", "b"]}, "train")
    for stored, warns in {("b", "a"): True, ("a", "b"): False, ("x",): False, (): False}.items():
        with log_of(LOGGER) as messages:
            classes.check("m.pth", {"thing_classes": stored} if stored else {}, resuming=False)
        assert bool(messages) == warns


def test_a_training_resumes_with_its_own_classes_whatever_their_spelling():
    classes = TrainedClasses({"thing": ["traffic light", "b"]}, "train")
    classes.check("m.pth", {"thing_classes": ["Traffic_Light", "b"]}, resuming=True)
    other = {"thing_classes": ["b", "traffic light"]}
    with pytest.raises(ValueError, match="resumes with the same classes in the same order"):
        classes.check("m.pth", other, resuming=True)
    ignoring = TrainedClasses({"thing": ["traffic light", "b"]}, "train", by_position=True)
    ignoring.check("m.pth", other, resuming=True)
