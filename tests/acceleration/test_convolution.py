"""Batch norm folded into convolutions: the values of both layers, and weights left alone."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from torch import Tensor, nn

from point_rend.acceleration.convolution import FastConv2d
from point_rend.acceleration.prepare import prepare_for_inference

TOLERANCE = 2e-6  # of values of magnitude 1


def norm_of(kind: type, channels: int) -> nn.Module:
    """Return a layer with random statistics and weights, in evaluation mode."""
    norm = kind(channels).eval()
    with torch.no_grad():
        for value in (norm.running_mean, norm.bias):
            value.normal_()
        for value in (norm.running_var, norm.weight):
            value.uniform_(0.5, 2)
    return norm


def layer_of(norm: nn.Module | None, **options: object) -> Conv2d:
    options = {"kernel_size": 3, "padding": 1, "bias": False} | options
    return Conv2d(8, 12, norm=norm, **options).eval()


def expected(conv: Conv2d, x: Tensor) -> Tensor:
    """Return convolution, normalization and activation in double precision, one by one."""
    bias = None if conv.bias is None else conv.bias.double()
    options = conv.stride, conv.padding, conv.dilation, conv.groups
    y = F.conv2d(x.double(), conv.weight.double(), bias, *options)
    if (norm := conv.norm) is not None:
        mean, variance, weight, bias = (
            value.double()[:, None, None]
            for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        y = (y - mean) / (variance + norm.eps).sqrt() * weight + bias
    return y if conv.activation is None else conv.activation(y)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "kind", [FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm, NaiveSyncBatchNorm]
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "bias": True, "activation": F.relu},
        {"groups": 4, "dilation": 2, "padding": 2},
        {"kernel_size": 1, "padding": 0},
    ],
)
def test_a_prepared_convolution_gives_the_values_of_convolution_and_norm(kind, options):
    conv = layer_of(norm_of(kind, 12), **options)
    x = torch.randn(2, 8, 9, 11)
    with torch.no_grad():
        reference = expected(conv, x)
        prepare_for_inference(conv)
        assert type(conv) is FastConv2d
        y = conv(x)
    assert y.dtype == torch.float32
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.double(), reference, rtol=1e-5, atol=TOLERANCE)


def test_norms_that_depend_on_the_input_are_applied_behind_the_convolution():
    for norm in (nn.GroupNorm(3, 12), nn.BatchNorm2d(12, track_running_stats=False)):
        conv = layer_of(norm)
        x = torch.randn(2, 8, 9, 11)
        with torch.no_grad():
            reference = conv(x)
            torch.testing.assert_close(prepare_for_inference(conv)(x), reference)


def test_changed_weights_and_statistics_take_effect():
    conv = prepare_for_inference(layer_of(norm_of(nn.BatchNorm2d, 12)))
    x = torch.randn(1, 8, 9, 11)

    def check() -> Tensor:
        with torch.no_grad():
            y = conv(x)
        torch.testing.assert_close(y.double(), expected(conv, x), rtol=1e-5, atol=TOLERANCE)
        return y

    results = [check()]
    with torch.no_grad():
        conv.weight.mul_(2)
        results.append(check())
        conv.norm.running_var.fill_(3)
        results.append(check())
    conv.norm.bias = nn.Parameter(torch.randn(12))
    results.append(check())
    conv.weight.data = torch.randn_like(conv.weight)
    results.append(check())
    conv.load_state_dict(layer_of(norm_of(nn.BatchNorm2d, 12)).state_dict())
    results.append(check())
    conv.norm.eps = 0.5
    results.append(check())
    # What follows changes no counter of versions.
    conv.weight.data.mul_(3)
    results.append(check())
    conv.norm.bias.detach().numpy()[3] += 1
    results.append(check())
    conv.train()(torch.randn(4, 8, 9, 11) * 5)  # collects statistics
    conv.eval()
    results.append(check())
    conv(x).square().sum().backward()
    torch.optim.AdamW(conv.parameters(), 0.5, fused=True).step()
    results.append(check())
    assert not any(torch.equal(a, b) for a, b in pairwise(results))


def test_training_and_gradients_take_the_original_way_bit_for_bit():
    conv = layer_of(norm_of(nn.BatchNorm2d, 12)).train()
    original = copy.deepcopy(conv)
    prepare_for_inference(conv)
    x = torch.randn(2, 8, 9, 11)
    with torch.no_grad():
        conv.eval()(x)  # keeps a folded kernel
    for module in (conv, original):
        module.train()(x).square().sum().backward()
    assert torch.equal(conv.weight.grad, original.weight.grad)
    assert torch.equal(conv.norm.running_mean, original.norm.running_mean)
    assert torch.equal(conv.eval()(x), original.eval()(x))  # with gradients


def test_state_dict_and_copies_are_those_of_the_original():
    conv = layer_of(norm_of(FrozenBatchNorm2d, 12))
    before = copy.deepcopy(conv.state_dict())
    prepare_for_inference(conv)
    x = torch.randn(1, 8, 9, 11)
    with torch.no_grad():
        y = conv(x)
        assert list(conv.state_dict()) == list(before)
        assert all(torch.equal(value, before[name]) for name, value in conv.state_dict().items())
        twin = copy.deepcopy(conv)
        assert torch.equal(twin(x), y)
        twin.weight.zero_()
        assert torch.equal(conv(x), y)
        torch.testing.assert_close(twin(x).double(), expected(twin, x))


def test_files_and_copies_hold_nothing_that_follows_from_the_weights():
    conv = prepare_for_inference(layer_of(norm_of(FrozenBatchNorm2d, 12)))
    size = len(pickle.dumps(conv))
    with torch.no_grad():
        y = conv(torch.ones(1, 8, 9, 11))
        assert len(pickle.dumps(conv)) == size
        assert torch.equal(pickle.loads(pickle.dumps(conv))(torch.ones(1, 8, 9, 11)), y)


def test_a_norm_with_hooks_is_called():
    conv = layer_of(norm_of(FrozenBatchNorm2d, 12))
    x = torch.randn(1, 8, 9, 11)
    hook = conv.norm.register_forward_hook(lambda *call: 2 * call[-1])
    with torch.no_grad():
        reference = conv(x)
        prepare_for_inference(conv)
        torch.testing.assert_close(conv(x), reference, rtol=1e-5, atol=TOLERANCE)
        hook.remove()
        torch.testing.assert_close(conv(x), reference / 2, rtol=1e-5, atol=TOLERANCE)


def test_an_image_without_a_batch_is_convolved_as_before():
    conv = layer_of(None)
    x = torch.randn(8, 9, 11)
    with torch.no_grad():
        reference = conv(x)
        assert torch.equal(prepare_for_inference(conv)(x), reference)


def test_mixed_precision_takes_the_original_way():
    conv = layer_of(norm_of(FrozenBatchNorm2d, 12))
    x = torch.randn(1, 8, 9, 11)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        reference = conv(x)
        y = prepare_for_inference(conv)(x)
    assert y.dtype == reference.dtype
    assert torch.equal(y, reference)


def test_weights_made_in_inference_mode_serve_outside_of_it():
    with torch.inference_mode():
        conv = prepare_for_inference(layer_of(norm_of(FrozenBatchNorm2d, 12)))
        x = torch.randn(1, 8, 9, 11)
        inside = conv(x)
    with torch.no_grad():
        assert torch.equal(conv(x), inside)
