"""The tool that shows how masks are rendered, on tiny models.

Shapes: H and W rows and columns of a picture.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from PIL import Image

from point_rend import get_config_file, load_config
from point_rend.cli import visualize
from point_rend.inference import rendered_subjects
from point_rend.inference.predictor import Predictor
from point_rend.rendering.sampling import PointSampler
from point_rend.visualization import rendering_figures
from point_rend.visualization.view import View
from tests.cli.test_predict import PANOPTIC, SEMANTIC, TINY_SEMANTIC, checkpoint_of
from tests.tiny_datasets import HEIGHT, KINDS, POINTREND, TINY_MODEL, WIDTH, process_state_restored
from tests.tiny_datasets import scene as tiny_scene

IMPLICIT = get_config_file("InstanceSegmentation/implicit_pointrend_R_50_FPN_1x_coco.yaml")
CLASSES = ["MODEL.ROI_HEADS.NUM_CLASSES", "3"]
MODELS = {
    "standard": (POINTREND, CLASSES),
    "implicit": (IMPLICIT, CLASSES),
    "semantic": (SEMANTIC, [*TINY_SEMANTIC, "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p2', 'p3']"]),
    "panoptic": (PANOPTIC, [*CLASSES, *TINY_SEMANTIC]),
}
SIZE = 96


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("sys.argv", ["visualize.py"])
    torch.manual_seed(0)
    with process_state_restored():
        yield


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    file = tmp_path / "scene.png"
    cv2.imwrite(str(file), tiny_scene(0)[0])
    return file


def predictor_of(kind: str, *opts: str) -> Predictor:
    config, own = MODELS[kind]
    threshold = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    predictor = Predictor(load_config(config, [*TINY_MODEL, *own, *threshold, *opts]))
    with torch.no_grad():  # so that the masks of an untrained model have boundaries
        for name, parameter in predictor.model.named_parameters():
            if "point_head.predictor" in name or "prediction" in name:
                parameter.normal_(std=0.5)
    return predictor


def subject_of(kind: str, *opts: str) -> rendering_figures.Subject:
    """A box of the scene as class 1."""
    given = (10.0, 12.0, 50.0, 58.0), 1
    return rendered_subjects.find_instance(predictor_of(kind, *opts), tiny_scene(0)[0], 0, given)


def run(
    kind: str, image_file: Path, *arguments: object, opts: Sequence[str] = ()
) -> dict[str, Path]:
    config, own = MODELS[kind]
    own = [*own, *opts]
    weights = checkpoint_of(image_file.parent / "model.pth", config=config, opts=own)
    output = image_file.parent / "out"
    words = ["--config-file", config, "--input", image_file, "--output", output]
    words += ["--confidence-threshold", 0, "--size", SIZE, *arguments]
    files = visualize.main([*map(str, words), "--opts", *TINY_MODEL, *weights, *own])
    return {file.name: file for file in files}


# Figures


@pytest.mark.parametrize("kind", ["standard", "implicit", "panoptic"])
@torch.no_grad()
def test_the_last_panel_of_an_instance_is_the_mask_that_the_model_gives(kind: str) -> None:
    predictor, image = predictor_of(kind), tiny_scene(0)[0]
    larger = cv2.resize(image, None, fx=1.5, fy=1.5)  # as many times as large as the input
    found = predictor.model.inference([predictor.inputs(larger)], do_postprocess=False)
    found = found[0][0] if kind == "panoptic" else found[0]
    assert len(found) > 1
    subject = rendered_subjects.find_instance(predictor, larger, 1, None)
    np.testing.assert_allclose(subject.frame, found.pred_boxes.tensor[1] * 1.5, rtol=1e-5)
    *_, last = subject.rendering.steps()
    logits = subject.logits(last.logits)
    np.testing.assert_array_equal(torch.from_numpy(logits).sigmoid(), found.pred_masks[1])

    height, width = larger.shape[:2]
    boxes = found.pred_boxes.tensor[1:2] * 1.5
    pasted = paste_masks_in_image(found.pred_masks[1], boxes, (height, width), threshold=0.5)
    view = View(subject.frame, (0, 0, width, height), (height, width))
    labels = subject.labels(view, logits, "bilinear")
    assert (labels != pasted[0].numpy()).mean() < 0.005


@pytest.mark.parametrize("kind", ["semantic", "panoptic"])
@torch.no_grad()
def test_the_last_panel_of_a_region_has_the_labels_that_the_model_gives(kind: str) -> None:
    predictor, image = predictor_of(kind), tiny_scene(0)[0]
    expected = predictor.model([predictor.inputs(image)])[0]["sem_seg"].argmax(dim=0).numpy()
    assert len(np.unique(expected)) > 1
    window = (16.0, 8.0, 64.0, 56.0)
    colors = [(i, i, i) for i in range(4)]
    subject = rendered_subjects.find_region(predictor, image, window, colors)
    *_, last = subject.rendering.steps()
    view = View(subject.frame, window, (48, 48))
    labels = subject.labels(view, subject.logits(last.logits), "nearest")
    np.testing.assert_array_equal(labels, expected[8:56, 16:64])


@torch.no_grad()
def test_instances_come_best_first_however_many_steps_they_need() -> None:
    opts = ("MODEL.POINT_HEAD.SUBDIVISION_CELLS_PER_PIXEL", "2.0", "INPUT.MIN_SIZE_TEST", "128")
    predictor, image = predictor_of("standard", *opts), tiny_scene(0)[0]
    (found,) = predictor.model.inference([predictor.inputs(image)], do_postprocess=False)
    subjects = rendered_subjects.find_instances(predictor, image)
    by_steps = sorted(subjects, key=lambda x: len(list(x.rendering.steps())))
    assert [id(x) for x in by_steps] != [id(x) for x in subjects]
    frames = [x.frame for x in subjects]
    np.testing.assert_allclose(frames, found.pred_boxes.tensor / 2, rtol=1e-5)


def test_the_steps_go_from_7_to_224_by_doubling() -> None:
    subject = subject_of("standard")
    figure = rendering_figures.steps_figure(subject, SIZE)
    assert [panel.title for panel in figure.frames] == [
        *("input", "7×7, coarse head", "14×14, every cell", "28×28, every cell"),
        *("56×56, 784 points", "112×112, 784 points", "224×224, 784 points"),
    ]
    assert [len(panel.points) for panel in figure.frames] == [0, 0, 0, 0, 784, 784, 784]
    assert [len(row) for row in figure.rows] == [4, 3]
    assert {panel.picture.shape for panel in figure.frames} == {figure.frames[0].picture.shape}
    assert max(figure.frames[0].picture.shape) == SIZE


def test_a_grid_that_rendering_skips_is_what_a_step_would_predict_there() -> None:
    opts = ("MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", "196")
    subject = subject_of("standard", *opts)
    rendering = subject.rendering
    grids = {
        rendering_figures.side_text(x.logits): x for x, _ in rendering_figures.all_grids(rendering)
    }
    assert list(grids) == [f"{s}×{s}" for s in (7, 14, 28, 56, 112, 224)]
    coords = grids["14×14"].coords
    assert coords.shape[1:] == (196, 2)
    with torch.no_grad():
        again = rendering.predict(coords.flip(1)).flip(2)
    torch.testing.assert_close(again.unflatten(2, (14, 14)), grids["14×14"].logits)


def test_a_step_that_covers_its_grid_shows_no_points() -> None:
    predictor = predictor_of("semantic", "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", "1536")
    subject = rendered_subjects.find_region(predictor, tiny_scene(0)[0], None, [(0, 0, 0)] * 4)
    frames = rendering_figures.steps_figure(subject, SIZE).frames
    assert [p.title for p in frames] == [
        *("input", "16×24, coarse head", "32×48, every cell", "64×96, 1536 points"),
    ]
    assert [len(p.points) for p in frames] == [0, 0, 0, 1536]


def test_an_implicit_head_starts_from_its_own_grid() -> None:
    subject = subject_of("implicit")
    titles = [p.title for p in rendering_figures.steps_figure(subject, SIZE).frames]
    assert titles[:3] == ["input", "28×28, every cell", "56×56, 784 points"]
    top, *_ = rendering_figures.comparison_figure(subject, SIZE).rows
    assert [p.title for p in top] == ["input", "coarse 28×28", "fine 224×224"]


def test_training_points_are_those_of_the_sampler_and_of_the_seed() -> None:
    subject = subject_of("standard")
    samplers = [PointSampler(49, on_regular_grid=True), PointSampler(49, 3, 0.75)]
    first, again, other = (
        rendering_figures.training_points_figure(subject, SIZE, samplers, seed).frames
        for seed in (0, 0, 1)
    )
    assert [p.title for p in first] == ["regular grid", "k = 3, β = 0.75"]
    height, width = first[0].picture.shape[:2]
    steps = (np.arange(7) + 0.5) / 7
    grid = np.stack(np.meshgrid(steps * width, steps * height), axis=-1).reshape(-1, 2)
    np.testing.assert_allclose(first[0].points, grid, rtol=1e-5)
    np.testing.assert_array_equal(first[1].points, again[1].points)
    assert first[1].points.shape == (49, 2)
    assert not np.array_equal(first[1].points, other[1].points)
    # 36 of 49 are the least certain ones of 147 candidates
    view = subject.view(SIZE)
    logits = view.of_map(subject.logits(subject.rendering.coarse_logits), "bilinear")[0]
    x, y = first[1].points.astype(int).T
    assert np.median(abs(logits[y, x])) < np.median(abs(logits))


def test_the_uncertainty_maps_are_those_by_which_points_were_chosen() -> None:
    subject = subject_of("standard")
    figure = rendering_figures.uncertainty_figure(subject, SIZE)
    assert [p.title for p in figure.frames[1:]] == [
        *(f"{s}×{s}, before 784 points" for s in (56, 112, 224)),
        "224×224, at the end",
    ]
    steps = rendering_figures.steps_figure(subject, SIZE).frames[-3:]
    for shown, step in zip(figure.frames[1:4], steps, strict=True):
        brightness = cv2.cvtColor(shown.picture, cv2.COLOR_BGR2GRAY)
        x, y = step.points.astype(int).T
        assert brightness[y, x].mean() > brightness.mean()


def test_regions_are_enlarged_where_coarse_and_fine_differ() -> None:
    subject = subject_of("standard")
    figure = rendering_figures.comparison_figure(subject, SIZE)
    assert [p.title for p in figure.frames] == ["input", "coarse 7×7", "fine 224×224"]
    assert len(figure.rows) == 1 + rendering_figures.NUM_ZOOMS
    width = figure.frames[0].picture.shape[1]
    for row in figure.rows[1:]:
        assert [p.picture.shape[1] for p in row] == [width] * 3
        assert (row[1].picture != row[2].picture).any()


# The command line


def test_the_regular_grid_of_any_number_of_points_is_square(image_file: Path) -> None:
    number = ["MODEL.POINT_HEAD.TRAIN_NUM_POINTS", "50"]
    chosen = ["--figures", "training-points", "--formats", "png"]
    assert list(run("semantic", image_file, *chosen, opts=number)) == ["training-points.png"]


def test_unreadable_inputs_and_unwritable_outputs_are_one_error(
    image_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = image_file.parent / "out"
    out.touch()
    with pytest.raises(SystemExit):
        run("standard", image_file, "--figures", "steps", "--formats", "png")
    message = f"visualize.py: error: --output {out} cannot be written: {out} is not a folder"
    assert capsys.readouterr().err.splitlines()[-1] == message
    out.unlink()
    image_file.write_bytes(image_file.read_bytes()[:-100])
    with pytest.raises(SystemExit):
        run("standard", image_file)
    assert f"error: {image_file} is truncated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "formats"),
    [("standard", "png gif pdf"), ("implicit", "png"), ("semantic", "gif"), ("panoptic", "pdf")],
)
def test_every_figure_is_written_in_every_format(kind: str, formats: str, image_file: Path) -> None:
    region = ["--region", 4, 4, 60, 60] if kind == "semantic" else ["--instance", 1]
    files = run(kind, image_file, *region, "--formats", *formats.split())
    assert sorted(x.name for x in (image_file.parent / "out").iterdir()) == sorted(files)
    names = ("coarse-fine", "steps", "training-points", "uncertainty")
    assert set(files) == {f"{x}.{y}" for x in names for y in formats.split()}
    for file in files.values():
        if file.suffix == ".png":
            assert min(cv2.imread(str(file)).shape[:2]) > SIZE / 4
        elif file.suffix == ".gif":
            with Image.open(file) as animation:
                assert animation.n_frames >= 3
        else:
            assert file.read_bytes().startswith(b"%PDF")


def test_a_given_box_is_rendered_for_its_class(image_file: Path) -> None:
    box = ["--region", 10, 12, 50, 52, "--figures", "steps", "--formats", "png"]
    pictures = []
    for name in KINDS[:2]:
        torch.manual_seed(0)
        classes = ["--class", name, "--classes", ",".join(KINDS)]
        files = run("standard", image_file, *box, *classes, opts=["MODEL.PIXEL_STD", "[9, 9, 9]"])
        assert list(files) == ["steps.png"]
        pictures.append(cv2.imread(str(files["steps.png"])))
    head = pictures[0].shape[0] // 2 - 4 - SIZE  # a square box fills its panel
    shown = pictures[0][head : head + SIZE, :SIZE]
    expected = View.around((10, 12, 50, 52), SIZE).of_image(tiny_scene(0)[0])
    np.testing.assert_array_equal(shown, expected)
    assert (pictures[0] != pictures[1]).any()


def test_options_that_select_nothing_are_one_error(
    image_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ["MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", "False"]
    cases = [
        (["--instance", "50"], [], "--instance 50: the model finds"),
        (["--region", 5, 5, WIDTH + 1, 9], [], f"image, which is {WIDTH} × {HEIGHT} pixels"),
        (["--region", 5, 5, 20, 20], [], "--region needs a --class: expected a number from 0 to 2"),
        (["--region", 5, 5, 20, 20, "--class", "cat"], [], "got cat"),
        ([], plain, "PointRendMaskHead has no point head"),
        (["--sampling", "0.5,0"], [], "OVERSAMPLE_RATIO (k): expected at least 1"),
    ]
    for arguments, opts, message in cases:
        with pytest.raises(SystemExit) as end:
            run("standard", image_file, *arguments, opts=opts)
        assert end.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (image_file.parent / "out").exists()


def test_without_weights_of_the_whole_model_nothing_is_drawn(
    image_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    semantic = checkpoint_of(
        image_file.parent / "other.pth", config=SEMANTIC, opts=MODELS["semantic"][1]
    )
    cases = [
        (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty: expected a checkpoint"),
        (semantic, f"{semantic[1]} lacks "),
    ]
    for opts, message in cases:
        with pytest.raises(SystemExit) as end:
            run("standard", image_file, opts=opts)
        assert end.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (image_file.parent / "out").exists()
