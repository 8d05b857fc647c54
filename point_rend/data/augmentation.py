"""Augmentation of PointRend's recipes for training and testing."""

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import build_augmentation
from detectron2.data.transforms import (
    Augmentation,
    FixedSizeCrop,
    RandomCrop,
    RandomCrop_CategoryAreaConstraint,
    ResizeScale,
    ResizeTransform,
)
from fvcore.transforms.transform import Transform
from PIL import Image

from point_rend.color_augmentation import ColorAugSSD
from point_rend.config.defaults import with_defaults
from point_rend.config.tasks import SEM_SEG, model_outputs


def build_augmentations(cfg: CfgNode, *, is_train: bool) -> list[Augmentation]:
    """Build the augmentations of an image on its way to the model.

    Semantic models are trained on resized, cropped, color-augmented, flipped images, in this order;
    a crop with one category on more than INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is redrawn, at most
    ten times. Other models crop first, as in Detectron2, or with INPUT.CROP.AFTER_RESIZE resize
    first. With INPUT.LSJ.ENABLED, all of them are trained on images that are resized,
    color-augmented, cut or padded to one size, and flipped.

    Args:
        cfg: The config.
        is_train: Whether the images are for training.

    Returns:
        The augmentations in order. Empty for testing a semantic model with TEST.AUG, which resizes
        the images itself.
    """
    cfg = with_defaults(cfg)
    semantic = model_outputs(cfg) == SEM_SEG
    if not is_train and semantic and cfg.TEST.AUG.ENABLED:
        return []
    resize, *flip = build_augmentation(cfg, is_train)
    resize = ResizeToPixels(resize)
    if not is_train:
        return [resize]
    color = [ColorAugSSD(cfg.INPUT.FORMAT)] if cfg.INPUT.COLOR_AUG_SSD else []
    crop, jitter = cfg.INPUT.CROP, cfg.INPUT.LSJ
    if jitter.ENABLED:
        scale = ResizeScale(jitter.MIN_SCALE, jitter.MAX_SCALE, *jitter.SIZE)
        ignored = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        fit = FixedSizeCrop(tuple(jitter.SIZE), seg_pad_value=ignored)
        return [ResizeToPixels(scale), *color, fit, *flip]
    if not crop.ENABLED:
        return [resize, *color, *flip]
    if not semantic:
        free_crop = RandomCrop(crop.TYPE, crop.SIZE)
        in_order = [resize, free_crop] if crop.AFTER_RESIZE else [free_crop, resize]
        return [*in_order, *color, *flip]
    bounded_crop = RandomCrop_CategoryAreaConstraint(
        crop.TYPE,
        crop.SIZE,
        single_category_max_area=crop.SINGLE_CATEGORY_MAX_AREA,
        ignored_category=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
    )
    return [resize, bounded_crop, *color, *flip]


class ResizeToPixels(Augmentation):
    """A resizing to at least one pixel in either direction.

    Detectron2 limits the long side, which rounds the short side of a very long image to zero.

    Args:
        resize: Draws the size.
    """

    def __init__(self, resize: Augmentation) -> None:
        super().__init__()
        self.resize = resize

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw a size."""
        drawn = self.resize.get_transform(image)
        if not isinstance(drawn, ResizeTransform):  # NoOpTransform for a side of 0 in the config
            return drawn
        height, width = max(drawn.new_h, 1), max(drawn.new_w, 1)
        return ResizeEachChannel(drawn.h, drawn.w, height, width, drawn.interp)


class ResizeEachChannel(ResizeTransform):
    """A resizing that treats images of float32 (H, W, C) as those of 8 bits.

    Detectron2 resizes them in another way, which reads few pixels of a much larger image. Here each
    channel is resized by Pillow, which averages over all of them, as Detectron2 does with 8 bits.
    """

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize an image."""
        if img.dtype != np.float32 or img.ndim != 3:
            return super().apply_image(img, interp)
        size, method = (self.new_w, self.new_h), self.interp if interp is None else interp
        channels = [
            Image.fromarray(np.ascontiguousarray(img[:, :, k])).resize(size, method)
            for k in range(img.shape[2])
        ]
        return np.stack([np.asarray(channel) for channel in channels], axis=2)


def as_input(image: np.ndarray) -> torch.Tensor:
    """Return an image (H, W, C) as a model takes it: (C, H, W) of uint8, or of float32 for YUV."""
    chw = torch.from_numpy(image.transpose(2, 0, 1).copy())
    return chw.float() if chw.is_floating_point() else chw
