"""Convolutions by tiles: the values of a direct convolution, at any size."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor

from point_rend.acceleration import winograd
from point_rend.acceleration.convolution import is_for_winograd
from point_rend.acceleration.prepare import prepare_for_inference


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 3), (2, 19), (23, 8), (33, 42)])
@pytest.mark.parametrize("tiles_at_a_time", [1, 7, 320])
def test_values_are_those_of_the_convolution_at_any_size(
    size: tuple[int, int], tiles_at_a_time: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(winograd, "TILES_AT_A_TIME", tiles_at_a_time)
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(7, 5, 3, 3), torch.randn(7)
    kernel = winograd.winograd_kernel(weight)
    for offset in (None, bias):
        y = winograd.convolve(x, kernel, offset)
        assert y.dtype == torch.float32
        assert y.shape == (2, 7, *size)
        assert y.is_contiguous(memory_format=torch.channels_last)
        expected = exact(x, weight, offset)
        torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-5 * 7)


def test_in_double_precision_the_values_are_exact():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 3, 9, 14).double(), torch.randn(4, 3, 3, 3).double()
    y = winograd.convolve(x, winograd.winograd_kernel(weight), None)
    torch.testing.assert_close(y, exact(x, weight, None), rtol=1e-12, atol=1e-12)


def test_rounding_errors_stay_within_those_of_single_precision():
    """A hundred-thousandth of the largest value, for activations as they are behind a ReLU."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 256, 32, 40).relu(), torch.randn(128, 256, 3, 3) / 34
    y = winograd.convolve(x, winograd.winograd_kernel(weight), None)
    expected = exact(x, weight, None)
    error = (y - expected).abs()
    assert error.amax() < 5e-6 * expected.abs().amax()
    assert error.square().mean().sqrt() < 3e-6 * expected.std()


def test_values_that_are_not_finite_stay_in_their_neighborhood():
    x = torch.zeros(1, 2, 16, 16)
    x[0, 1, 8, 8] = float("inf")
    y = winograd.convolve(x, winograd.winograd_kernel(torch.ones(3, 2, 3, 3)), None)
    assert not y[0, :, 7:10, 7:10].isfinite().any()
    assert y[0, :, :4].eq(0).all()
    assert y[0, :, :, 12:].eq(0).all()


@pytest.mark.parametrize(
    ("options", "size", "takes_tiles"),
    [
        ({}, (24, 24), True),
        ({}, (20, 20), False),  # few positions
        ({"stride": 2}, (64, 64), False),
        ({"dilation": 2, "padding": 2}, (64, 64), False),
        ({"padding": 0}, (64, 64), False),
        ({"groups": 2}, (64, 64), False),
        ({"kernel_size": 1, "padding": 0}, (64, 64), False),
    ],
)
def test_a_prepared_convolution_takes_tiles_where_they_fit(options, size, takes_tiles: bool):
    torch.manual_seed(0)
    options = {"kernel_size": 3, "padding": 1, "bias": False} | options
    norm = FrozenBatchNorm2d(128).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    conv = Conv2d(128, 128, norm=norm, activation=F.relu, **options).eval()
    x = torch.randn(1, 128, *size)
    assert is_for_winograd(conv, x) == takes_tiles
    with torch.no_grad():
        expected = conv(x)
        y = prepare_for_inference(conv)(x)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
        conv.weight.mul_(-1)
        assert not torch.allclose(conv(x), expected)
