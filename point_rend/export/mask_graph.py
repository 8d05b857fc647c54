"""Graphs of the mask heads: rendering without a loop over images or boxes.

The points, their choice and the loop of the rendering are those of the models. Only the predictors
have a second form, in which the number of images, their size and the number of boxes are dynamic:
the images of a batch are stacked into one, and the first layer of a point head is applied to whole
maps, which are sampled afterwards.

Shapes: B images, M boxes over all images, C_l channels and H_l × W_l positions of level l, K
channels of the coarse prediction, P points, S side of a mask. Channels come first, (channels, M,
P), as sampling returns them.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from point_rend.export.graph import MAX_BATCH, MAX_SIDE, DynamicShapes, Graph, check_kind
from point_rend.mask_head import ImplicitPointRendMaskHead, PointRendMaskHead
from point_rend.point_features import BoxFeatureReader
from point_rend.point_head import ImplicitPointHead, ResidualPointHead, StandardPointHead
from point_rend.rendering.bound_head import SplitLayer
from point_rend.rendering.coordinates import box_to_image_coords, regular_grid
from point_rend.rendering.dynamic_mlp import fourier_features
from point_rend.rendering.mask_renderer import MaskRenderer
from point_rend.rendering.sampling import point_sample
from point_rend.rendering.subdivision import PointPredictor, subdivide
from point_rend.rendering.uncertainty import Uncertainty, select_class_channel
from point_rend.runtime.description import MASK_HEAD


class StackedMaps(NamedTuple):
    """The maps of a level, those of all images under each other, a row of zeros below each.

    Sampling fades to zero beyond a map; the row of zeros makes it fade between two images, too.
    """

    cells: Tensor  # (1, C, B · (H + 1), W)
    height: int  # H
    scale: float  # size of the map over that of the image

    @classmethod
    def of(cls, maps: Tensor, scale: float) -> "StackedMaps":
        """Stack maps (B, C, H, W)."""
        rows = F.pad(maps, (0, 0, 0, 1))
        return cls(rows.transpose(0, 1).flatten(1, 2)[None], maps.shape[2], scale)

    def projected(self, weight: Tensor) -> "StackedMaps":
        """Apply a linear layer (O, C) without bias to every position."""
        # A convolution with a kernel of 1 would reorder its channels in onnxruntime.
        positions = torch.matmul(weight, self.cells.flatten(2))
        return self._replace(cells=positions.unflatten(2, self.cells.shape[2:]))

    def at(self, coords_img: Tensor, image: Tensor) -> Tensor:
        """Sample points (M, P, 2), in pixels of the images (M,): (C, M, P)."""
        x, y = coords_img[..., 0] * self.scale, coords_img[..., 1] * self.scale
        y = y.clamp_min(-0.5).clamp_max(self.height + 0.5)  # no further than the row of zeros
        y = y + (image * (self.height + 1)).to(y.dtype)[:, None]
        coords = torch.stack((x / self.cells.shape[3], y / self.cells.shape[2]), dim=2)
        return point_sample(self.cells, coords[None]).squeeze(0)


class Boxes(NamedTuple):
    """The detected boxes of a batch.

    Shapes and ranges: as for :class:`MaskRendering`.
    """

    corners: Tensor
    classes: Tensor
    image: Tensor

    def sample(self, levels: Sequence[StackedMaps], coords_box: Tensor) -> list[Tensor]:
        """Sample levels at points (M, P, 2) of the boxes: (C_l, M, P) each."""
        coords_img = box_to_image_coords(coords_box, self.corners)
        return [level.at(coords_img, self.image) for level in levels]


class _Layer(nn.Module):
    """The weights of a layer of a :class:`StandardPointHead`.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: SplitLayer) -> None:
        super().__init__()
        inner, bias = layer.inner.detach(), layer.bias.detach()[:, None]
        coarse = bias[:, :0] if layer.coarse is None else layer.coarse.detach()
        self.register_buffer("inner", inner.contiguous())
        self.register_buffer("coarse", torch.cat((coarse, bias), dim=1))
        self.reads_coarse = layer.coarse is not None

    inner: Tensor  # (outputs, inputs)
    coarse: Tensor  # (outputs, K + 1) with the bias, or the bias (outputs, 1) alone

    def of_classes(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return both weights of the one output of each box's class, (M, 1, ...)."""
        if self.inner.shape[0] == 1:  # class-agnostic
            classes = torch.zeros_like(classes)
        weights = self.inner.index_select(0, classes), self.coarse.index_select(0, classes)
        return weights[0][:, None], weights[1][:, None]


class StandardPoints(nn.Module):
    """The predictor of a :class:`StandardPointHead` or a :class:`ResidualPointHead`.

    Args:
        point_head: the head.
    """

    def __init__(self, point_head: StandardPointHead) -> None:
        super().__init__()
        *hidden, predictor = map(_Layer, point_head.split_layers())
        self.hidden: Sequence[_Layer] = nn.ModuleList(hidden)  # type: ignore[assignment]
        self.predictor = predictor

    def bind(self, levels: Sequence[StackedMaps], coarse: Tensor, boxes: Boxes) -> PointPredictor:
        """Bind the head to levels, to coarse logits (M, K, s, s) and to boxes."""
        if self.hidden:
            ends = accumulate(level.cells.shape[1] for level in levels)
            levels = [
                level.projected(self.hidden[0].inner[:, end - level.cells.shape[1] : end])
                for level, end in zip(levels, ends, strict=True)
            ]
        *_, num_channels, height, width = coarse.shape
        cells = _with_ones(coarse.flatten(2))
        # Of two products in a row, the one with fewer channels at the points comes last.
        is_small = height * width < num_channels
        last_inner, last_coarse = self.predictor.of_classes(boxes.classes)

        def bound(layer: _Layer, weight: Tensor) -> Tensor:
            return torch.matmul(weight, cells) if is_small and layer.reads_coarse else weight

        terms = [bound(layer, layer.coarse) for layer in self.hidden]
        last_term = bound(self.predictor, last_coarse)

        def predict(coords: Tensor) -> Tensor:
            shares = _cell_shares(coords, height, width)
            near = shares if is_small else torch.matmul(cells, shares)

            def term(layer: _Layer, weight: Tensor) -> Tensor:
                return torch.matmul(weight, near) if layer.reads_coarse else weight

            samples = boxes.sample(levels, coords)
            if not self.hidden:
                x = torch.cat(samples).transpose(0, 1)
            else:
                x = sum(samples[1:], samples[0]).transpose(0, 1)
            for number, layer in enumerate(self.hidden):
                x = torch.matmul(layer.inner, x) if number else x
                x = x.add_(term(layer, terms[number])).relu_()
            return torch.matmul(last_inner, x) + term(self.predictor, last_term)

        return predict


def _with_ones(cells: Tensor) -> Tensor:
    """Append a channel and a cell that hold 0, and 1 where they cross: (M, K + 1, cells + 1)."""
    channels = F.pad(cells, (0, 1))
    row = F.pad(torch.zeros_like(cells[:, :1]), (0, 1), value=1.0)
    return torch.cat((channels, row), dim=1)


def _cell_shares(coords: Tensor, height: int, width: int) -> Tensor:
    """Return the shares of a map's cells in bilinear interpolation at points (M, P, 2).

    Returns:
        (M, height · width + 1, P), with a last row of ones.
    """

    def along(positions: Tensor, count: int) -> Tensor:
        centers = torch.arange(count, dtype=positions.dtype, device=positions.device) + 0.5
        distances = positions[:, None] * count - centers[:, None]  # (M, count, P)
        return (1 - distances.abs()).clamp_min(0)

    columns, rows = along(coords[..., 0], width), along(coords[..., 1], height)
    shares = (rows[:, :, None] * columns[:, None]).flatten(1, 2)
    return F.pad(shares, (0, 0, 0, 1), value=1.0)


class ImplicitPoints(nn.Module):
    """The predictor of an :class:`ImplicitPointHead`.

    Args:
        point_head: the head.
    """

    def __init__(self, point_head: ImplicitPointHead) -> None:
        super().__init__()
        self.layout = point_head.layout
        self.reads_features = point_head.image_feature_enabled
        frequencies = None
        if point_head.positional_encoding_enabled:
            frequencies = point_head.positional_encoding_gaussian_matrix.detach()
        self.register_buffer("frequencies", frequencies)

    frequencies: Tensor | None

    def bind(self, levels: Sequence[StackedMaps], coarse: Tensor, boxes: Boxes) -> PointPredictor:
        """Bind the head to levels, to parameters (M, num_params) and to boxes."""
        weights, biases = self.layout.split(coarse)
        weights[-1] = select_class_channel(weights[-1], boxes.classes)
        biases[-1] = select_class_channel(biases[-1], boxes.classes)

        def predict(coords: Tensor) -> Tensor:
            inputs = []
            if self.frequencies is not None:
                inputs.append(fourier_features(coords, self.frequencies).transpose(1, 2))
            if self.reads_features:
                inputs.extend(x.transpose(0, 1) for x in boxes.sample(levels, coords))
            parts = weights[0].split([x.shape[1] for x in inputs], dim=2)
            products = [torch.matmul(w, x) for w, x in zip(parts, inputs, strict=True)]
            x = sum(products[1:], products[0]).add_(biases[0][:, :, None])
            for weight, bias in zip(weights[1:], biases[1:], strict=True):
                x = torch.matmul(weight, x.relu_()).add_(bias[:, :, None])
            return x

        return predict


class MaskRendering(nn.Module):
    """The masks of boxes, rendered by a mask head, as operations on tensors.

    Args:
        head: the mask head.

    Attributes:
        scales: size of each level that the head reads over that of the image.

    Raises:
        ValueError: if a part of the head has no graph; the message names it.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        check_kind("MODEL.ROI_MASK_HEAD.NAME", head, PointRendMaskHead, ImplicitPointRendMaskHead)
        self.points: StandardPoints | ImplicitPoints | None = None
        if isinstance(head, ImplicitPointRendMaskHead):
            check_kind("MODEL.POINT_HEAD.NAME", head.point_head, ImplicitPointHead)
            assert isinstance(head.point_head, ImplicitPointHead)
            self._add_points(ImplicitPoints(head.point_head), head.point_reader, head.renderer)
            self.coarse_head = head.parameter_head
        else:
            assert isinstance(head, PointRendMaskHead)
            self.coarse_head = head.coarse_head
            if head.refinement is not None:
                kinds = (StandardPointHead, ResidualPointHead)
                check_kind("MODEL.POINT_HEAD.NAME", head.point_head, *kinds)
                assert isinstance(head.point_head, StandardPointHead)
                refinement = head.refinement
                points = StandardPoints(head.point_head)
                self._add_points(points, refinement.reader, refinement.renderer)
        self.coarse_reader: BoxFeatureReader = head.coarse_reader
        self.coarse_side: int = head.coarse_pooler_side
        self.uncertainty: Uncertainty = head.uncertainty
        readers = [self.coarse_reader] + ([] if self.points is None else [self.point_reader])
        self.scales: dict[str, float] = {
            name: scale for x in readers for name, scale in zip(x.names, x.scales, strict=True)
        }

    def _add_points(
        self,
        points: "StandardPoints | ImplicitPoints",
        reader: BoxFeatureReader,
        renderer: MaskRenderer,
    ) -> None:
        if renderer.cells_per_pixel:
            raise ValueError(
                f"MODEL.POINT_HEAD.SUBDIVISION_CELLS_PER_PIXEL is {renderer.cells_per_pixel}: "
                "steps that depend on the size of a box have no graph; expected 0"
            )
        self.points, self.point_reader, self.plan = points, reader, renderer.plan

    def forward(
        self, features: Mapping[str, Tensor], boxes: Tensor, classes: Tensor, image: Tensor
    ) -> Tensor:
        """Render the masks.

        Args:
            features: per level (B, C_l, H_l, W_l).
            boxes: (M, 4) as (x0, y0, x1, y1) in pixels of the images. A box with a coordinate that
                is not finite gets an empty mask.
            classes: (M,) int64.
            image: (M,) int64, the image of each box in [0, B).

        Returns:
            (M, 1, S, S) foreground probabilities in the boxes, float32.
        """
        is_broken = (boxes - boxes).sum(dim=1).isnan()  # 0 in a finite box
        detected = Boxes(boxes.masked_fill(is_broken[:, None], 0.0), classes, image)
        stacked = {k: StackedMaps.of(features[k], scale) for k, scale in self.scales.items()}

        def levels(reader: BoxFeatureReader) -> list[StackedMaps]:
            return [stacked[name] for name in reader.names]

        side = self.coarse_side
        grid = regular_grid(boxes.shape[0], side, boxes.device)
        pooled = torch.cat(detected.sample(levels(self.coarse_reader), grid))
        coarse = self.coarse_head(pooled.transpose(0, 1).unflatten(2, (side, side)))
        if self.points is None:
            logits = select_class_channel(coarse, classes)
        else:
            predict = self.points.bind(levels(self.point_reader), coarse, detected)
            side = self.plan.start_side
            grid = regular_grid(boxes.shape[0], side, boxes.device)
            logits = subdivide(
                predict(grid).unflatten(2, (side, side)),
                predict,
                self.uncertainty,
                steps=self.plan.steps,
                points_per_step=self.plan.points_per_step,
            )
        return logits.sigmoid().masked_fill(is_broken[:, None, None, None], 0.0)


class MaskHeadGraph(Graph):
    """A mask head alone, for detectors of other projects.

    The arguments are the levels that it reads, (B, C_l, H_l, W_l) each, then ``boxes``, ``classes``
    and ``image`` as of :meth:`MaskRendering.forward`; the result is ``masks``.

    Args:
        head: the mask head.
        channels: C_l of each level, by name.

    Raises:
        ValueError: if a part of the head has no graph, or the channels of a level are missing.
    """

    task = MASK_HEAD
    output_names = ("masks",)

    def __init__(self, head: nn.Module, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.masks = MaskRendering(head)
        self.levels = tuple(self.masks.scales)
        self.input_names = (*self.levels, "boxes", "classes", "image")
        missing = [name for name in self.levels if name not in channels]
        if missing:
            raise ValueError(f"channels: expected those of {', '.join(missing)}, too")
        self.channels = {name: channels[name] for name in self.levels}
        self.max_batch = MAX_BATCH
        self.max_side = MAX_SIDE

    def forward(self, *inputs: Tensor) -> Tensor:
        """Render the masks (M, 1, S, S) of boxes."""
        *maps, boxes, classes, image = inputs
        return self.masks(dict(zip(self.levels, maps, strict=True)), boxes, classes, image)

    def example(self) -> tuple[Tensor, ...]:
        """Return random features of two images and three boxes."""
        generator = torch.Generator().manual_seed(0)
        maps = []
        for name, scale in self.masks.scales.items():
            height, width = (max(2, round(side * scale)) for side in (256, 320))
            shape = (2, self.channels[name], height, width)
            maps.append(torch.randn(shape, generator=generator))
        corners = torch.rand(3, 2, generator=generator) * 200
        boxes = torch.cat((corners, corners + 50), dim=1)
        return *maps, boxes, torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1, 1])

    def dynamic_shapes(self) -> DynamicShapes:
        """Return the sizes of the batch and of the levels, and the number of boxes."""
        dim = torch.export.Dim
        batch, boxes = dim("batch", min=1, max=self.max_batch), dim("boxes", min=0)
        maps = []
        for name, scale in self.masks.scales.items():
            most = math.ceil(self.max_side * scale)
            sides = (dim(f"{name}_{side}", min=1, max=most) for side in ("height", "width"))
            maps.append({0: batch, **dict(zip((2, 3), sides, strict=True))})
        # forward has one argument, the tuple of all inputs.
        return ((*maps, {0: boxes}, {0: boxes}, {0: boxes}),)
