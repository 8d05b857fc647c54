"""Models of timm as backbones: their maps, frozen parts, normalization, weights, refusals."""

import contextlib
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from torch import nn

from point_rend import SafeDetectionCheckpointer, load_config
from point_rend.backbones.timm_backbone import TimmBackbone
from point_rend.config.checks import check_config
from point_rend.config.trial import check_model
from tests.http_server import Server, send
from tests.tiny_datasets import POINTREND, TINY_MODEL

LEVELS = ["res2", "res3", "res4", "res5"]
STRIDES = [4, 8, 16, 32]
# Two narrow convolutional families, one without batch normalization, one of channels last.
SMALLEST = ["resnet10t", "mobilenetv3_small_050", "convnext_atto"]
TIMM_MODEL = [
    *(*TINY_MODEL, "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"),
    *("MODEL.TIMM.NAME", "mobilenetv3_small_050", "MODEL.ROI_HEADS.NUM_CLASSES", "3"),
]


def timm_config(*opts: str) -> CfgNode:
    return load_config(POINTREND, [*TIMM_MODEL, *opts])


def images(count: int = 1, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, channels, 64, 96, generator=generator)


def refusal(*opts: str) -> str:
    """Return the reason for which a config is refused before its model is built."""

    def check() -> None:
        cfg = timm_config(*opts)
        check_config(cfg, training=True)
        check_model(cfg, training=True)

    with pytest.raises(ValueError, match=r"^.") as caught:
        check()
    return str(caught.value)


# Maps


@pytest.mark.parametrize("name", [*SMALLEST, "regnetx_002", "efficientnet_lite0"])
def test_the_maps_are_those_of_timm_by_their_strides(name: str) -> None:
    backbone = TimmBackbone(name, LEVELS).eval()
    expected = timm.create_model(name, features_only=True).eval()  # the class that timm chooses
    for own, other in zip(
        backbone.state_dict().values(), expected.state_dict().values(), strict=False
    ):
        assert own.shape == other.shape
        other.copy_(own)
    with torch.no_grad():
        found, maps = backbone(images()), expected(images())
    by_stride = dict(zip(expected.feature_info.reduction(), maps, strict=True))
    assert list(found) == LEVELS
    for level, stride in zip(LEVELS, STRIDES, strict=True):
        assert found[level].shape[2:] == (64 // stride, 96 // stride)
        torch.testing.assert_close(found[level], by_stride[stride])
    shapes = backbone.output_shape()
    assert [shapes[level].stride for level in LEVELS] == STRIDES
    assert [shapes[level].channels for level in LEVELS] == [x.shape[1] for x in found.values()]


def test_channels_last_and_windows_of_one_size_become_maps_of_any_size() -> None:
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", LEVELS[:2]).eval()
    stages = []
    for layer in backbone.timm.layers[:2]:
        layer.register_forward_hook(lambda *hooked: stages.append(hooked[2]))
    with torch.no_grad():
        found = backbone(images())
    assert found["res2"].shape == (1, 96, 16, 24)
    assert found["res3"].shape == (1, 192, 8, 12)
    for level, stage in zip(found.values(), stages, strict=True):
        assert torch.equal(level, stage.permute(0, 3, 1, 2))


def test_parts_behind_the_last_map_are_left_out_and_all_others_learn() -> None:
    backbone = TimmBackbone("resnet10t", ["res2", "res3"])
    sum(x.square().sum() for x in backbone(images(2)).values()).backward()
    assert not any("layer3" in name for name, _ in backbone.named_parameters())
    assert all(x.grad is not None for x in backbone.parameters())


@pytest.mark.parametrize("channels", [1, 5])
def test_images_may_have_any_number_of_channels(channels: int) -> None:
    backbone = TimmBackbone("resnet10t", ["res2"], in_channels=channels)
    assert backbone(images(1, channels))["res2"].shape == (1, 64, 16, 24)


def test_the_pyramid_has_levels_p2_to_p6_and_no_more_than_its_maps_need() -> None:
    cfg = timm_config("MODEL.FPN.IN_FEATURES", "('res2', 'res3')")
    with torch.no_grad():
        found = build_backbone(cfg)(images())
    assert {name: 64 // level.shape[2] for name, level in found.items()} == {
        "p2": 4,
        "p3": 8,
        "p4": 16,
    }


# Freezing and normalization


@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.parametrize("freeze_at", [2, 4])
def test_what_a_frozen_level_depends_on_is_frozen_and_nothing_else(
    name: str, freeze_at: int
) -> None:
    free, frozen = TimmBackbone(name, LEVELS), TimmBackbone(name, LEVELS, freeze_at=freeze_at)
    free(images(2))[f"res{freeze_at}"].square().sum().backward()
    needed = {key for key, x in free.named_parameters() if x.grad is not None}
    trained = {key for key, x in frozen.named_parameters() if x.requires_grad}
    assert trained == {key for key, _ in free.named_parameters()} - needed


def test_level_one_is_what_precedes_the_first_map() -> None:
    backbone = TimmBackbone("resnet10t", LEVELS, freeze_at=1)
    constant = {key.split(".")[1] for key, x in backbone.named_parameters() if not x.requires_grad}
    assert constant == {"conv1"}
    assert all(x.requires_grad for x in backbone.timm.layer1.parameters())
    assert not isinstance(backbone.timm.bn1, nn.BatchNorm2d)


def test_constant_normalization_gives_in_training_what_it_gives_in_inference() -> None:
    for options in ({"norm": "FrozenBN"}, {"freeze_at": 5}):
        backbone = TimmBackbone("mobilenetv3_small_050", LEVELS, **options)
        before = {key: x.clone() for key, x in backbone.state_dict().items()}
        trained = backbone.train()(images(2))
        assert all(torch.equal(x, before[key]) for key, x in backbone.state_dict().items())
        for level, expected in backbone.eval()(images(2)).items():
            assert torch.equal(trained[level], expected)


def test_normalization_of_all_gpus_replaces_that_of_one() -> None:
    backbone = TimmBackbone("mobilenetv3_small_050", LEVELS, norm="SyncBN", freeze_at=1)
    kinds = {type(x) for x in backbone.modules() if isinstance(x, nn.modules.batchnorm._BatchNorm)}
    assert kinds
    assert all(issubclass(kind, nn.SyncBatchNorm) for kind in kinds)


def test_stochastic_depth_grows_from_zero() -> None:
    rates = [
        x.drop_prob
        for x in TimmBackbone("convnext_atto", LEVELS, drop_path_rate=0.4).modules()
        if isinstance(x, timm.layers.DropPath)
    ]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.4)


