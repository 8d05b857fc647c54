"""Test-time augmentation, against separate runs of the model."""

import itertools
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from torch import Tensor, nn

from point_rend import load_config
from point_rend.config.checks import check_test_time_augmentation
from point_rend.evaluation.tta import (
    AutocastModel,
    MultiScaleSegmentor,
    build_test_time_augmentation,
)
from point_rend.rendering.box_masks import BoxMasks
from tests.tiny_datasets import BASELINE, POINTREND, TINY_MODEL

K = 5


class Segmentor(nn.Module):
    """A model that is neither flip- nor scale-invariant; it counts its results in memory."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, K, 5, padding=2)
        self.results: list[weakref.ref] = []
        self.seen: list[tuple[int, int]] = []
        self.most_alive = 0

    def forward(self, inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        (image,) = inputs
        self.seen.append(tuple(image["image"].shape[-2:]))
        logits = self.conv(image["image"][None].float() / 32)
        size = (image["height"], image["width"])
        result = nn.functional.interpolate(logits, size, mode="bilinear")[0]
        self.results.append(weakref.ref(result))
        self.most_alive = max(self.most_alive, sum(r() is not None for r in self.results))
        return [{"sem_seg": result}]


def picture(height: int = 40, width: int = 70) -> Tensor:
    values = np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)
    return torch.from_numpy(values)


def resize(image: Tensor, side: int, max_size: int) -> Tensor:
    pixels = image.permute(1, 2, 0).numpy()
    height, width = pixels.shape[:2]
    size = ResizeShortestEdge.get_output_shape(height, width, side, max_size)
    resized = ResizeTransform(height, width, *size).apply_image(pixels)
    return torch.from_numpy(resized.copy()).permute(2, 0, 1)


def mean_of_separate_runs(
    model: nn.Module, image: Tensor, size: tuple[int, int], sides: Sequence[int], *, flip: bool
) -> Tensor:
    height, width = size
    maps = []
    for side, flipped in itertools.product(sides, (False, True) if flip else (False,)):
        variant = resize(image, side, 200)
        variant = variant.flip(2) if flipped else variant
        inputs = {"image": variant, "height": height, "width": width}
        with torch.no_grad():
            result = model([inputs])[0]["sem_seg"].softmax(dim=0)
        maps.append(result.flip(2) if flipped else result)
    return torch.stack(maps).mean(dim=0)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(40, 70), (130, 33)])
def test_the_result_is_the_mean_of_separate_runs(size: tuple[int, int], flip: bool) -> None:
    model, sides = Segmentor(), (20, 40, 90)
    wrapped = MultiScaleSegmentor(model, min_sizes=sides, max_size=200, flip=flip)
    inputs = {"image": picture(), "height": size[0], "width": size[1]}
    (result,) = wrapped([inputs])
    assert result["sem_seg"].shape == (K, *size)
    assert result["sem_seg"].dtype == torch.float32
    expected = mean_of_separate_runs(model, picture(), size, sides, flip=flip)
    torch.testing.assert_close(result["sem_seg"], expected)
    torch.testing.assert_close(result["sem_seg"].sum(dim=0), torch.ones(size))


def test_a_very_long_image_keeps_a_row_in_every_variant() -> None:
    model = Segmentor()
    wrapped = MultiScaleSegmentor(model, min_sizes=(20, 90), max_size=100, flip=False)
    (result,) = wrapped([{"image": picture(1, 900)}])
    assert result["sem_seg"].shape == (K, 1, 900)
    assert model.seen == [(1, 100), (1, 100)]


def test_the_result_of_a_flipped_image_is_the_flipped_result() -> None:
    wrapped = MultiScaleSegmentor(Segmentor(), min_sizes=(40,), max_size=200, flip=True)
    result = wrapped([{"image": picture()}])[0]["sem_seg"]
    mirrored = wrapped([{"image": picture().flip(2)}])[0]["sem_seg"]
    torch.testing.assert_close(mirrored.flip(2), result)


def test_one_variant_without_resizing_has_the_classes_of_the_plain_model() -> None:
    model = Segmentor()
    wrapped = MultiScaleSegmentor(model, min_sizes=(40,), max_size=200, flip=False)
    inputs = {"image": picture(), "height": 40, "width": 70}
    plain = model([inputs])[0]["sem_seg"].argmax(dim=0)
    assert torch.equal(wrapped([inputs])[0]["sem_seg"].argmax(dim=0), plain)


def test_only_one_result_of_the_model_is_in_memory_at_a_time() -> None:
    model = Segmentor()
    wrapped = MultiScaleSegmentor(model, min_sizes=range(20, 90, 10), max_size=200, flip=True)
    wrapped([{"image": picture()}] * 2)
    assert len(model.results) == 28
    assert model.most_alive == 1


def test_memory_does_not_grow_with_the_number_of_variants() -> None:
    """Return the bytes allocated by the sum itself; the model returns views of one map."""
    logits = torch.randn(K, 256, 256)

    class Constant(nn.Module):
        def forward(self, inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
            assert len(inputs) == 1
            return [{"sem_seg": logits[:]}]

    def peak(sides: Sequence[int]) -> int:
        wrapped = MultiScaleSegmentor(Constant(), min_sizes=sides, max_size=64, flip=True)
        image = {"image": picture(16, 16), "height": 256, "width": 256}
        with torch.profiler.profile(profile_memory=True) as profile:
            wrapped([image])
        live = most = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                live += event.nbytes()
                most = max(most, live)
        return most

    one, many = peak([16]), peak([16] * 6)
    buffer = logits.nbytes
    assert buffer <= one < 2 * buffer
    assert many < 1.1 * one


def test_images_of_a_batch_are_processed_one_by_one_in_their_own_sizes() -> None:
    model = Segmentor()
    wrapped = MultiScaleSegmentor(model, min_sizes=(20, 40), max_size=60, flip=False)
    results = wrapped([{"image": picture(40, 70)}, {"image": picture(50, 50), "height": 9}])
    assert [result["sem_seg"].shape for result in results] == [(K, 40, 70), (K, 9, 50)]
    assert model.seen == [(20, 35), (34, 60), (20, 20), (40, 40)]


@pytest.mark.parametrize("training", [True, False])
def test_wrapping_keeps_the_mode_of_the_model(training: bool) -> None:
    model = Segmentor().train(training)
    wrapped = MultiScaleSegmentor(model, min_sizes=(20,), max_size=200, flip=False)
    assert model.training == wrapped.training == training


def test_no_gradient_is_kept() -> None:
    wrapped = MultiScaleSegmentor(Segmentor(), min_sizes=(20,), max_size=200, flip=True)
    assert not wrapped([{"image": picture()}])[0]["sem_seg"].requires_grad


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="MIN_SIZES"):
        MultiScaleSegmentor(Segmentor(), min_sizes=(), max_size=200, flip=True)
    for sizes in ("()", "(0, 100)"):
        cfg = load_config(POINTREND, ["TEST.AUG.MIN_SIZES", sizes])
        check_test_time_augmentation(cfg)
        cfg.TEST.AUG.ENABLED = True
        with pytest.raises(ValueError, match=r"TEST\.AUG\.MIN_SIZES"):
            check_test_time_augmentation(cfg)
    cfg = load_config(POINTREND, ["TEST.AUG.ENABLED", "True"])
    check_test_time_augmentation(cfg)
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    with pytest.raises(ValueError, match=r"no test-time augmentation for.*PanopticFPN"):
        check_test_time_augmentation(cfg)


def test_the_settings_of_the_config_reach_the_semantic_model() -> None:
    more = ["TEST.AUG.MIN_SIZES", "(30, 50)", "TEST.AUG.MAX_SIZE", "77", "TEST.AUG.FLIP", "False"]
    cfg = load_config(POINTREND, ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", *more])
    wrapped = build_test_time_augmentation(cfg, Segmentor())
    assert isinstance(wrapped, MultiScaleSegmentor)
    assert (wrapped.min_sizes, wrapped.max_size, wrapped.flip) == ((30, 50), 77, False)


@pytest.mark.parametrize("config", [POINTREND, BASELINE], ids=["pointrend", "baseline"])
def test_instance_models_take_detectron2s_augmentation(config: str) -> None:
    torch.manual_seed(0)
    cfg = load_config(config, [*TINY_MODEL, "TEST.AUG.MIN_SIZES", "(48, 64)"])
    model = build_model(cfg).eval()
    wrapped = build_test_time_augmentation(cfg, model)
    assert isinstance(wrapped, GeneralizedRCNNWithTTA)
    with torch.no_grad():
        image = {"image": picture(64, 96), "height": 128, "width": 192}
        (result,) = wrapped([image])
        (later,) = build_test_time_augmentation(cfg, model, paste_masks=False)([image])
    masks = result["instances"].pred_masks
    assert len(masks) > 0
    assert masks.shape[1:] == (128, 192)
    assert masks.dtype == torch.bool
    assert isinstance(later["instances"].pred_masks, BoxMasks)
    assert torch.equal(later["instances"].pred_masks.tensor(), masks)
    assert torch.equal(later["instances"].scores, result["instances"].scores)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_applies_inside_the_model_only(dtype):
    model = Segmentor()
    image = {"image": picture(), "height": 40, "width": 70}
    (exact,) = model([image])
    (result,) = AutocastModel(model, dtype)([image])
    assert result["sem_seg"].dtype == dtype  # the output of the convolution
    assert not torch.equal(result["sem_seg"].float(), exact["sem_seg"])
    error = (result["sem_seg"].float() - exact["sem_seg"]).abs().max()
    assert error < 0.02 * exact["sem_seg"].abs().max()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.equal(model([image])[0]["sem_seg"], exact["sem_seg"])
