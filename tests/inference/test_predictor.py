"""The public predictor: inputs, results, configs and classes, on tiny models."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from torch import nn

from point_rend import Predictor, SafeDetectionCheckpointer, load_config
from point_rend.checkpoint import zoo
from point_rend.checkpoint.complete_model import CompleteModelCheckpointer
from point_rend.data.mapper import NamingDatasetMapper
from point_rend.evaluation.postprocessing import paste
from point_rend.rendering.box_masks import BoxMasks
from point_rend.utils import downloads
from tests.checkpoint.nets import HOSTILE, write_pickle, zoo_file
from tests.cli.test_predict import (
    PANOPTIC,
    SEMANTIC,
    THREE_CLASSES,
    TINY_SEMANTIC,
    checkpoint_of,
    tiny_model,
)
from tests.tiny_datasets import HEIGHT, KINDS, POINTREND, TINY_MODEL, WIDTH, process_state_restored
from tests.tiny_datasets import scene as tiny_scene

MODELS = {
    "instance": (POINTREND, THREE_CLASSES),
    "semantic": (SEMANTIC, TINY_SEMANTIC),
    "panoptic": (PANOPTIC, [*THREE_CLASSES, *TINY_SEMANTIC]),
}
CONFIG_NAME = "InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml"


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    weights = checkpoint_of(tmp_path / "m.pth", thing_classes=list(KINDS))
    return Predictor(load_config(POINTREND, [*TINY_MODEL, *THREE_CLASSES, *weights]))


def scene(number: int = 0) -> np.ndarray:
    return tiny_scene(number)[0]


def assert_same(ours: dict[str, Any], theirs: dict[str, Any], **tolerance: float) -> None:
    """Compare results to the bit, or within a tolerance."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if isinstance(value, Instances):
            assert ours[name].image_size == value.image_size
            assert len(ours[name]) == len(value) > 0
            actual = {key: getattr(x, "tensor", x) for key, x in ours[name].get_fields().items()}
            expected = {key: getattr(x, "tensor", x) for key, x in value.get_fields().items()}
        elif isinstance(value, tuple):
            for segment, other in zip(ours[name][1], value[1], strict=True):
                assert segment == (pytest.approx(other, rel=1e-5) if tolerance else other)
            actual, expected = {name: ours[name][0]}, {name: value[0]}
        else:
            actual, expected = {name: ours[name]}, {name: value}
        assert actual.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(actual[key], expected[key], **(tolerance or EXACT))


EXACT = {"rtol": 0.0, "atol": 0.0}


