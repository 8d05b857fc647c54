"""The coarse head: a few layers over a small grid of features, one vector or small mask per box.

Shapes: N boxes, C channels of the output, D channels of the input.
"""

import itertools
import math

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from torch import Tensor, nn

from point_rend.checkpoint.legacy_keys import upgrade_state_dict


class CoarseMaskHead(nn.Module):
    """Predict a coarse mask per class, or any other vector, from each box's grid of features.

    A 1×1 convolution if the input has more channels than ``conv_dim``, a 2×2 convolution with
    stride 2, fully connected ReLU layers, and a linear prediction.

    Args:
        input_shape: channels, height and width of the grid; height and width even.
        conv_dim: channels of the convolutions.
        fc_dims: widths of the fully connected layers.
        output_shape: shape of the prediction for one box, e.g. (C, 7, 7).

    Raises:
        ValueError: if a side of the grid is odd or 0, or there is no fully connected layer.

    Source: section 4.1 of the paper, "Lightweight coarse mask prediction head".
    """

    _version = 2

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        conv_dim: int,
        fc_dims: list[int],
        output_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        height, width, channels = input_shape.height, input_shape.width, input_shape.channels
        if height % 2 or width % 2 or not height * width:
            raise ValueError(
                "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION: the coarse head halves its input and needs "
                f"an even side of at least 2, got {height}x{width}"
            )
        if not fc_dims:
            raise ValueError("MODEL.ROI_MASK_HEAD.NUM_FC: the coarse head needs at least 1 layer")
        self.output_shape = tuple(output_shape)
        # All layers are built before any is initialized: the order of the stock project's random
        # draws.
        convs: list[Conv2d] = []
        self.reduce_channel_dim_conv: nn.Module = nn.Identity()
        if channels > conv_dim:
            convs.append(Conv2d(channels, conv_dim, kernel_size=1, activation=F.relu))
            self.reduce_channel_dim_conv = convs[0]
            channels = conv_dim
        self.reduce_spatial_dim_conv = Conv2d(
            channels, conv_dim, kernel_size=2, stride=2, activation=F.relu
        )
        convs.append(self.reduce_spatial_dim_conv)
        widths = [conv_dim * (height // 2) * (width // 2), *fc_dims]
        layers = [nn.Linear(*sides) for sides in itertools.pairwise(widths)]
        self.num_fc = len(layers)
        for number, layer in enumerate(layers, start=1):
            self.add_module(f"fc{number}", layer)
        self.prediction = nn.Linear(widths[-1], math.prod(self.output_shape))

        nn.init.normal_(self.prediction.weight, std=0.001)
        nn.init.zeros_(self.prediction.bias)
        for conv in convs:
            weight_init.c2_msra_fill(conv)
        for layer in layers:
            weight_init.c2_xavier_fill(layer)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Read the arguments from a config: the prediction is a coarse mask per class."""
        head = cfg.MODEL.ROI_MASK_HEAD
        side = head.OUTPUT_SIDE_RESOLUTION
        return {
            "input_shape": input_shape,
            "conv_dim": head.CONV_DIM,
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "output_shape": (
                1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
                side,
                side,
            ),
        }

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, D, height, width) features to (N, *output_shape)."""
        x = self.reduce_spatial_dim_conv(self.reduce_channel_dim_conv(x))
        x = torch.flatten(x, start_dim=1)
        for number in range(1, self.num_fc + 1):
            x = F.relu(self.get_submodule(f"fc{number}")(x))
        return self.prediction(x).unflatten(1, self.output_shape)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        upgrade_state_dict(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
