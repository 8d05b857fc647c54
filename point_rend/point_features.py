"""Features at points, read from several levels for the boxes of several images.

This module also provides the function names that other projects import from the stock project.

Shapes: N regions over all images, C channels over all levels, P points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from detectron2.layers import ShapeSpec, cat, shapes_to_tensor
from detectron2.structures import Boxes
from torch import Tensor

from point_rend.ground_truth.point_labels import sample_point_labels
from point_rend.rendering.constants import is_tracing, numbers
from point_rend.rendering.coordinates import box_to_image_coords, regular_grid
from point_rend.rendering.features import FineGrainedFeatures, concatenate_levels
from point_rend.rendering.sampling import PointSampler, point_sample
from point_rend.rendering.sampling import most_uncertain_cells as get_uncertain_point_coords_on_grid
from point_rend.rendering.uncertainty import Uncertainty

__all__ = [
    "BoxFeatureReader",
    "Features",
    "FineGrainedFeatures",
    "concatenate_levels",
    "generate_regular_grid_point_coords",
    "get_point_coords_wrt_image",
    "get_uncertain_point_coords_on_grid",
    "get_uncertain_point_coords_with_randomness",
    "point_sample",
    "point_sample_fine_grained_features",
    "pool_regular_grid",
    "sample_point_labels",
]

Features = Mapping[str, Tensor]


@dataclass(frozen=True)
class BoxFeatureReader:
    """Reads the chosen feature levels at points of boxes.

    Args:
        names: the levels, in the order in which their channels are concatenated.
        scales: per level the size of the feature map over that of the image, 1 / stride.
        channels: total number of channels.
    """

    names: tuple[str, ...]
    scales: tuple[float, ...]
    channels: int

    @classmethod
    def from_shapes(
        cls, names: Sequence[str], input_shape: Mapping[str, ShapeSpec], key: str
    ) -> "BoxFeatureReader":
        """Build a reader of the levels ``names``, the value of the config's ``key``.

        Raises:
            ValueError: if there are no names, or a level is missing.
        """
        missing = [name for name in names if name not in input_shape]
        if missing or not names:
            raise ValueError(
                f"{key} is {tuple(names)}: expected at least one of the features that the ROI "
                f"heads receive, {sorted(input_shape)} (MODEL.ROI_HEADS.IN_FEATURES)"
            )
        shapes = [input_shape[name] for name in names]
        return cls(
            names=tuple(names),
            scales=tuple(1.0 / shape.stride for shape in shapes),
            channels=sum(shape.channels for shape in shapes),
        )

    def grid_shape(self, side: int) -> ShapeSpec:
        """Return the shape of one box's features from :meth:`grid`."""
        return ShapeSpec(channels=self.channels, height=side, width=side)

    def grid(self, features: Features, boxes: Sequence[Boxes], side: int) -> Tensor:
        """Read a regular grid of every box: (N, channels, side, side)."""
        return pool_regular_grid([features[n] for n in self.names], self.scales, boxes, side)

    def points(self, features: Features, boxes: Sequence[Boxes], coords_box: Tensor) -> Tensor:
        """Read points of every box, (N, P, 2) ``coords_box``: (N, channels, P)."""
        levels = [features[n] for n in self.names]
        return point_sample_fine_grained_features(levels, self.scales, boxes, coords_box)[0]

    def images(self, features: Features) -> list[FineGrainedFeatures]:
        """Return the features of each image, to be read at points in pixels."""
        levels = [features[name] for name in self.names]
        frames = _image_frames(levels, self.scales)
        maps_of_images = zip(*(level.split(1) for level in levels), strict=True)
        return [FineGrainedFeatures(maps, frames) for maps in maps_of_images]