# Results


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_results_are_those_of_detectron2s_default_predictor(
    kind: str, order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, opts = MODELS[kind]
    weights = checkpoint_of(tmp_path / "m.pth", config=config, opts=opts)
    cfg = load_config(config, [*TINY_MODEL, *opts, *weights, "INPUT.FORMAT", order])
    image = cv2.resize(scene(), None, fx=1.7, fy=1.3)
    expected = DefaultPredictor(cfg)(image)
    assert_same(Predictor(cfg)(image), expected, rtol=1e-5, atol=1e-4)  # boxes are in pixels
    monkeypatch.setattr("point_rend.inference.predictor.prepare_for_inference", lambda m: m)
    assert_same(Predictor(cfg)(image), expected)


def test_several_images_give_the_results_of_each(predictor: Predictor) -> None:
    images = [scene(0), cv2.resize(scene(1), (80, 80)), scene(2)]
    each = [predictor(image) for image in images]
    for many in (images, tuple(images)):
        for ours, theirs in zip(predictor(many), each, strict=True):
            assert_same(ours, theirs)


def test_the_model_sees_batches_of_the_given_size(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [scene(number) for number in range(3)]
    each = predictor(images)
    sizes: list[int] = []
    forward = predictor.model.forward
    monkeypatch.setattr(
        predictor.model, "forward", lambda batch: sizes.append(len(batch)) or forward(batch)
    )
    for ours, theirs in zip(predictor(images, batch_size=2), each, strict=True):
        assert_same(ours, theirs, rtol=1e-4, atol=1e-3)
    assert sizes == [2, 1]


@pytest.mark.parametrize("kind", ["instance", "semantic"])
def test_masks_and_labels_are_rendered_at_the_output_size(kind: str, tmp_path: Path) -> None:
    config, opts = MODELS[kind]
    weights = checkpoint_of(tmp_path / "m.pth", config=config, opts=opts)
    predictor = Predictor(load_config(config, [*TINY_MODEL, *opts, *weights]))
    size = (3 * HEIGHT, 2 * WIDTH)
    output = predictor(scene(), output_size=size)
    if kind == "instance":
        assert output["instances"].image_size == size
        assert output["instances"].pred_masks.shape[1:] == size
    else:
        assert output["sem_seg"].shape[1:] == size


def test_masks_that_are_pasted_later_are_those_of_the_results(predictor: Predictor) -> None:
    unpasted = Predictor(predictor.cfg, paste_masks=False)(scene())
    assert isinstance(unpasted["instances"].pred_masks, BoxMasks)
    assert_same(paste(unpasted), predictor(scene()))


def test_no_gradients_are_computed(predictor: Predictor) -> None:
    scores = predictor(scene())["instances"].scores
    assert not scores.requires_grad
    assert not predictor.model.training


# Images


def turned(image: Image.Image) -> Image.Image:
    image.getexif()[0x0112] = 6  # EXIF's orientation: turned by a quarter
    return image


FILES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "color.png": lambda image: image,
    "gray.png": lambda image: image.convert("L"),
    "palette.png": lambda image: image.convert("P"),
    "alpha.png": lambda image: image.convert("RGBA"),
    "bits.png": lambda image: image.convert("1"),
    "print.tif": lambda image: image.convert("CMYK"),
    "turned.jpg": turned,
}


@pytest.mark.parametrize("name", FILES)
def test_array_pil_image_and_path_are_the_same_image(
    name: str, predictor: Predictor, tmp_path: Path
) -> None:
    image = FILES[name](Image.fromarray(scene()[:, :, ::-1]))
    path = tmp_path / name
    image.save(path, exif=image.getexif())
    expected = predictor.inputs(read_image(str(path), "BGR"))
    assert (expected["height"] > expected["width"]) == (name == "turned.jpg")
    with Image.open(path) as opened:
        for same in (path, str(path), opened):
            inputs = predictor.inputs(same)
            assert torch.equal(inputs["image"], expected["image"])
            assert (inputs["height"], inputs["width"]) == (expected["height"], expected["width"])
    assert_same(predictor(str(path)), predictor(read_image(str(path), "BGR")))


def test_a_model_reads_colors_in_its_own_order() -> None:
    seen = []
    for order in ("BGR", "RGB"):
        predictor = Predictor(load_config(POINTREND, [*TINY_MODEL, "INPUT.FORMAT", order]))
        inputs = predictor.inputs(scene())
        assert (inputs["height"], inputs["width"]) == (HEIGHT, WIDTH)
        seen.append(inputs["image"])
    assert seen[0].dtype == torch.uint8
    assert torch.equal(seen[0], seen[1].flip(0))


def test_a_grayscale_model_sees_what_its_training_reads(tmp_path: Path) -> None:
    gray = ["INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", "[120.0]", "MODEL.PIXEL_STD", "[60.0]"]
    cfg = load_config(POINTREND, [*TINY_MODEL, *gray])
    predictor, mapper = Predictor(cfg), NamingDatasetMapper(cfg, is_train=False)
    for name, mode in {"color.png": "RGB", "print.tif": "CMYK", "gray.jpg": "L"}.items():
        path = tmp_path / name
        Image.fromarray(scene()[:, :, ::-1]).convert(mode).save(path)
        expected = mapper({"file_name": str(path), "image_id": 0})["image"]
        assert expected.shape[0] == 1
        for same in (path, read_image(str(path), "BGR"), Image.open(path)):
            assert torch.equal(predictor.inputs(same)["image"], expected)
        assert predictor(path)["instances"].image_size == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 4, 3)), ValueError, r"got shape \(4, 4, 3\) of type float64"),
        (np.zeros((4, 4), np.uint8), ValueError, r"\(H, W, 3\) of type uint8 in BGR .*\(4, 4\)"),
        (np.zeros((3, 4, 4), np.uint8), ValueError, r"got shape \(3, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"got shape \(0, 4, 3\)"),
        (torch.zeros(3, 4, 4), TypeError, "a PIL image or a path, got Tensor"),
        ("missing.jpg", FileNotFoundError, "there is no image missing.jpg"),
        (__file__, ValueError, r"test_predictor\.py is not an image, but a text"),
        (os.path.dirname(__file__), ValueError, "cannot be read: a folder"),
        (Image.new("I", (4, 4), 70000), ValueError, "has 32-bit values from 70000 to 70000"),
    ],
)
def test_an_input_that_is_no_image_is_one_error(
    image: Any, error: type[Exception], message: str, predictor: Predictor
) -> None:
    for wrong in (image, [scene(), image]):
        with pytest.raises(error, match=message):
            predictor(wrong)


