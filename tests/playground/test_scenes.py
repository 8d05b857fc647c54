"""Pictures of the page, without the page: those of the model, as `predict` draws them."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from point_rend.inference.predictor import Predictor
from point_rend.playground import scenes
from point_rend.playground.choice import Choice, show
from point_rend.playground.scenes import LAST, InstanceLayer, LabelLayer, Scenes
from point_rend.utils.pictures import PictureError
from point_rend.visualization.predictions import draw, draw_segments, segments_of
from tests.cli.test_visualize import predictor_of
from tests.tiny_datasets import HEIGHT, WIDTH, process_state_restored, scene

SIZE = (4 * HEIGHT, 4 * WIDTH)  # of a whole picture, for the sake of speed
CELLS = ("MODEL.POINT_HEAD.SUBDIVISION_CELLS_PER_PIXEL", "2.0", "INPUT.MIN_SIZE_TEST", "128")
AGNOSTIC = ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "True")


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(scenes, "WHOLE_SIDE", SIZE[1])
    monkeypatch.setattr(scenes, "CLOSEUP_SIDE", 240)
    torch.manual_seed(0)
    with process_state_restored():
        yield


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    file = tmp_path / "scene.png"
    cv2.imwrite(str(file), scene(0)[0])
    return file


def shown_scene() -> np.ndarray:
    return cv2.resize(scene(0)[0], SIZE[::-1], interpolation=cv2.INTER_CUBIC)


def drawn(predictor: Predictor, output: dict) -> np.ndarray:
    """Draw instances as `predict` does, but from the second color on."""
    segments = segments_of(output)
    colors = range(1, len(segments) + 1)
    return draw_segments(shown_scene(), segments, predictor.metadata, colors)


@pytest.mark.parametrize(
    ("kind", "opts"),
    [("standard", ()), ("implicit", ()), ("standard", CELLS), ("standard", AGNOSTIC)],
)
def test_rendered_instances_are_drawn_as_predict_draws_them(kind: str, opts: tuple) -> None:
    predictor = predictor_of(kind, *opts)
    layer = InstanceLayer(predictor, scene(0)[0])
    output = predictor(scene(0)[0], output_size=SIZE)
    expected = drawn(predictor, output)
    rows = layer.rows()
    assert len(rows) == len(output["instances"]) > 1
    np.testing.assert_array_equal(layer.whole(LAST, [row.key for row in rows]), expected)
    shares = output["instances"].pred_masks.flatten(1).float().mean(1)
    np.testing.assert_allclose([row.share for row in rows], shares, rtol=1e-5)


@pytest.mark.parametrize("kind", ["semantic", "panoptic"])
def test_rendered_labels_are_those_of_the_model(kind: str) -> None:
    predictor = predictor_of(kind)
    layer = LabelLayer(predictor, scene(0)[0])
    labels = predictor(scene(0)[0], output_size=SIZE)["sem_seg"].argmax(dim=0).numpy()
    rows = {row.key: row for row in layer.rows()}
    assert len(rows) > 1
    for key, row in rows.items():
        assert row.score is None
        assert row.name == predictor.metadata.stuff_classes[key]
        assert row.share == pytest.approx((labels == key).mean(), abs=0.002)
    assert [row.share for row in layer.rows()] == sorted(x.share for x in rows.values())[::-1]
    with_names = layer.whole(LAST, list(rows))
    expected = draw(
        shown_scene(),
        {"sem_seg": torch.from_numpy(np.eye(4)[labels]).permute(2, 0, 1)},
        predictor.metadata,
        by_class=True,
    )
    assert (with_names != expected).any(axis=2).mean() < 0.01


def test_the_first_step_shows_the_masks_of_a_model_without_point_head() -> None:
    predictor = predictor_of("standard")
    layer = InstanceLayer(predictor, scene(0)[0])
    assert layer.steps[:2] == ["7×7, coarse head", "14×14, every cell"]
    assert layer.steps[-1] == "224×224, 784 points"
    coarse = predictor_of("standard", "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", "False")
    coarse.model.load_state_dict(predictor.model.state_dict(), strict=False)
    expected = drawn(predictor, coarse(scene(0)[0], output_size=SIZE))
    keys = [row.key for row in layer.rows()]
    np.testing.assert_array_equal(layer.whole(0, keys), expected)
    assert (layer.whole(LAST, keys) != expected).any()


def test_the_points_of_a_step_are_drawn_and_only_they() -> None:
    predictor = predictor_of("standard")
    layer = InstanceLayer(predictor, scene(0)[0])
    for view in (
        lambda step, **more: layer.whole(step, [0], **more),
        lambda step, **more: layer.closeup(step, 0, **more),
    ):
        plain, dotted = view(3), view(3, points=True)
        changed = (plain != dotted).any(axis=2)
        assert 0 < changed.mean() < 0.5
        np.testing.assert_array_equal(view(1), view(1, points=True))  # every cell is predicted


def test_the_threshold_gives_what_a_model_with_this_threshold_gives() -> None:
    low = predictor_of("standard", "TEST.DETECTIONS_PER_IMAGE", "4")
    layer = InstanceLayer(low, scene(0)[0])
    scores = [row.score for row in layer.rows()]
    threshold = float(np.mean(scores))
    torch.manual_seed(0)
    high = Predictor(low.cfg.clone(), model=low.model)
    high.model.roi_heads.box_predictor.test_score_thresh = threshold
    expected = high(scene(0)[0])["instances"]
    kept = layer.rows(threshold)
    assert 0 < len(kept) < len(scores)
    np.testing.assert_allclose([row.score for row in kept], expected.scores, rtol=1e-6)


def test_moving_the_controls_does_not_run_the_model_again(
    image_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = predictor_of("panoptic")
    runs = []
    inputs = predictor.inputs
    monkeypatch.setattr(predictor, "inputs", lambda image: runs.append(1) or inputs(image))
    kept = Scenes(predictor)
    for choice in (
        Choice(threshold=0),
        Choice(threshold=0.3),
        Choice("labels", step=2, classes=predictor.metadata.stuff_classes[:1]),
        Choice("instances", step=99, threshold=0, points=False, key=1),
    ):
        show(kept.of(image_file), choice)
    assert len(runs) == 2  # one for each layer
    for number in range(scenes.MAX_SCENES):
        other = image_file.with_name(f"{number}.png")
        other.write_bytes(image_file.read_bytes())
        kept.of(other)
    kept.of(image_file)
    assert len(runs) == 2 * (scenes.MAX_SCENES + 2)


def test_the_choice_selects_classes_and_the_segment_to_enlarge(image_file: Path) -> None:
    predictor = predictor_of("standard")
    layers = Scenes(predictor).of(image_file)
    everything = show(layers, Choice(threshold=0))
    assert everything.enlarged == everything.rows[0]
    assert everything.hidden == 0
    name = everything.rows[1].name
    chosen = show(layers, Choice(threshold=0, classes=[name], key=everything.rows[1].key))
    assert {row.name for row in chosen.rows} == {name}
    assert chosen.hidden == len(everything.rows) - len(chosen.rows)
    assert chosen.enlarged == everything.rows[1]
    nothing = show(layers, Choice(threshold=1))
    assert nothing.rows == []
    assert nothing.closeup is nothing.enlarged is None
    np.testing.assert_array_equal(*nothing.whole)


def test_the_layers_are_those_that_the_model_renders(image_file: Path) -> None:
    assert Scenes(predictor_of("standard")).kinds == ["instances"]
    assert Scenes(predictor_of("semantic")).kinds == ["labels"]
    panoptic = Scenes(predictor_of("panoptic"))
    assert panoptic.kinds == list(panoptic.of(image_file)) == ["instances", "labels"]
    plain = predictor_of("standard", "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", "False")
    with pytest.raises(ValueError, match="PointRendMaskHead has no point head"):
        Scenes(plain)


def test_a_picture_without_instances_has_no_steps(image_file: Path) -> None:
    predictor = predictor_of("standard")
    predictor.model.roi_heads.box_predictor.test_score_thresh = 1.0
    shown = show(Scenes(predictor).of(image_file), Choice())
    assert shown.rows == []
    assert shown.steps == []


def test_pictures_beyond_the_bound_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "large.png"
    Image.new("L", (1000, 1000)).save(file)
    monkeypatch.setattr(scenes, "MAX_PIXELS", 999_999)
    monkeypatch.setattr(scenes, "read_pixels", None)
    with pytest.raises(PictureError, match="has 1000 × 1000 pixels, and this page takes up to 0"):
        Scenes(predictor_of("standard")).of(file)
