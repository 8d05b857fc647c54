"""Point heads bound to features: the form in which rendering evaluates them.

A bound head returns the logits of the head's ``forward``, up to rounding, for a fraction of the
work.

Shapes: N regions, P points, D channels of the fine-grained features, K channels of the coarse
prediction, C channels of the output. Internally each point is a row, (N·P, channels).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from point_rend.rendering.constants import is_tracing
from point_rend.rendering.coordinates import box_to_image_coords
from point_rend.rendering.dynamic_mlp import MLPLayout, apply_mlp, fourier_features
from point_rend.rendering.features import FineGrainedFeatures
from point_rend.rendering.projected_sampling import Affine, linear_at_points
from point_rend.rendering.sampling import point_sample
from point_rend.rendering.subdivision import PointPredictor
from point_rend.rendering.uncertainty import select_class_channel

ROWS_PER_TILE = 2048  # 2 MiB with 256 float32 channels

EMPTY = -1e4  # logit of probability 0


class BoundPointHead(Protocol):
    """A point head together with the features of its images."""

    def at(
        self, coarse: Tensor, boxes: Tensor | None = None, classes: Tensor | None = None
    ) -> PointPredictor:
        """Bind some of the regions.

        Args:
            coarse: output of the coarse head for each region: logits (N, K, h, w), or the
                parameters of its point head (N, num_params).
            boxes: (N, 4) in pixels, all in one image; None if each region is a whole image.
            classes: (N,) integers, the one channel to predict for each region; None for all.

        Returns:
            A function from points (N, P, 2) in [0, 1]² of each region to logits, (N, 1, P) with
            ``classes`` and (N, C, P) without.
        """


class BindableHead(nn.Module):
    """Base class of point heads with a method ``bind`` that is equivalent to their ``forward``.

    A class inherits ``bind`` only together with the ``forward`` of the same base class. Otherwise,
    for example if it overrides ``forward`` alone or takes it from a mixin, its ``bind`` is None and
    rendering calls its ``forward``. A ``bind`` in the class itself is always used.
    """

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "bind" in vars(cls):
            return
        pair = _forward_and_bind(cls)
        if not any(_forward_and_bind(base) == pair for base in cls.__bases__):
            cls.bind = None  # type: ignore[attr-defined]


def _forward_and_bind(head_class: type) -> tuple[object, object]:
    return getattr(head_class, "forward", None), getattr(head_class, "bind", None)


def bind_point_head(
    point_head: nn.Module, fine: FineGrainedFeatures, num_regions: int, points_per_region: int
) -> BoundPointHead:
    """Bind a point head by its method ``bind``, or by its ``forward`` if it has none.

    Args:
        point_head: any registered point head.
        fine: fine-grained features of one image, or of one image per region.
        num_regions: total number of regions.
        points_per_region: expected number of points per region over all calls.
    """
    bind = getattr(type(point_head), "bind", None)
    if bind is None:
        return _BoundForward(point_head, fine)
    return bind(point_head, fine, num_regions, points_per_region)


def _to_frame(coords: Tensor, boxes: Tensor | None) -> Tensor:
    """Convert points (N, P, 2) of regions to the frames of their images, (images, points, 2)."""
    return coords if boxes is None else box_to_image_coords(coords, boxes).flatten(0, 1)[None]


def empty_in_broken_boxes(logits: Tensor, boxes: Tensor) -> Tensor:
    """Replace the logits (N, C, P) of boxes that are not finite by those of an empty mask."""
    is_broken = (boxes - boxes).sum(dim=1).isnan()  # 0 in a finite box
    # Its probability is 0, and interpolation keeps it, unlike minus infinity.
    return logits.masked_fill(is_broken[:, None, None], EMPTY)


class _BoundForward:
    """Any head by its ``forward``, which always computes all channels."""

    def __init__(self, point_head: nn.Module, fine: FineGrainedFeatures) -> None:
        self.point_head = point_head
        self.fine = fine

    def at(
        self, coarse: Tensor, boxes: Tensor | None = None, classes: Tensor | None = None
    ) -> PointPredictor:
        def predict(coords: Tensor) -> Tensor:
            fine = self.fine.sample(_to_frame(coords, boxes))  # (images, D, points)
            if boxes is not None:
                fine = fine[0].unflatten(1, coords.shape[:2]).transpose(0, 1)  # (N, D, P)
            if coarse.dim() == 2:
                logits = self.point_head(fine, coords, coarse)
            else:
                logits = self.point_head(fine, point_sample(coarse, coords))
            return logits if classes is None else select_class_channel(logits, classes)

        return predict


class SplitLayer(NamedTuple):
    """A layer split by its inputs: ``inner · x + coarse · coarse prediction + bias``."""

    inner: Tensor  # (outputs, inputs), or per region (N, outputs, inputs)
    coarse: Tensor | None  # (outputs, K), or per region (N, outputs, K)
    bias: Tensor  # (outputs,), or per region (N, outputs)

    @classmethod
    def of(cls, layer: nn.Conv1d, coarse_channels: int) -> "SplitLayer":
        """Split a layer with a kernel of size 1.

        Args:
            layer: the layer; the coarse prediction is the last of its inputs.
            coarse_channels: K, or 0 if the layer does not read it.
        """
        assert layer.bias is not None  # Conv1d has a bias by default
        weight = layer.weight[:, :, 0]
        if not coarse_channels:
            return cls(weight, None, layer.bias)
        inner, coarse = weight.tensor_split([weight.shape[1] - coarse_channels], dim=1)
        return cls(inner, coarse, layer.bias)

    def adding_coarse(self, coarse_channels: int) -> "SplitLayer":
        """Return the layer that adds the coarse prediction to its outputs.

        Args:
            coarse_channels: K, the number of outputs; or 1, the channel that is added to all.
        """
        if self.coarse is None:
            coarse = self.inner.new_zeros(self.inner.shape[0], coarse_channels)
        else:
            coarse = self.coarse.clone(memory_format=torch.contiguous_format)
        added = coarse if coarse_channels == 1 else coarse.diagonal()
        added.add_(1)
        return self._replace(coarse=coarse)

    def prepared(self, dtype: torch.dtype) -> "SplitLayer":
        """Convert the weights to the type in which they are used."""
        inner, coarse = self.inner.to(dtype), None if self.coarse is None else self.coarse.to(dtype)
        if coarse is not None and inner.device.type == "cpu":  # which reads contiguous rows faster
            inner, coarse = inner.contiguous(), coarse.contiguous()
        return SplitLayer(inner, coarse, self.bias.to(dtype))

    def of_classes(self, classes: Tensor) -> "SplitLayer":
        """Keep one output per region, that of its class."""
        if self.bias.shape[0] == 1:  # class-agnostic
            classes = torch.zeros_like(classes)
        coarse = None if self.coarse is None else self.coarse[classes, None]
        return SplitLayer(self.inner[classes, None], coarse, self.bias[classes, None])

    def apply_inner(self, x: Tensor, tile: "_Tile", bias: Tensor | None = None) -> Tensor:
        """Return ``inner · x + bias`` for the rows of a tile, (rows, outputs)."""
        if self.inner.dim() == 2:
            return Affine(self.inner, bias)(x)
        per_region = Affine(self.inner[tile.regions], None if bias is None else bias[tile.regions])
        return per_region(x.unflatten(0, (-1, tile.num_points))).flatten(0, 1)


class _Tile(NamedTuple):
    """Consecutive rows: all points of several regions, or some points of one region."""

    regions: slice
    num_points: int  # per region
    rows: slice


def _tiles(coords: Tensor) -> Iterator[_Tile]:
    """Cut the rows of points (N, P, 2) so that the outputs of a layer fit the processor's cache."""
    num_regions, num_points = coords.shape[:2]
    if is_tracing() or coords.device.type != "cpu" or not num_regions * num_points:
        yield _Tile(slice(None), num_points, slice(None))
        return
    regions_per_tile = max(1, ROWS_PER_TILE // num_points)
    points_per_tile = num_points if num_points <= ROWS_PER_TILE else ROWS_PER_TILE
    for region in range(0, num_regions, regions_per_tile):
        regions = slice(region, region + regions_per_tile)
        for point in range(0, num_points, points_per_tile):
            size = min(points_per_tile, num_points - point)
            first = region * num_points + point
            count = size * min(regions_per_tile, num_regions - region)
            yield _Tile(regions, size, slice(first, first + count))


class BoundStandardHead:
    """A bound MLP over (fine-grained features, coarse prediction).

    Linear maps of either input commute with sampling, so only the products between hidden layers
    have to be computed at every point.

    Args:
        layers: the hidden layers and the predictor.
        fine, num_regions, points_per_region: as for :func:`bind_point_head`.
    """

    def __init__(
        self,
        layers: Sequence[SplitLayer],
        *,
        fine: FineGrainedFeatures,
        num_regions: int,
        points_per_region: int,
    ) -> None:
        device, dtype = layers[0].inner.device.type, layers[0].inner.dtype
        in_autocast = torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device) if in_autocast else dtype
        self.points_per_region = points_per_region
        self.hidden = [layer.prepared(self.dtype) for layer in layers]
        self.predictor = self.hidden.pop()
        first = self.hidden[0].inner if self.hidden else None
        self.fine = fine.linear(first, num_regions * points_per_region)

    def at(
        self, coarse: Tensor, boxes: Tensor | None = None, classes: Tensor | None = None
    ) -> PointPredictor:
        """Bind some of the regions, see :meth:`BoundPointHead.at`."""
        predictor = self.predictor if classes is None else self.predictor.of_classes(classes)
        coarse_terms = linear_at_points(
            coarse,
            [
                Affine(layer.coarse, layer.bias)
                for layer in (*self.hidden, predictor)
                if layer.coarse is not None
            ],
            coarse.shape[0] * self.points_per_region,
        )

        def predict(coords: Tensor) -> Tensor:
            fine, terms = self.fine(_to_frame(coords, boxes)), coarse_terms(coords)
            logits = [
                self._logits(predictor, tile, fine(tile.rows), terms(tile.rows))
                for tile in _tiles(coords)
            ]
            rows = logits[0] if len(logits) == 1 else torch.cat(logits)
            return rows.unflatten(0, coords.shape[:2]).transpose(1, 2)

        return predict

    def _logits(
        self, predictor: SplitLayer, tile: _Tile, fine: Tensor, terms: Iterator[Tensor]
    ) -> Tensor:
        """Return the logits of the rows of a tile, (rows, C).

        Args:
            predictor: the last layer.
            tile: the rows.
            fine: the first layer's product with the fine-grained features, or the features
                themselves without hidden layers.
            terms: product with the coarse prediction plus bias, for each layer that reads it.
        """
        x = fine.to(self.dtype)
        for number, layer in enumerate(self.hidden):
            if number == 0:
                x = x.add_(next(terms)).relu_()
            elif layer.coarse is None:
                x = F.linear(x, layer.inner, layer.bias).relu_()
            else:
                x = next(terms).to(self.dtype).addmm_(x, layer.inner.t()).relu_()
        if predictor.coarse is None:
            return predictor.apply_inner(x, tile, predictor.bias)
        return predictor.apply_inner(x, tile).add_(next(terms))


