"""The command that segments images and videos: planted predictions, tiny models, errors."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from point_rend import SafeDetectionCheckpointer, get_config_file, load_config
from point_rend.cli import predict, run_command
from point_rend.inference import options, outputs, predictor, settings
from point_rend.inference import run as run_module
from point_rend.inference.progress import RECORD
from tests.tiny_datasets import (
    HEIGHT,
    KINDS,
    POINTREND,
    TINY_MODEL,
    WIDTH,
    process_state_restored,
    scene,
    write_coco,
)

SEMANTIC = get_config_file("SemanticSegmentation/pointrend_semantic_R_50_FPN_1x_coco.yaml")
PANOPTIC = get_config_file("PanopticSegmentation/pointrend_panoptic_R_50_FPN_1x_coco.yaml")
TINY_SEMANTIC = [
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"),
    *("MODEL.SEM_SEG_HEAD.POINT_HEAD.FC_DIM", "16"),
]
NAMES = ",".join(KINDS)
THREE_CLASSES = ["MODEL.ROI_HEADS.NUM_CLASSES", "3"]


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("sys.argv", ["predict.py"])
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with process_state_restored():
        yield


class Planted:
    """Finds the bright pixels of a picture as one instance, if there are any."""

    batch_sizes: list[int]

    def __init__(self, *_: Any, **__: Any) -> None:
        Planted.batch_sizes = []

    def __call__(self, images: Sequence[np.ndarray], *, batch_size: int) -> list[dict[str, Any]]:
        assert batch_size == len(images)
        Planted.batch_sizes.append(len(images))
        return [self.one(image) for image in images]

    @staticmethod
    def one(image: np.ndarray) -> dict[str, Any]:
        mask = image.min(axis=2) > 128
        found = Instances(mask.shape)
        boxes = torch.zeros(0, 4)
        if mask.any():
            y, x = np.nonzero(mask)
            boxes = torch.tensor([[x.min(), y.min(), x.max() + 1.0, y.max() + 1.0]])
        found.pred_boxes = Boxes(boxes)
        found.pred_masks = torch.from_numpy(mask).expand(len(boxes), *mask.shape)
        found.pred_classes = torch.full((len(boxes),), 2)
        found.scores = torch.full((len(boxes),), 0.75)
        return {"instances": found}


@pytest.fixture
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "Predictor", Planted)


def picture(number: int) -> np.ndarray:
    """A dark picture with a bright block, which is elsewhere in each."""
    image = np.full((48, 64, 3), 30, dtype=np.uint8)
    image[5 + number : 25 + number, 10 : 40 + number] = 220
    return image


def write_pictures(folder: Path, numbers: Sequence[int], suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        cv2.imwrite(str(folder / f"{number}{suffix}"), picture(number))
    return folder


def write_video(path: Path, num_frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
    for number in range(num_frames):
        writer.write(picture(number))
    writer.release()
    return path


def read_frames(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    capture.release()
    return frames


def files_below(folder: Path) -> list[str]:
    """List the files of a folder without the record of the run."""
    files = [x for x in folder.rglob("*") if x.is_file() and x.name != RECORD]
    return sorted(str(x.relative_to(folder)) for x in files)


def run(*arguments: object, config: str = POINTREND, opts: Sequence[str] = ()) -> None:
    words = ["--config-file", config, *map(str, arguments)]
    run_command("predict", [*words, "--opts", *TINY_MODEL, "MODEL.WEIGHTS", "planted.pkl", *opts])


def tiny_model(config: str, opts: Sequence[str]) -> nn.Module:
    torch.manual_seed(0)
    return build_model(load_config(config, [*TINY_MODEL, *opts])).eval()


def checkpoint_of(
    path: Path, *, config: str = POINTREND, opts: Sequence[str] = THREE_CLASSES, **metadata: object
) -> list[str]:
    """Write a tiny model with metadata of its classes; return the option that names it."""
    model = tiny_model(config, opts)
    SafeDetectionCheckpointer(model, str(path.parent), metadata=metadata).save(path.stem)
    return ["MODEL.WEIGHTS", str(path)]


def exit_code(*arguments: object, config: str = POINTREND, opts: Sequence[str] = ()) -> object:
    with pytest.raises(SystemExit) as end:
        run(*arguments, config=config, opts=opts)
    return end.value.code


# Pictures in, files out


@pytest.mark.usefixtures("_planted")
def test_coco_json_masks_and_pictures_hold_what_was_predicted(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", [0, 3])
    write_pictures(tmp_path / "in" / "sub", [5])
    json_file = write_coco(tmp_path / "coco").json_file  # with the category ids 3, 7, 12
    arguments = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--classes", json_file]
    run(*arguments, "--formats", "pictures", "coco", "masks", "--batch-size", 2)
    assert Planted.batch_sizes == [2, 1]
    numbers = {"0": 0, "3": 3, "sub/5": 5}
    assert files_below(tmp_path / "out") == sorted(
        ["instances.json", *(f"{x}.png" for x in numbers)]
        + [f"masks/{x}/000_triangle.png" for x in numbers]
    )
    content = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert [x["name"] for x in content["categories"]] == list(KINDS)
    images = {x["id"]: x for x in content["images"]}
    assert [x["file_name"] for x in images.values()] == ["0.png", "3.png", "sub/5.png"]
    assert len(content["annotations"]) == 3
    for annotation in content["annotations"]:
        name = images[annotation["image_id"]]["file_name"].removesuffix(".png")
        truth_mask = picture(numbers[name]).min(axis=2) > 128
        np.testing.assert_array_equal(mask_util.decode(annotation["segmentation"]), truth_mask)
        file = tmp_path / "out" / "masks" / name / "000_triangle.png"
        read = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(read, truth_mask * np.uint8(255))
        assert annotation["category_id"] == 12
        assert annotation["score"] == 0.75
        number = numbers[name]
        assert annotation["bbox"] == [10, 5 + number, 30 + number, 20]
        assert annotation["area"] == 20 * (30 + number)
        painted = cv2.imread(str(tmp_path / "out" / f"{name}.png"))
        assert painted.shape == (48, 64, 3)
        assert (np.ptp(painted, axis=2) > 20)[truth_mask].any()  # gray no longer


@pytest.mark.usefixtures("_planted")
def test_an_unreadable_file_is_named_at_the_end_and_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "in", [1, 2, 4], ".jpg")
    content = (folder / "2.jpg").read_bytes()
    (folder / "2.jpg").write_bytes(content[: len(content) // 2])
    (folder / "0.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("not asked for")
    missing = tmp_path / "missing_*.jpg"
    assert exit_code("--input", missing, folder, "--output", tmp_path / "out") == 1
    assert files_below(tmp_path / "out") == ["1.jpg", "4.jpg"]
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("predict.py: ")]
    assert len(lines) == 3
    for line, name in zip(lines, ("missing_*.jpg", "0.jpg", "2.jpg"), strict=True):
        assert name in line


def test_without_any_input_no_model_is_built_and_former_results_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "Predictor", None)
    former = tmp_path / "out" / "instances.json"
    former.parent.mkdir()
    former.write_text("former")
    (tmp_path / "empty").mkdir()
    missing, empty, video = (tmp_path / x for x in ("no.jpg", "empty", "no.mp4"))
    cases = [
        (["--input", missing, empty], f"no image found at {missing}; no image found at {empty}"),
        (["--video-input", video], f"--video-input: there is no video {video}"),
    ]
    for source, message in cases:
        assert exit_code(*source, "--output", former.parent, "--formats", "coco", "pictures") == 2
        assert capsys.readouterr().err.splitlines()[-1].endswith(message)
    assert files_below(tmp_path) == ["out/instances.json"]
    assert former.read_text() == "former"


@pytest.mark.usefixtures("_planted")
def test_if_no_input_can_be_read_former_results_stay(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", [1])
    run("--input", folder, "--output", tmp_path / "out", "--formats", "coco")
    former = (tmp_path / "out" / "instances.json").read_text()
    (tmp_path / "broken.jpg").write_text("no picture")
    (tmp_path / "broken.mp4").write_text("no video")
    arguments = ["--output", tmp_path / "out", "--formats", "coco"]
    assert exit_code("--input", tmp_path / "broken.jpg", *arguments) == 1
    assert exit_code("--video-input", tmp_path / "broken.mp4", *arguments) == 2
    assert files_below(tmp_path / "out") == ["instances.json"]
    assert (tmp_path / "out" / "instances.json").read_text() == former


@pytest.mark.usefixtures("_planted")
def test_a_picture_that_would_not_be_read_as_it_is_counts_as_unreadable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pictures(tmp_path / "in", [1])
    Image.fromarray(picture(1)[:, :, 0].astype(np.int32) * 100_000).save(folder / "deep.tif")
    cv2.imwrite(str(folder / "large.png"), np.zeros((96, 128), np.uint8))
    (folder / "folder.png").mkdir()
    monkeypatch.setenv("POINT_REND_MAX_PIXELS", str(48 * 64))
    assert exit_code("--input", folder, "--output", tmp_path / "out") == 1
    assert files_below(tmp_path / "out") == ["1.png"]
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("predict.py: ")]
    assert len(lines) == 2
    assert "deep.tif" in lines[0]
    assert "large.png" in lines[1]
    assert "POINT_REND_MAX_PIXELS" in lines[1]


@pytest.mark.usefixtures("_planted")
def test_an_unwritable_output_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "in", [1])
    video = write_video(tmp_path / "walk.mp4", 1)
    (tmp_path / "file").touch()
    for source in (["--input", folder], ["--video-input", video]):
        assert exit_code(*source, "--output", tmp_path / "file" / "out") == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("predict.py: error: ")
        assert str(tmp_path / "file" / "out") in last


@pytest.mark.usefixtures("_planted")
def test_patterns_files_and_twins_have_results_of_their_own(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", [1, 2])
    write_pictures(folder, [1, 3], ".jpg")
    inputs = [f"{folder}/[12].png", folder / "1.jpg", folder / "3.jpg", folder / "1.png"]
    run("--input", *inputs, "--output", tmp_path / "out", "--formats", "pictures", "masks")
    masks = files_below(tmp_path / "out" / "masks")
    names = ["1.jpg", "1.png", "2", "3"]
    assert [Path(x).parts[0] for x in masks] == names
    assert Planted.batch_sizes == [1] * 4


@pytest.mark.usefixtures("_planted")
def test_one_picture_can_have_a_name_of_its_own(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", [1])
    run("--input", folder / "1.png", "--output", tmp_path / "out" / "result.jpg")
    assert files_below(tmp_path / "out") == ["result.jpg"]


@pytest.mark.usefixtures("_planted")
def test_contradictory_options_are_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "in", [1, 2])
    other = write_pictures(tmp_path / "other", [1])
    files = [folder / "1.png", other / "1.png"]
    out = tmp_path / "out"
    cases = [
        (["--input", *files, "--output", out], "would have results of one name 1.png"),
        (["--input", folder, "--output", folder], "is a folder of --input"),
        (["--input", folder, "--output", tmp_path / "a.png"], "but there are 2 images"),
        (["--input", folder], "--output is missing, and there is no display"),
        (["--input", folder, "--output", out, "--batch-size", 0], "--batch-size: expected 1"),
        (["--input", folder, "--output", out, "--formats", "labels"], "labels needs sem_seg"),
        (["--input", folder, "--output", out, "--confidence-threshold", 2], "from 0 to 1"),
    ]
    for arguments, message in cases:
        assert exit_code(*arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert message in lines[-1]
    named = ["--input", folder, "--output", out, "--classes", "a,b"]
    assert exit_code(*named, opts=["MODEL.ROI_HEADS.NUM_CLASSES", "3"]) == 2
    assert "has 2 names, but MODEL.ROI_HEADS.NUM_CLASSES is 3" in capsys.readouterr().err
    assert not out.exists()


# Videos


@pytest.mark.usefixtures("_planted")
def test_a_video_gets_a_video_of_as_many_frames_and_a_json_of_each(tmp_path: Path) -> None:
    video = write_video(tmp_path / "walk.mp4", 7)
    out = tmp_path / "out"
    arguments = ["--video-input", video, "--output", out, "--classes", NAMES, "--batch-size", 3]
    run(*arguments, "--formats", "pictures", "coco")
    assert Planted.batch_sizes == [3, 3, 1]
    assert files_below(out) == ["instances.json", "walk.mp4"]
    shown = read_frames(out / "walk.mp4")
    assert len(shown) == 7
    for number, frame in enumerate(shown):
        assert frame.shape == (48, 64, 3)
        mask = picture(number).min(axis=2) > 128
        assert (np.ptp(frame.astype(int), axis=2) > 20)[mask].any()
    content = json.loads((out / "instances.json").read_text())
    assert [x["file_name"] for x in content["images"]] == [f"walk/{i:06d}.png" for i in range(1, 8)]


@pytest.mark.usefixtures("_planted")
def test_the_frames_of_a_video_can_be_written_one_by_one(tmp_path: Path) -> None:
    video = write_video(tmp_path / "walk.mp4", 3)
    run("--video-input", video, "--output", tmp_path / "out", "--frames")
    assert files_below(tmp_path / "out") == [f"walk/{i:06d}.png" for i in (1, 2, 3)]


@pytest.mark.usefixtures("_planted")
def test_a_video_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.mp4").write_text("no video")
    assert exit_code("--video-input", tmp_path / "no.mp4", "--output", tmp_path / "out") == 1
    assert "no.mp4: not a video that OpenCV can read" in capsys.readouterr().err
    assert files_below(tmp_path) == ["no.mp4"]


@pytest.mark.usefixtures("_planted")
def test_a_video_with_fewer_frames_than_announced_is_reported_and_its_frames_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(tmp_path / "walk.avi", 20)
    arguments = ["--video-input", video, "--output", tmp_path / "out", "--formats", "coco"]
    run(*arguments)
    assert "announces" not in capsys.readouterr().err
    content = video.read_bytes()
    video.write_bytes(content[: len(content) * 9 // 10])
    number = len(read_frames(video))
    assert 0 < number < 20
    run(*arguments, "--overwrite")
    assert f"{video}: {number} frames, of 20 that it announces" in capsys.readouterr().err
    content = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert len(content["images"]) == number


def test_ctrl_c_completes_the_video_and_an_error_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = write_video(tmp_path / "walk.mp4", 5)

    class Ending(Planted):
        error: type[BaseException]

        def __call__(
            self, images: Sequence[np.ndarray], *, batch_size: int
        ) -> list[dict[str, Any]]:
            if len(Planted.batch_sizes) == 2:
                raise self.error
            return super().__call__(images, batch_size=batch_size)

    monkeypatch.setattr(run_module, "Predictor", Ending)
    Ending.error = KeyboardInterrupt
    assert exit_code("--video-input", video, "--output", tmp_path / "out") == 130
    assert len(read_frames(tmp_path / "out" / "walk.mp4")) == 2
    Ending.error = RuntimeError
    with pytest.raises(RuntimeError):
        run("--video-input", video, "--output", tmp_path / "failed")
    assert files_below(tmp_path / "failed") == []


@pytest.mark.usefixtures("_planted")
def test_a_camera_is_shown_until_escape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    video = str(write_video(tmp_path / "camera.mp4", 5))
    camera = cv2.VideoCapture
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: {0: camera(video)}[number])
    shown: list[np.ndarray] = []
    monkeypatch.setattr(cv2, "imshow", lambda _, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda _: outputs.ESCAPE if len(shown) == 3 else -1)
    run("--webcam")
    assert len(shown) == 3
    assert shown[0].shape == (48, 64, 3)


# Models


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), scene(number)[0])
    return folder


@pytest.mark.parametrize("augmented", [False, True])
def test_a_model_of_instances_finds_up_to_its_number(
    images: Path, tmp_path: Path, augmented: bool
) -> None:
    arguments = ["--input", images, "--output", tmp_path / "out", "--classes", NAMES]
    opts = ["TEST.AUG.ENABLED", str(augmented), "TEST.AUG.MIN_SIZES", "(48, 64)"]
    opts += checkpoint_of(tmp_path / "m.pth")
    formats = ["--formats", "pictures", "coco", "--confidence-threshold", 0]
    run(*arguments, *formats, "--batch-size", 2, opts=opts)
    content = json.loads((tmp_path / "out" / "instances.json").read_text())
    counts = np.bincount([x["image_id"] for x in content["annotations"]], minlength=4)[1:]
    assert (counts > 0).all()
    assert (counts <= 5).all()  # TEST.DETECTIONS_PER_IMAGE
    assert {tuple(x["segmentation"]["size"]) for x in content["annotations"]} == {(HEIGHT, WIDTH)}
    assert files_below(tmp_path / "out") == ["0.png", "1.png", "2.png", "instances.json"]


def test_no_instance_has_a_lower_score_than_asked_for(images: Path, tmp_path: Path) -> None:
    def scores(threshold: float) -> list[float]:
        out = tmp_path / str(threshold)
        base = ["--input", images, "--classes", NAMES, "--formats", "coco", "--output", out]
        run(*base, "--confidence-threshold", threshold, opts=opts)
        content = json.loads((out / "instances.json").read_text())
        return [x["score"] for x in content["annotations"]]

    opts = ["MODEL.PIXEL_STD", "[1e3, 1e3, 1e3]", "TEST.DETECTIONS_PER_IMAGE", "50"]
    opts += checkpoint_of(tmp_path / "m.pth")
    everything = scores(0)
    middle = float(np.median(everything))
    assert scores(middle) == [x for x in everything if x > middle]
    assert min(everything) < middle < max(everything)


def test_label_maps_are_the_best_classes_of_the_model(images: Path, tmp_path: Path) -> None:
    opts = [*TINY_SEMANTIC, "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p2', 'p3']"]
    arguments = ["--input", images, "--output", tmp_path / "out", "--batch-size", 2]
    weights = checkpoint_of(tmp_path / "m.pth", config=SEMANTIC, opts=opts)
    run(*arguments, "--formats", "labels", "pictures", config=SEMANTIC, opts=[*opts, *weights])
    names = [f"{i}.png" for i in range(3)]
    assert files_below(tmp_path / "out") == [*names, *(f"labels/{x}" for x in names)]

    model = tiny_model(SEMANTIC, opts)
    for name in names:
        pixels = torch.from_numpy(cv2.imread(str(images / name))).permute(2, 0, 1)
        with torch.no_grad():
            expected = model([{"image": pixels}])[0]["sem_seg"].argmax(dim=0)
        found = cv2.imread(str(tmp_path / "out" / "labels" / name), cv2.IMREAD_UNCHANGED)
        assert (found.dtype, found.shape) == (np.uint8, (HEIGHT, WIDTH))
        assert (found == expected.numpy()).mean() > 0.999


def test_a_panoptic_model_gives_pictures_instances_and_labels(images: Path, tmp_path: Path) -> None:
    arguments = ["--input", images, "--output", tmp_path / "out", "--classes", NAMES]
    formats = ["--formats", *predict.FORMATS, "--confidence-threshold", 0]
    opts = [*THREE_CLASSES, *TINY_SEMANTIC]
    weights = checkpoint_of(tmp_path / "m.pth", config=PANOPTIC, opts=opts)
    run(*arguments, *formats, config=PANOPTIC, opts=[*opts, *weights])
    found = files_below(tmp_path / "out")
    assert {"0.png", "1.png", "2.png", "instances.json", "labels/0.png"} <= set(found)
    assert any(x.startswith("masks/0/000_") for x in found)


def test_without_weights_nothing_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "build_model", None)
    folder = write_pictures(tmp_path / "in", [1])
    arguments = ["--input", folder, "--output", tmp_path / "out"]
    assert exit_code(*arguments, opts=["MODEL.WEIGHTS", "", "OUTPUT_DIR", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "MODEL.WEIGHTS is empty: expected a checkpoint, such as run/model_final.pth"
    )
    assert not (tmp_path / "out").exists()


def test_weights_of_another_kind_of_model_are_one_error(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = checkpoint_of(tmp_path / "m.pth")
    arguments = ["--input", images, "--output", tmp_path / "out"]
    assert exit_code(*arguments, config=SEMANTIC, opts=[*TINY_SEMANTIC, *weights]) == 2
    theirs, ours = tiny_model(POINTREND, THREE_CLASSES), tiny_model(SEMANTIC, TINY_SEMANTIC)
    keys = ours.state_dict().keys()
    missing = [key for key in keys if key not in theirs.state_dict()]
    assert 0 < len(missing) < len(keys)
    stderr = capsys.readouterr().err
    assert (
        f"error: {tmp_path / 'm.pth'} lacks {len(missing)} ({', '.join(missing[:5])}, ...) of the "
        f"{len(keys)} parameters: expected weights of this model"
    ) in stderr.splitlines()[-1]
    assert "not found in the checkpoint" not in stderr
    assert not (tmp_path / "out").exists()


# Names of classes


@pytest.mark.parametrize("name", ["names.txt", "names.json", "names"])
def test_a_file_of_classes_that_is_no_text_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    file.write_bytes(b"\x89PNG\xff")
    folder = write_pictures(tmp_path / "in", [1])
    assert exit_code("--input", folder, "--output", tmp_path / "out", "--classes", file) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line
    assert "in UTF-8" in line


def test_names_on_the_command_line_give_the_number_of_classes_too() -> None:
    words = ["--config-file", POINTREND, "--classes", NAMES, "--opts", "MODEL.WEIGHTS", "m.pkl"]
    args = options.build_parser("").parse_args(words)
    assert settings.read_settings(args).cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3


def test_classes_are_those_of_the_checkpoint(images: Path, tmp_path: Path) -> None:
    ids = {index + 5: index for index in range(3)}
    metadata = {"thing_classes": list(KINDS), "thing_dataset_id_to_contiguous_id": ids}
    opts = checkpoint_of(tmp_path / "m.pth", **metadata)
    base = ["--input", images, "--formats", "coco", "--confidence-threshold", 0, "--output"]
    run(*base, tmp_path / "a", opts=opts)
    run(*base, tmp_path / "b", "--classes", "x,y,z", opts=opts)
    found = [json.loads((tmp_path / x / "instances.json").read_text()) for x in "ab"]
    assert [x["categories"] for x in found] == [
        [{"id": index + 5, "name": name} for index, name in enumerate(KINDS)],
        [{"id": index + 1, "name": name} for index, name in enumerate("xyz")],
    ]
    first, other = ([a["category_id"] for a in x["annotations"]] for x in found)
    assert first == [identity + 4 for identity in other]
    assert first


def test_a_checkpoint_of_another_number_of_classes_than_the_config_is_one_error(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "MODEL.ROI_HEADS.NUM_CLASSES"
    opts = [*checkpoint_of(tmp_path / "m.pth", thing_classes=list(KINDS)), key, "4"]
    assert exit_code("--input", images, "--output", tmp_path / "out", opts=opts) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{key} is 4, but the classes of {tmp_path / 'm.pth'} are 3 (disc, box" in line
    assert f"pass {key} 3, or name others with --classes" in line