def test_there_is_at_least_one_image(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="expected one image or more, got an empty list"):
        predictor([])
    with pytest.raises(ValueError, match="batch_size: expected 1 or more, got 0"):
        predictor([scene()], batch_size=0)


# Weights


def test_weights_may_have_more_than_the_model_and_lack_what_only_training_counts(
    tmp_path: Path,
) -> None:
    state = dict(tiny_model(PANOPTIC, MODELS["panoptic"][1]).state_dict())
    state = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    torch.save({"model": state}, tmp_path / "m.pth")
    weights = ["MODEL.WEIGHTS", str(tmp_path / "m.pth")]
    cfg = load_config(SEMANTIC, [*TINY_MODEL, *TINY_SEMANTIC, *weights])
    loaded = Predictor(cfg).model.state_dict()
    assert {key.rpartition(".")[2] for key in set(loaded) - set(state)} == {"num_batches_tracked"}
    assert set(state) - set(loaded)
    for key in set(loaded) & set(state):
        assert torch.equal(loaded[key], state[key])


def test_a_parameter_of_two_names_may_have_one_in_the_file(tmp_path: Path) -> None:
    model = nn.ModuleDict({"first": nn.Linear(2, 2)})
    torch.save({"model": model.state_dict()}, tmp_path / "m.pth")
    model["again"] = model["first"]
    CompleteModelCheckpointer(model).load(str(tmp_path / "m.pth"))
    model["other"] = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"lacks 2 \(other\.weight, other\.bias\) of the 6"):
        CompleteModelCheckpointer(model).load(str(tmp_path / "m.pth"))


