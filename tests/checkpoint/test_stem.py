"""Weights of the first convolution for images with another number of channels."""

import logging
import pickle
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torch.nn.functional import conv2d

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.checkpoint.complete_model import CompleteModelCheckpointer
from point_rend.checkpoint.stem import spread_channels
from tests.synthetic_semantic import tiny_model_config

KEY = "backbone.bottom_up.stem.conv1.weight"


class Net(nn.Module):
    """A first convolution under the name that ResNets give it, and another layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Module()
        self.stem.conv1 = nn.Conv2d(channels, 4, 3, bias=False)
        self.res2 = nn.Conv2d(4, 4, 1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 13])
def test_equal_channels_give_what_equal_colors_gave(channels: int) -> None:
    torch.manual_seed(0)
    colors = torch.rand(5, 1, 7, 7).double().expand(5, 3, 7, 7)  # the same kernel for each color
    weight = torch.rand(5, 3, 7, 7, dtype=torch.float64)
    weight = colors if channels in (2, 4, 13) else weight
    gray = torch.rand(1, 1, 16, 16).double()
    expected = conv2d(gray.expand(-1, 3, -1, -1), weight)
    spread = spread_channels(weight, channels)
    assert spread.shape == (5, channels, 7, 7)
    found = conv2d(gray.expand(-1, channels, -1, -1), spread)
    torch.testing.assert_close(found, expected)


def test_several_channels_repeat_the_colors_in_turn() -> None:
    weight = torch.rand(2, 3, 5, 5)
    spread = spread_channels(weight, 5)
    for channel in range(5):
        torch.testing.assert_close(spread[:, channel], weight[:, channel % 3] * 3 / 5)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_training_starts_from_colors_with_a_message(channels, tmp_path, caplog) -> None:
    colors, model = Net(3), Net(channels)
    torch.save({"model": colors.state_dict()}, tmp_path / "colors.pth")
    with caplog.at_level(logging.INFO):
        SafeDetectionCheckpointer(model, strict_shapes=False).load(str(tmp_path / "colors.pth"))
    expected = spread_channels(colors.stem.conv1.weight, channels)
    torch.testing.assert_close(model.stem.conv1.weight, expected)
    torch.testing.assert_close(model.res2.weight, colors.res2.weight)
    lines = [x for x in caplog.messages if "stem.conv1.weight has weights for 3 channels" in x]
    assert len(lines) == 1
    how = "summed" if channels == 1 else "repeated, times 3/4"
    assert lines[0].endswith(f"the model for {channels}: they are {how}")


def test_weights_of_the_zoo_are_spread_after_their_names_are_matched(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = torch.rand(4, 3, 3, 3)
    state = {"stem.conv1.weight": weight, "res2.weight": torch.rand(4, 4, 1, 1)}
    file = {"model": {key: value.numpy() for key, value in state.items()}, "__author__": "test"}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(file | {"matching_heuristics": True}))
    model = nn.Module()
    model.backbone = Net(2)
    SafeDetectionCheckpointer(model, strict_shapes=False).load(str(tmp_path / "zoo.pkl"))
    torch.testing.assert_close(model.backbone.stem.conv1.weight, spread_channels(weight, 2))


@pytest.mark.parametrize("channels", [1, 4])
def test_a_finished_model_refuses_weights_for_other_channels(channels, tmp_path) -> None:
    torch.save({"model": Net(3).state_dict()}, tmp_path / "colors.pth")
    model = Net(channels)
    before = model.stem.conv1.weight.detach().clone()
    for checkpointer in (CompleteModelCheckpointer(model), SafeDetectionCheckpointer(model)):
        with pytest.raises(ValueError, match=r"stem\.conv1\.weight: \(4, 3, 3, 3\) in the file"):
            checkpointer.load(str(tmp_path / "colors.pth"))
    torch.testing.assert_close(model.stem.conv1.weight, before)


def test_the_message_names_the_keys_of_the_channels(tmp_path: Path) -> None:
    torch.save({"model": Net(3).state_dict()}, tmp_path / "colors.pth")
    with pytest.raises(ValueError, match=r"look at INPUT\.FORMAT, INPUT\.CHANNELS"):
        CompleteModelCheckpointer(Net(4)).load(str(tmp_path / "colors.pth"))


def test_other_differences_of_the_first_convolution_stay_an_error(tmp_path: Path) -> None:
    wide = Net(3)
    wide.stem.conv1 = nn.Conv2d(3, 8, 3, bias=False)
    torch.save({"model": wide.state_dict()}, tmp_path / "wide.pth")
    with pytest.raises(ValueError, match="these shapes do not fit"):
        SafeDetectionCheckpointer(Net(4), strict_shapes=False).load(str(tmp_path / "wide.pth"))


def test_the_backbone_of_a_model_has_the_channels_of_the_mean(tmp_path: Path) -> None:
    cfg = tiny_model_config("SemanticSegmentor")
    colors = build_model(cfg)
    cfg.merge_from_list(
        ["INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", "[9]", "MODEL.PIXEL_STD", "[1e6]"]
    )
    gray = build_model(cfg)
    torch.save({"model": colors.state_dict()}, tmp_path / "colors.pth")
    SafeDetectionCheckpointer(gray, strict_shapes=False).load(str(tmp_path / "colors.pth"))
    weight = colors.state_dict()[KEY]
    torch.testing.assert_close(gray.state_dict()[KEY], weight.sum(1, keepdim=True))
