"""The coarse head, against the same layers written out one after the other."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec

from point_rend.coarse_mask_head import CoarseMaskHead
from tests.synthetic import randomize


def coarse_head(channels: int = 6, side: int = 4, **changes) -> CoarseMaskHead:
    arguments = {"conv_dim": 5, "fc_dims": [8, 7], "output_shape": (3, 2, 2)} | changes
    head = CoarseMaskHead(
        input_shape=ShapeSpec(channels=channels, height=side, width=side), **arguments
    )
    randomize(head)
    return head


@pytest.mark.parametrize("channels", [6, 5, 2])
def test_output_is_that_of_the_layers_in_order(channels):
    head = coarse_head(channels).double()
    state = head.state_dict()
    x = torch.randn(2, channels, 4, 4, dtype=torch.float64)
    expected = x
    if channels > 5:  # reduced by a 1×1 convolution only where there are more than conv_dim
        weight = state["reduce_channel_dim_conv.weight"][:, :, 0, 0]
        expected = torch.einsum("oc,nchw->nohw", weight, expected)
        expected = F.relu(expected + state["reduce_channel_dim_conv.bias"][:, None, None])
    blocks = expected.unfold(2, 2, 2).unfold(3, 2, 2)  # (N, C, 2, 2, 2, 2): disjoint 2×2 blocks
    expected = torch.einsum("ocyx,nchwyx->nohw", state["reduce_spatial_dim_conv.weight"], blocks)
    expected = F.relu(expected + state["reduce_spatial_dim_conv.bias"][:, None, None]).flatten(1)
    for name in ("fc1", "fc2"):
        expected = F.relu(expected @ state[f"{name}.weight"].T + state[f"{name}.bias"])
    expected = expected @ state["prediction.weight"].T + state["prediction.bias"]
    output = head(x)
    assert output.dtype == torch.float64
    assert output.shape == (2, 3, 2, 2)
    torch.testing.assert_close(output, expected.reshape(2, 3, 2, 2))


@pytest.mark.parametrize(
    ("channels", "convolutions"),
    [(6, ["reduce_channel_dim_conv", "reduce_spatial_dim_conv"]), (5, ["reduce_spatial_dim_conv"])],
)
def test_the_names_of_the_weights_are_those_of_published_checkpoints(channels, convolutions):
    names = [*convolutions, "fc1", "fc2", "prediction"]
    expected = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    assert coarse_head(channels).state_dict().keys() == expected


def test_the_output_may_be_any_vector():
    assert coarse_head(output_shape=(11,))(torch.zeros(2, 6, 4, 4)).shape == (2, 11)


def test_no_boxes_are_a_size_and_give_zero_gradients():
    head = coarse_head()
    output = head(torch.zeros(0, 6, 4, 4))
    assert output.dtype == torch.float32
    assert output.shape == (0, 3, 2, 2)
    output.sum().backward()
    assert all((p.grad == 0).all() for p in head.parameters())


def test_a_fresh_head_is_undecided():
    torch.manual_seed(0)
    head = CoarseMaskHead(
        input_shape=ShapeSpec(channels=16, height=14, width=14),
        conv_dim=16,
        fc_dims=[32],
        output_shape=(5, 7, 7),
    )
    logits = head(torch.randn(4, 16, 14, 14))
    assert logits.shape == (4, 5, 7, 7)
    assert 0 < logits.abs().max() < 0.1
    assert (head.prediction.bias == 0).all()


def test_weights_under_the_oldest_names_load():
    head = coarse_head()
    state = {name.replace("fc", "coarse_mask_fc"): v for name, v in head.state_dict().items()}
    assert "coarse_mask_fc1.weight" in state
    other = coarse_head()
    randomize(other, seed=9)
    other.load_state_dict(state, strict=True)
    for name, value in head.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_odd_sides_are_refused_with_the_key():
    with pytest.raises(ValueError, match=r"POOLER_RESOLUTION.*5x5"):
        coarse_head(side=5)


def test_no_fully_connected_layer_is_refused_with_the_key():
    with pytest.raises(ValueError, match=r"MODEL\.ROI_MASK_HEAD\.NUM_FC"):
        coarse_head(fc_dims=[])