def _image_frames(levels: Sequence[Tensor], scales: Sequence[float]) -> list[Tensor]:
    """Return the size (W, H) in pixels of the images that each level covers.

    Nothing is copied from the host to an accelerator.
    """
    frames = []
    for level, scale in zip(levels, scales, strict=True):
        height, width = level.shape[-2:]
        if level.device.type == "cpu" or is_tracing():
            frames.append((shapes_to_tensor([width, height]) / scale).to(level.device))
        else:
            frames.append(numbers((width / scale, height / scale), level.device))
    return frames


@torch.no_grad()
def get_point_coords_wrt_image(boxes_coords: Tensor, point_coords: Tensor) -> Tensor:
    """Convert ``coords_box`` (N, P, 2) of boxes (N, 4) to ``coords_img``, without gradient."""
    return box_to_image_coords(point_coords, boxes_coords)


def generate_regular_grid_point_coords(
    R: int,  # noqa: N803 (historical)
    side_size: int,
    device: torch.device | str,
) -> Tensor:
    """Return :func:`regular_grid`, (R, side_size², 2), under its historical name and signature."""
    return regular_grid(R, side_size, device)


def get_uncertain_point_coords_with_randomness(
    coarse_logits: Tensor,
    uncertainty_func: Uncertainty,
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
) -> Tensor:
    """Draw training points by :class:`PointSampler`, under the historical name and signature."""
    sampler = PointSampler(num_points, oversample_ratio, importance_sample_ratio)
    return sampler.sample(coarse_logits, uncertainty_func)


def point_sample_fine_grained_features(
    features_list: Sequence[Tensor],
    feature_scales: Sequence[float],
    boxes: Sequence[Boxes],
    point_coords: Tensor,
) -> tuple[Tensor, Tensor]:
    """Read the feature maps of each image at points of its boxes.

    Args:
        features_list: per level (images, C_l, H_l, W_l).
        feature_scales: per level the size of the feature map over that of the image, 1 / stride.
        boxes: the N_i boxes of each image, in pixels; N in total.
        point_coords: (N, P, 2) ``coords_box``, in the order of the boxes.

    Returns:
        Features (N, ΣC_l, P), and the points as ``coords_img`` (N, P, 2).
    """
    coords_img = get_point_coords_wrt_image(Boxes.cat(list(boxes)).tensor, point_coords)
    boxes_per_image = [b.tensor.size(0) for b in boxes]
    frames = _image_frames(features_list, feature_scales)
    features = []
    for image, coords in enumerate(torch.split(coords_img, boxes_per_image)):
        levels = []
        for feature_map, frame in zip(features_list, frames, strict=True):
            coords_norm = (coords / frame)[None]  # (1, N_i, P, 2)
            sampled = point_sample(feature_map[image : image + 1], coords_norm)  # (1, C_l, N_i, P)
            levels.append(sampled[0].transpose(0, 1))  # (N_i, C_l, P)
        features.append(concatenate_levels(levels))
    if not features:
        channels = sum(feature_map.shape[1] for feature_map in features_list)
        features.append(coords_img.new_zeros(0, channels, coords_img.shape[1]))
    return cat(features), coords_img


def pool_regular_grid(
    features_list: Sequence[Tensor],
    feature_scales: Sequence[float],
    boxes: Sequence[Boxes],
    side: int,
) -> Tensor:
    """Read a regular grid of each box from all levels.

    Inside the image this is RoIAlign with one sample per bin on every level, concatenated.

    Args:
        features_list, feature_scales, boxes: as for :func:`point_sample_fine_grained_features`.
        side: number of bins along each side.

    Returns:
        (N, ΣC_l, side, side).
    """
    num_boxes = sum(b.tensor.size(0) for b in boxes)
    coords = regular_grid(num_boxes, side, features_list[0].device)
    pooled, _ = point_sample_fine_grained_features(features_list, feature_scales, boxes, coords)
    # Convolutions on a CPU would copy any other memory format.
    return pooled.unflatten(2, (side, side)).contiguous(memory_format=torch.channels_last)
