"""Detectron2's vision transformers, ViT, Swin and MViTv2, which it has for Python configs only."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.modeling import MViT, SimpleFeaturePyramid, SwinTransformer, ViT
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn
from torch.overrides import TorchFunctionMode

from point_rend.config.timm_models import import_timm

SCALES = (4.0, 2.0, 1.0, 0.5)  # of ViTDet's pyramid, relative to its maps of stride 16
WINDOW_CELLS = 14  # side of ViTDet's windows of attention
LAYER_NORM = partial(nn.LayerNorm, eps=1e-6)


def vitdet(
    *,
    image_size: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    global_blocks: Sequence[int],
    drop_path_rate: float,
    in_channels: int,
    out_channels: int,
    norm: str,
) -> SimpleFeaturePyramid:
    """Build ViTDet's backbone: a plain ViT and a pyramid p2 to p6 from its last map.

    Args:
        image_size: Side of the square to which every batch is padded, in pixels.
        embed_dim, depth, num_heads: Width, number of blocks, and heads of each.
        global_blocks: Indices of the blocks with attention over the whole image; those of the
            others is over windows.
        drop_path_rate: Rate of stochastic depth of the last block, 0 to 1.
        in_channels, out_channels: Channels of an image, and of the levels.
        norm: Normalization of the pyramid.

    Source: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", 2022.
    """
    with _buildable():
        net = ViT(
            img_size=image_size,
            in_chans=in_channels,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            drop_path_rate=drop_path_rate,
            norm_layer=LAYER_NORM,
            use_rel_pos=True,
            window_size=WINDOW_CELLS,
            window_block_indexes=[i for i in range(depth) if i not in global_blocks],
        )
        return SimpleFeaturePyramid(
            net,
            "last_feat",
            out_channels,
            SCALES,
            top_block=LastLevelMaxPool(),
            norm=norm,
            square_pad=image_size,
        )


def swin(
    *,
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_size: int,
    drop_path_rate: float,
    in_channels: int,
    freeze_at: int,
) -> SwinTransformer:
    """Build a Swin transformer with maps p0 to p3 of the strides 4 to 32.

    Args:
        embed_dim: Width of the first stage; each further one has twice the width.
        depths, num_heads: Blocks of each stage, and their heads.
        window_size: Side of the windows of attention, in cells.
        drop_path_rate: Rate of stochastic depth of the last block, 0 to 1.
        in_channels: Channels of an image.
        freeze_at: 1 freezes the patch embedding, 2 also the first stage, and so on; 0 nothing.

    Source: Liu et al., "Swin Transformer", 2021.
    """
    with _buildable():
        net = SwinTransformer(
            in_chans=in_channels,
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            drop_path_rate=drop_path_rate,
        )
    for part in [net.patch_embed, *net.layers][:freeze_at]:
        part.requires_grad_(False)
    return net


def mvit(
    *,
    embed_dim: int,
    last_blocks: Sequence[int],
    drop_path_rate: float,
    in_channels: int,
    freeze_at: int,
) -> MViT:
    """Build an MViTv2 with maps scale2 to scale5 of the strides 4 to 32.

    Args:
        embed_dim: Width of the first stage; each further one has twice the width.
        last_blocks: Index of the last block of each of the four stages.
        drop_path_rate: Rate of stochastic depth of the last block, 0 to 1.
        in_channels: Channels of an image.
        freeze_at: 1 freezes the patch embedding, 2 also the first stage, and so on; 0 nothing.

    Source: Li et al., "MViTv2: Improved Multiscale Vision Transformers", 2022.
    """
    with _buildable():
        net = MViT(
            in_chans=in_channels,
            embed_dim=embed_dim,
            depth=last_blocks[-1] + 1,
            last_block_indexes=tuple(last_blocks),
            drop_path_rate=drop_path_rate,
            norm_layer=LAYER_NORM,
        )
    ends = [last + 1 for last in last_blocks]
    stages = [net.blocks[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    for part in [net.patch_embed, *stages][:freeze_at]:
        part.requires_grad_(False)
    return net


@contextlib.contextmanager
def _buildable() -> Iterator[None]:
    """Let Detectron2's transformers be built, also on devices that store nothing.

    Raises:
        ValueError: If timm is not installed, from which they take two layers.
    """
    import_timm()
    with warnings.catch_warnings(), _NumbersOnTheCPU():
        warnings.simplefilter("ignore")  # of the place from which they import the layers
        yield


class _NumbersOnTheCPU(TorchFunctionMode):
    """Context in which the rates of stochastic depth, of which each becomes a number, are numbers.

    Their tensor has none on the device of a trial construction.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute `torch.linspace` in NumPy, everything else as usual."""
        if func is torch.linspace:
            return np.linspace(*args, dtype=np.float32)
        return func(*args, **(kwargs or {}))