# Weights


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A classifier of timm with weights of its own."""
    torch.manual_seed(7)
    return timm.create_model("mobilenetv3_small_050", num_classes=4)


def assert_backbone_is(model: nn.Module, classifier: nn.Module) -> None:
    own = model.backbone.bottom_up.timm.state_dict()
    expected = classifier.state_dict()
    assert own.keys() <= expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in own.items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_timm_loads_as_it_is(suffix: str, trained: nn.Module, tmp_path: Path) -> None:
    path, state = str(tmp_path / f"model{suffix}"), trained.state_dict()
    safetensors.torch.save_file(state, path) if suffix != ".pth" else torch.save(state, path)
    model = build_model(timm_config())
    SafeDetectionCheckpointer(model, strict_shapes=False).load(path)
    assert_backbone_is(model, trained)


def test_a_name_of_timm_is_downloaded_from_the_hub_once(
    trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, body = Server(), safetensors.torch.save(trained.state_dict())
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    route = "/timm/mobilenetv3_small_050.lamb_in1k/resolve/main/model.safetensors"
    server.answers[route] = lambda handler: send(handler, body)
    with contextlib.closing(server):
        for name in ("mobilenetv3_small_050", "mobilenetv3_small_050.lamb_in1k"):
            model = build_model(timm_config())
            SafeDetectionCheckpointer(model).load(f"timm://{name}")
            assert_backbone_is(model, trained)
    assert server.asked == [route]


def test_colors_become_other_channels(trained: nn.Module, tmp_path: Path) -> None:
    path = str(tmp_path / "model.pth")
    torch.save(trained.state_dict(), path)
    model = build_model(
        timm_config("INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", "[1.0]", "MODEL.PIXEL_STD", "[1.0]")
    )
    SafeDetectionCheckpointer(model, strict_shapes=False).load(path)
    expected = trained.conv_stem.weight.sum(dim=1, keepdim=True)
    assert torch.equal(model.backbone.bottom_up.timm.conv_stem.weight, expected)


def test_a_whole_model_keeps_its_names(tmp_path: Path) -> None:
    first, second = build_model(timm_config()), build_model(timm_config())
    path = str(tmp_path / "model.pth")
    torch.save({"model": first.state_dict()}, path)
    SafeDetectionCheckpointer(second).load(path)
    assert all(torch.equal(x, second.state_dict()[key]) for key, x in first.state_dict().items())


# Refusals


@pytest.mark.parametrize(
    ("opts", "reason"),
    [
        (["NAME", ""], "MODEL.TIMM.NAME must be a model of timm, got ''"),
        (["NAME", "resnet81"], "got 'resnet81'; did you mean resnet18"),
        (["NAME", "hf-hub:user/model"], "MODEL.TIMM.NAME must be a model of timm, got 'hf-hub:"),
        (["NAME", "local-dir:/etc"], "MODEL.TIMM.NAME must be a model of timm"),
        (["NAME", "resnet18.best"], "timm has no such weights: expected resnet18.a1_in1k or"),
        (["NAME", "vit_tiny_patch16_224"], "has maps of the strides 16 (res4), but no res2, res3"),
        (["NAME", "hiera_tiny_224"], "takes images of one size only"),
        (["NAME", "mvitv2_tiny"], "timm does not name the parts of MultiScaleVit: expected 0"),
        (["NORM", "GN"], "MODEL.TIMM.NORM must be BN, FrozenBN or SyncBN, got 'GN'"),
        (["DROP_PATH_RATE", "2.0"], "MODEL.TIMM.DROP_PATH_RATE must be from 0 to below 1, got 2.0"),
    ],
    ids=lambda x: x[1] if isinstance(x, list) else "",
)
def test_a_model_that_is_no_backbone_is_refused_in_one_line(opts: list[str], reason: str) -> None:
    found = refusal(f"MODEL.TIMM.{opts[0]}", opts[1], "MODEL.BACKBONE.FREEZE_AT", "2")
    assert reason in found
    assert "\n" not in found


def test_levels_must_follow_each_other() -> None:
    found = refusal("MODEL.FPN.IN_FEATURES", "('res2', 'res4')")
    assert "must be successive levels of res2, res3, res4, res5, got" in found
    found = refusal("MODEL.ROI_HEADS.IN_FEATURES", "('p2', 'p7')")
    assert "which are p2, p3, p4, p5, p6, got" in found


def test_pixels_must_be_those_of_the_weights() -> None:
    weights = ["MODEL.WEIGHTS", "timm://mobilenetv3_small_050.lamb_in1k"]
    assert "set it to that" in refusal(*weights)
    rgb = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]"]
    found = refusal(*weights, *rgb)
    assert "was trained with [58.395, 57.12, 57.375] in the order RGB" in found
    check_config(
        timm_config(*weights, *rgb, "MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]"), training=True
    )
    bgr = ["MODEL.PIXEL_MEAN", "[103.53, 116.28, 123.675]"]
    check_config(
        timm_config(*weights, *bgr, "MODEL.PIXEL_STD", "[57.375, 57.12, 58.395]"), training=True
    )


@pytest.mark.parametrize("name", ["timm://", "timm://nothing", "timm://resnet18.best"])
def test_nothing_is_claimed_of_pixels_of_weights_that_timm_lacks(name: str) -> None:
    check_config(timm_config("MODEL.WEIGHTS", name), training=True)


def test_weights_that_timm_lacks_are_refused_with_those_that_it_has() -> None:
    model = build_model(timm_config())
    with pytest.raises(FileNotFoundError, match=r"expected timm://resnet18\.a1_in1k or timm://"):
        SafeDetectionCheckpointer(model).load("timm://resnet18.best")
    with pytest.raises(FileNotFoundError, match=r"timm has no weights of this name$"):
        SafeDetectionCheckpointer(model).load("timm://nothing")


def test_without_timm_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert refusal().startswith('timm is not installed; install it with: pip install "point_rend[')
    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="timm is not installed"):
        SafeDetectionCheckpointer(model).load("timm://resnet18")
