"""The per-instance MLP, against ordinary layers and loops."""

import math

import pytest
import torch
from torch import nn

from point_rend.rendering.dynamic_mlp import MLPLayout, apply_mlp, fourier_features

DEPTHS = [1, 2, 4]


def parameters_of(module: nn.Sequential) -> torch.Tensor:
    """All weights, first to last, then all biases, as the layout has them."""
    layers = [layer for layer in module if isinstance(layer, nn.Linear)]
    weights = [layer.weight.flatten() for layer in layers]
    return torch.cat(weights + [layer.bias for layer in layers])


def ordinary_mlp(layout: MLPLayout) -> nn.Sequential:
    modules = []
    for outputs, inputs in layout.layer_shapes:
        modules += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


@pytest.mark.parametrize("num_hidden", DEPTHS)
def test_each_instance_runs_its_own_mlp(num_hidden):
    torch.manual_seed(0)
    layout = MLPLayout(in_channels=5, hidden_channels=4, out_channels=3, num_hidden=num_hidden)
    mlps = [ordinary_mlp(layout) for _ in range(3)]
    parameters = torch.stack([parameters_of(mlp) for mlp in mlps])
    assert parameters.shape == (3, layout.num_parameters)
    inputs = torch.randn(3, 7, 5)
    outputs = apply_mlp(inputs, *layout.split(parameters))
    assert outputs.dtype == torch.float32
    assert outputs.shape == (3, 7, 3)
    for mlp, points, output in zip(mlps, inputs, outputs, strict=True):
        torch.testing.assert_close(output, mlp(points), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_hidden", DEPTHS)
def test_number_of_parameters_is_that_of_ordinary_layers(num_hidden):
    layout = MLPLayout(in_channels=6, hidden_channels=5, out_channels=2, num_hidden=num_hidden)
    assert layout.num_parameters == sum(p.numel() for p in ordinary_mlp(layout).parameters())


def test_every_parameter_stands_in_exactly_one_layer():
    layout = MLPLayout(in_channels=3, hidden_channels=2, out_channels=4, num_hidden=2)
    numbers = torch.arange(layout.num_parameters)[None]
    weights, biases = layout.split(numbers)
    assert [tuple(w.shape) for w in weights] == [(1, 2, 3), (1, 2, 2), (1, 4, 2)]
    assert [tuple(b.shape) for b in biases] == [(1, 2), (1, 2), (1, 4)]
    seen = torch.cat([x.flatten() for x in (*weights, *biases)])
    assert torch.equal(seen, numbers[0])


def test_no_instances_have_no_outputs():
    layout = MLPLayout(in_channels=3, hidden_channels=2, out_channels=4, num_hidden=1)
    split = layout.split(torch.zeros(0, layout.num_parameters))
    assert apply_mlp(torch.zeros(0, 9, 3), *split).shape == (0, 9, 4)


@pytest.mark.parametrize("shape", [(2, 10), (24,)])
def test_parameters_of_another_shape_are_refused(shape):
    layout = MLPLayout(in_channels=3, hidden_channels=2, out_channels=4, num_hidden=1)
    with pytest.raises(ValueError, match=r"\(N, 20\).*got"):
        layout.split(torch.zeros(shape))


@pytest.mark.parametrize("field", ["in_channels", "hidden_channels", "out_channels", "num_hidden"])
def test_widths_below_one_are_refused_by_name(field):
    widths = dict.fromkeys(["in_channels", "hidden_channels", "out_channels", "num_hidden"], 2)
    with pytest.raises(ValueError, match=f"{field}.*at least 1.*0"):
        MLPLayout(**widths | {field: 0})


def test_gradients_of_the_mlp_are_those_of_finite_differences():
    torch.manual_seed(0)
    layout = MLPLayout(in_channels=2, hidden_channels=3, out_channels=2, num_hidden=2)
    inputs = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    parameters = torch.randn(2, layout.num_parameters, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, p: apply_mlp(x, *layout.split(p)), (inputs, parameters)
    )


def test_fourier_features_equal_a_slow_loop():
    torch.manual_seed(0)
    coords, frequencies = torch.rand(2, 3, 2), torch.randn(2, 4)
    features = fourier_features(coords, frequencies)
    assert features.dtype == torch.float32
    assert features.shape == (2, 3, 8)
    for region in range(2):
        for point in range(3):
            x, y = coords[region, point].tolist()
            for f in range(4):
                turns = (2 * x - 1) * frequencies[0, f].item()
                turns += (2 * y - 1) * frequencies[1, f].item()
                phase = 2 * math.pi * turns
                sine, cosine = features[region, point, [f, 4 + f]].tolist()
                assert sine == pytest.approx(math.sin(phase), abs=1e-5)
                assert cosine == pytest.approx(math.cos(phase), abs=1e-5)


def test_fourier_features_stay_exact_under_mixed_precision():
    torch.manual_seed(0)
    coords, frequencies = torch.rand(2, 50, 2), torch.randn(2, 128)
    exact = fourier_features(coords, frequencies)
    with torch.autocast("cpu", torch.bfloat16):
        features = fourier_features(coords, frequencies)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, exact)