class BoundImplicitHead:
    """A bound MLP per region over positions and fine-grained features.

    Args:
        layout: layout of the predicted parameters.
        frequencies: (2, F) of the positional encoding; None if positions are not read.
        fine: the fine-grained features; None if they are not read.
        num_regions, points_per_region: as for :func:`bind_point_head`.
    """

    def __init__(
        self,
        layout: MLPLayout,
        *,
        frequencies: Tensor | None,
        fine: FineGrainedFeatures | None,
        num_regions: int,
        points_per_region: int,
    ) -> None:
        self.layout = layout
        self.frequencies = frequencies
        self.fine = None if fine is None else fine.linear(None, num_regions * points_per_region)

    def at(
        self, coarse: Tensor, boxes: Tensor | None = None, classes: Tensor | None = None
    ) -> PointPredictor:
        """Bind some of the regions, see :meth:`BoundPointHead.at`; ``coarse`` holds parameters."""
        weights, biases = self.layout.split(coarse)
        if classes is not None:
            weights[-1] = select_class_channel(weights[-1], classes)
            biases[-1] = select_class_channel(biases[-1], classes)

        def predict(coords: Tensor) -> Tensor:
            inputs = []
            if self.frequencies is not None:
                inputs.append(fourier_features(coords, self.frequencies))
            if self.fine is not None:
                fine = self.fine(_to_frame(coords, boxes))(slice(None))
                inputs.append(fine.unflatten(0, coords.shape[:2]))
            return apply_mlp(torch.cat(inputs, dim=2), weights, biases).transpose(1, 2)

        return predict
