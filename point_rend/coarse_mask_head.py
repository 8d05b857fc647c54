"""The coarse head: a few layers over a small grid of features, one vector or small mask per box.

Shapes: N boxes, C channels of the output, D channels of the input.
"""

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
        self.reduce_channel_dim_conv = (
            Conv2d(channels, conv_dim, kernel_size=1, activation=F.relu)
            if channels > conv_dim
            else nn.Identity()
        )
        reduced = conv_dim if channels > conv_dim else channels
        self.reduce_spatial_dim_conv = Conv2d(
            reduced, conv_dim, kernel_size=2, stride=2, activation=F.relu
        )
        for conv in (self.reduce_channel_dim_conv, self.reduce_spatial_dim_conv):
            if isinstance(conv, Conv2d):
                weight_init.c2_msra_fill(conv)

        width_in = conv_dim * (height // 2) * (width // 2)
        self.num_fc = len(fc_dims)
        for number, width_out in enumerate(fc_dims, start=1):
            layer = nn.Linear(width_in, width_out)
            weight_init.c2_xavier_fill(layer)
            self.add_module(f"fc{number}", layer)
            width_in = width_out

        self.prediction = nn.Linear(width_in, math.prod(self.output_shape))
        nn.init.normal_(self.prediction.weight, std=0.001)
        nn.init.zeros_(self.prediction.bias)

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