def test_a_checkpoint_executes_code_only_if_allowed(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    model = tiny_model(POINTREND, THREE_CLASSES)
    extra = HOSTILE["os.system"](str(sentinel))
    torch.save({"model": model.state_dict(), "extra": extra}, tmp_path / "m.pth")
    (tmp_path / "config.yaml").write_text(load_config(POINTREND, TINY_MODEL).dump())
    path = tmp_path / "m.pth"
    for build in (
        lambda **unsafe: Predictor.from_checkpoint(path, THREE_CLASSES, **unsafe),
        lambda **unsafe: Predictor.from_config_file(
            POINTREND, [*TINY_MODEL, *THREE_CLASSES], weights=path, **unsafe
        ),
    ):
        with pytest.raises(ValueError, match="is refused: it asks for"):
            build()
        assert not sentinel.exists()
        build(allow_unsafe=True)
        assert sentinel.exists()
        sentinel.unlink()


# Configs and classes


def test_a_config_is_found_by_name_and_a_published_model_has_the_classes_of_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = {key: value.numpy() for key, value in tiny_model(POINTREND, []).state_dict().items()}
    file = write_pickle(tmp_path / "model.pkl", zoo_file(state))
    name = "pointrend_rcnn_R_50_FPN_1x_coco"
    monkeypatch.setattr(
        downloads, "download", lambda url, **_: {zoo.PUBLISHED[name]: Path(file)}[url]
    )
    predictor = Predictor.from_config_file(CONFIG_NAME, TINY_MODEL, weights=f"zoo://{name}")
    assert predictor.metadata.thing_classes[:2] == ["person", "bicycle"]
    assert len(predictor.metadata.thing_classes) == 80
    assert torch.equal(
        predictor.model.state_dict()["backbone.bottom_up.stem.conv1.weight"],
        torch.from_numpy(state["backbone.bottom_up.stem.conv1.weight"]),
    )


def test_class_counts_and_names_that_the_config_leaves_open_are_those_of_the_checkpoint(
    tmp_path: Path,
) -> None:
    checkpoint_of(tmp_path / "m.pth", thing_classes=list(KINDS))
    predictor = Predictor.from_config_file(CONFIG_NAME, TINY_MODEL, weights=tmp_path / "m.pth")
    assert predictor.cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    assert predictor.metadata.thing_classes == list(KINDS)


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_checkpoint_is_enough_with_its_config_in_the_file_or_in_the_folder(
    place: str, predictor: Predictor, tmp_path: Path
) -> None:
    folder = tmp_path / place
    folder.mkdir()
    text = predictor.cfg.dump()
    metadata: dict[str, Any] = {"thing_classes": list(KINDS)}
    if place == "file":
        metadata["config"] = text
        (folder / "config.yaml").write_text("SEED: the one in the file takes precedence")
    else:
        (folder / "config.yaml").write_text(text)
    SafeDetectionCheckpointer(predictor.model, str(folder), metadata=metadata).save("model_final")
    for path in (folder / "model_final.pth", str(folder / "model_final.pth")):
        again = Predictor.from_checkpoint(path, ["TEST.DETECTIONS_PER_IMAGE", "4"])
        assert again.metadata.thing_classes == list(KINDS)
        assert again.cfg.TEST.DETECTIONS_PER_IMAGE == 4
        ours, theirs = again(scene())["instances"], predictor(scene())["instances"]
        assert_same({"instances": ours}, {"instances": theirs[: len(ours)]})


def test_a_checkpoint_without_a_config_is_one_error_that_names_both_places(tmp_path: Path) -> None:
    checkpoint_of(tmp_path / "m.pth")
    message = (
        rf"{tmp_path / 'm.pth'} has no config, neither in the file nor as "
        rf"{tmp_path / 'config.yaml'}: pass one with Predictor.from_config_file"
    )
    with pytest.raises(FileNotFoundError, match=message):
        Predictor.from_checkpoint(tmp_path / "m.pth")
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*none\.pth"):
        Predictor.from_checkpoint(tmp_path / "none.pth")
    published = "zoo://pointrend_rcnn_R_50_FPN_3x_coco"
    with pytest.raises(ValueError, match=rf"use Predictor\.from_config_file.*{published}"):
        Predictor.from_checkpoint(published)
    with pytest.raises(FileNotFoundError, match="is published; did you mean"):
        Predictor.from_checkpoint(f"{published}o")


def test_a_config_without_weights_is_an_error(tmp_path: Path) -> None:
    opts = [*TINY_MODEL, "OUTPUT_DIR", str(tmp_path)]
    message = f"MODEL.WEIGHTS is empty: expected a checkpoint, such as {tmp_path}/model_final.pth"
    with pytest.raises(ValueError, match=message):
        Predictor.from_config_file(CONFIG_NAME, opts)


@pytest.mark.parametrize("kind", MODELS)
def test_the_metadata_serves_detectron2s_visualizer(kind: str, tmp_path: Path) -> None:
    config, opts = MODELS[kind]
    weights = checkpoint_of(tmp_path / "m.pth", config=config, opts=opts)
    predictor = Predictor(load_config(config, [*TINY_MODEL, *opts, *weights]))
    output = predictor(scene())
    visualizer = Visualizer(scene()[:, :, ::-1], predictor.metadata)
    if "panoptic_seg" in output:
        drawn = visualizer.draw_panoptic_seg(*output["panoptic_seg"])
    elif "sem_seg" in output:
        drawn = visualizer.draw_sem_seg(output["sem_seg"].argmax(dim=0))
    else:
        drawn = visualizer.draw_instance_predictions(output["instances"])
    assert drawn.get_image().shape == (HEIGHT, WIDTH, 3)


# Devices


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda_the_default_device_is_the_cpu_and_an_explicit_one_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint_of(tmp_path / "m.pth", thing_classes=list(KINDS))
    opts = [word for word in TINY_MODEL if word not in ("MODEL.DEVICE", "cpu")]
    build = Predictor.from_config_file
    assert build(CONFIG_NAME, opts, weights=tmp_path / "m.pth").model.device.type == "cpu"
    assert "This machine has no CUDA device: the model runs on the CPU" in caplog.text
    for explicit in ({"device": "cuda"}, {"opts": [*opts, "MODEL.DEVICE", "cuda"]}):
        with pytest.raises(ValueError, match=r"MODEL\.DEVICE is cuda, but there is no CUDA device"):
            build(CONFIG_NAME, weights=tmp_path / "m.pth", **{"opts": opts, **explicit})
