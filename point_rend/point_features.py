"""Features at points: of several levels, for regions of several images.

Also the place where the names live that other projects import from PointRend.

Shapes: N regions over all images, C channels over all levels, P points.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from detectron2.layers import cat, shapes_to_tensor
from detectron2.structures import Boxes
from torch import Tensor

from .coordinates import box_to_image_coords, regular_grid
from .point_linear import Affine, linear_at_points
from .sampling import PointSampler, point_sample
from .sampling import most_uncertain_cells as get_uncertain_point_coords_on_grid
from .targets import sample_point_labels
from .uncertainty import Uncertainty

__all__ = [
    "FineGrainedFeatures",
    "concatenate_levels",
    "generate_regular_grid_point_coords",
    "get_point_coords_wrt_image",
    "get_uncertain_point_coords_on_grid",
    "get_uncertain_point_coords_with_randomness",
    "pool_regular_grid",
    "point_sample",
    "point_sample_fine_grained_features",
    "sample_point_labels",
]


def concatenate_levels(samples: Sequence[Tensor]) -> Tensor:
    """Join what several levels say of the same points: (N, C_l, P) each → (N, ΣC_l, P)."""
    return cat(list(samples), dim=1)  # without a copy of a single one


@dataclass(frozen=True)
class FineGrainedFeatures:
    """Levels of features, to be read at points of the frames that they cover.

    Args:
        levels: per level (M, C_l, H_l, W_l), for M images.
        frames: per level the width and height of the frame in the unit of the points' coordinates,
            a tensor (2,), or 1 for coordinates in [0, 1]².
    """

    levels: Sequence[Tensor]
    frames: Sequence[Tensor | float]

    def sample(self, coords: Tensor) -> Tensor:
        """Read all levels at points (M, P, 2): (M, ΣC_l, P)."""
        pairs = zip(self.levels, self.frames, strict=True)
        return concatenate_levels([point_sample(level, coords / frame) for level, frame in pairs])

    def linear(
        self, weight: Tensor | None, num_points: int
    ) -> Callable[[Tensor], Callable[[slice], Tensor]]:
        """Bind a linear layer without bias: ``weight`` times what :meth:`sample` reads.

        Args:
            weight: (O, ΣC_l); None for the identity.
            num_points: how many points of all images the result will be asked for, in all.

        Returns:
            A function from points (M, P, 2) to one from a slice of their M·P rows to (rows, O).
        """
        channels = [level.shape[1] for level in self.levels]
        weights = [None] * len(channels) if weight is None else weight.split(channels, dim=1)
        bound_levels = [
            linear_at_points(level, [Affine(part)], num_points)
            for level, part in zip(self.levels, weights, strict=True)
        ]
        frames = self.frames  # and not self: what is bound must not keep maps that were copied

        def at(coords: Tensor) -> Callable[[slice], Tensor]:
            pairs = zip(bound_levels, frames, strict=True)
            terms_of_levels = [bound(coords / frame) for bound, frame in pairs]

            def rows(chosen: slice) -> Tensor:
                parts = [output for terms in terms_of_levels for output in terms(chosen)]
                return torch.cat(parts, dim=1) if weight is None else sum(parts[1:], parts[0])

            return rows

        return at


@torch.no_grad()
def get_point_coords_wrt_image(boxes_coords: Tensor, point_coords: Tensor) -> Tensor:
    """Convert ``coords_box`` (N, P, 2) of boxes (N, 4) to ``coords_img``, without gradient."""
    return box_to_image_coords(point_coords, boxes_coords)


def generate_regular_grid_point_coords(
    R: int,  # noqa: N803 (historical)
    side_size: int,
    device: torch.device | str,
) -> Tensor:
    """Return :func:`regular_grid` under its historical name and signature: (R, side_size², 2)."""
    return regular_grid(R, side_size, device)


def get_uncertain_point_coords_with_randomness(
    coarse_logits: Tensor,
    uncertainty_func: Uncertainty,
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
) -> Tensor:
    """Draw training points: :meth:`PointSampler.sample` under its historical name and signature."""
    sampler = PointSampler(num_points, oversample_ratio, importance_sample_ratio)
    return sampler.sample(coarse_logits, uncertainty_func)


def point_sample_fine_grained_features(
    features_list: Sequence[Tensor],
    feature_scales: Sequence[float],
    boxes: Sequence[Boxes],
    point_coords: Tensor,
) -> tuple[Tensor, Tensor]:
    """Read the feature maps of each image at points given in its boxes' frames.

    Args:
        features_list: per level (images, C_l, H_l, W_l).
        feature_scales: per level the feature map's size over the image's, 1 / stride.
        boxes: per image its boxes, N_i of them, in pixels; N in all.
        point_coords: (N, P, 2) ``coords_box``, the images' boxes one after the other.

    Returns:
        Features (N, ΣC_l, P), and the points as ``coords_img`` (N, P, 2).
    """
    coords_img = get_point_coords_wrt_image(Boxes.cat(list(boxes)).tensor, point_coords)
    boxes_per_image = [b.tensor.size(0) for b in boxes]
    features = []
    for image, coords in enumerate(torch.split(coords_img, boxes_per_image)):
        levels = []
        for feature_map, scale in zip(features_list, feature_scales, strict=True):
            height, width = feature_map.shape[-2:]
            image_size = (shapes_to_tensor([width, height]) / scale).to(coords.device)
            coords_norm = (coords / image_size)[None]  # (1, N_i, P, 2)
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

    For boxes inside the image this is RoIAlign with one sample per bin, done on every level and
    concatenated.

    Args:
        features_list, feature_scales, boxes: as for :func:`point_sample_fine_grained_features`.
        side: bins along each side.

    Returns:
        (N, ΣC_l, side, side).
    """
    num_boxes = sum(b.tensor.size(0) for b in boxes)
    coords = regular_grid(num_boxes, side, features_list[0].device)
    pooled, _ = point_sample_fine_grained_features(features_list, feature_scales, boxes, coords)
    # Convolutions on a CPU lay other formats out anew.
    return pooled.unflatten(2, (side, side)).contiguous(memory_format=torch.channels_last)
