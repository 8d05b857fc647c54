"""The graph of an instance segmentation model: from images to boxes and masks.

Shapes: B images of H × W pixels, L levels of the RPN, k boxes of each level, P proposals of an
image at most, M boxes over all images, K classes, R boxes of each proposal (K, or 1 if the
regression is class-agnostic).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from torch import Tensor, nn

from point_rend.export.graph import ImageGraph
from point_rend.export.suppression import choose_boxes
from point_rend.runtime.description import INSTANCES

NONE = float("-inf")  # score of what is no box

Features = Mapping[str, Tensor]


class InstanceGraph(ImageGraph):
    """A GeneralizedRCNN as a graph.

    It returns ``boxes`` (M, 4), corners (x0, y0, x1, y1) in pixels of the images; ``scores`` (M,);
    ``classes`` (M,), int64; ``image`` (M,), int64, the index of each box's image, ascending; and
    ``masks`` (M, 1, S, S), foreground probabilities in the boxes. The boxes of an image are
    ordered by descending score.

    Args:
        model: The model, in inference mode.
        masks: Maps feature maps, boxes (M, 4), classes and images (M,) to masks (M, 1, S, S).
    """

    task = INSTANCES
    output_names = ("boxes", "scores", "classes", "image", "masks")

    def __init__(self, model: GeneralizedRCNN, masks: nn.Module) -> None:
        super().__init__(model, max(model.backbone.size_divisibility, 1))
        self.proposals = Proposals(model.proposal_generator)
        self.detections = Detections(model.roi_heads, self.proposals.most)
        self.masks = masks

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect the objects in the images and render their masks."""
        features = self.features(images, sizes)
        proposals = self.proposals(features, sizes)
        boxes, scores, classes, image = self.detections(features, proposals, sizes)
        return boxes, scores, classes, image, self.masks(features, boxes, classes, image)


class ProposedBoxes(NamedTuple):
    """The proposals of a batch, ordered by image and then by descending score.

    Attributes:
        boxes: (M, 4).
        image: (M,), the index of the image.
        slot: (M,), image · P + rank within the image.
        exists: (B, P), whether there is a proposal of this rank. An export has all of them, B · P
            boxes: it must know the number of rows that a box head gets.
    """

    boxes: Tensor
    image: Tensor
    slot: Tensor
    exists: Tensor


class Proposals(nn.Module):
    """The RPN: the boxes that may contain an object.

    Args:
        rpn: The RPN of the model.

    Attributes:
        most: P.
    """

    def __init__(self, rpn: RPN) -> None:
        super().__init__()
        self.head = rpn.rpn_head
        self.transform = rpn.box2box_transform
        self.levels = tuple(rpn.in_features)
        self.most_per_level = rpn.pre_nms_topk[False]
        self.most = min(rpn.post_nms_topk[False], len(self.levels) * self.most_per_level)
        self.iou = rpn.nms_thresh
        self.min_side = rpn.min_box_size
        self.strides, self.offset = rpn.anchor_generator.strides, rpn.anchor_generator.offset
        for level, cells in enumerate(rpn.anchor_generator.cell_anchors):
            self.register_buffer(f"anchors_{level}", cells.detach().clone())  # (A, 4), about 0

    def forward(self, features: Features, sizes: Tensor) -> ProposedBoxes:
        """Return the proposals in images of the given sizes (B, 2)."""
        outputs = zip(*self.head([features[name] for name in self.levels]), strict=True)
        levels = [self._best_of_level(n, o, d, sizes) for n, (o, d) in enumerate(outputs)]
        boxes, scores = (torch.stack(parts, dim=1) for parts in zip(*levels, strict=True))
        chosen = choose_boxes(
            *(boxes, scores), iou=self.iou, threshold=NONE, most=self.most, group_first=True
        )
        exists, flat = chosen >= 0, chosen.flatten()
        if torch.compiler.is_compiling():
            slot = torch.arange(flat.shape[0], device=flat.device)
        else:
            slot = exists.flatten().nonzero()[:, 0]
        image, index = slot // self.most, flat.index_select(0, slot).clamp(min=0)
        per_image = len(self.levels) * self.most_per_level
        kept = boxes.reshape(-1, 4).index_select(0, image * per_image + index)
        return ProposedBoxes(kept, image, slot, exists)

    def _best_of_level(
        self, level: int, objectness: Tensor, deltas: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the k best boxes (B, k, 4) of a level and their scores (B, k).

        Args:
            level: Index of the level.
            objectness: (B, A, h, w) for A anchors in each of h × w cells.
            deltas: (B, 4 A, h, w), the regression.
            sizes: (B, 2), height and width.
        """
        num_anchors, height, width = objectness.shape[1:]
        scores = objectness.permute(0, 2, 3, 1).flatten(1)  # (B, h · w · A)
        num_scores, count = scores.shape[1], self.most_per_level
        if isinstance(num_scores, int):
            count = min(count, num_scores)
        else:  # a number that an exporter does not know: pad, so that the count is constant
            scores = F.pad(scores, (0, count), value=NONE)
        best, index = scores.topk(count, dim=1)
        index = index.flatten().clamp(max=num_scores - 1)  # (B · k,)
        cell, anchor = index // num_anchors, index % num_anchors
        # Channel 4 a + c of the map is coordinate c of anchor a.
        coordinate = torch.arange(4, device=index.device)
        place = (4 * anchor[:, None] + coordinate) * (height * width) + cell[:, None]
        place = place.unflatten(0, (-1, count)).flatten(1)  # (B, 4 k)
        regression = deltas.flatten(1).gather(1, place).reshape(-1, 4)
        y = cell // width
        x = cell - y * width  # ONNX has no remainder by a size
        corner = torch.stack((x, y, x, y), dim=1).float() * self.strides[level]
        anchors = getattr(self, f"anchors_{level}").index_select(0, anchor)
        anchors = corner + self.offset * self.strides[level] + anchors
        boxes = self.transform.apply_deltas(regression, anchors).unflatten(0, (-1, count))
        boxes = clip(boxes, limits(sizes)[:, None])  # (B, k, 4)
        has_area = (boxes[..., 2:] - boxes[..., :2] > self.min_side).all(dim=2)
        best = best.masked_fill(~has_area, NONE)
        missing = self.most_per_level - count
        return F.pad(boxes, (0, 0, 0, missing)), F.pad(best, (0, missing), value=NONE)


class Detections(nn.Module):
    """The box heads: classes, scores and final boxes of the proposals.

    Args:
        heads: The ROI heads of the model; those of a cascade refine the boxes stage by stage.
        most_proposals: P.
    """

    def __init__(self, heads: StandardROIHeads, most_proposals: int) -> None:
        super().__init__()
        is_cascade = isinstance(heads.box_head, nn.ModuleList)
        self.heads = heads.box_head if is_cascade else nn.ModuleList([heads.box_head])
        predictors = heads.box_predictor
        self.predictors = predictors if is_cascade else nn.ModuleList([predictors])
        self.levels = tuple(heads.box_in_features)
        self.pooler = Pooler(heads.box_pooler)
        self.most_proposals = most_proposals
        last: Any = self.predictors[-1]
        self.num_classes: int = last.num_classes
        self.iou: float = last.test_nms_thresh
        self.threshold: float = last.test_score_thresh
        self.most = most_proposals * self.num_classes
        if last.test_topk_per_image >= 0:
            self.most = min(self.most, last.test_topk_per_image)

    def forward(
        self, features: Features, proposals: ProposedBoxes, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return boxes (M, 4), scores, classes and images (M,) in images of sizes (B, 2)."""
        boxes, scores = self._predict(features, proposals, sizes)
        num_images, slots = sizes.shape[0], self.most_proposals
        boxes = _in_slots(boxes, proposals.slot, num_images, slots)  # (B, P, 4 R)
        scores = _in_slots(scores, proposals.slot, num_images, slots)  # (B, P, K)
        scores = scores.masked_fill(~proposals.exists[:, :, None], NONE)
        boxes = boxes.unflatten(2, (-1, 4)).transpose(1, 2).expand(-1, self.num_classes, -1, -1)
        scores = scores.transpose(1, 2)
        chosen = choose_boxes(
            *(boxes, scores),
            iou=self.iou,
            threshold=self.threshold,
            most=self.most,
            group_first=False,
        )
        flat = chosen.flatten()
        found = (flat >= 0).nonzero()[:, 0]
        image, index = found // self.most, flat.index_select(0, found)
        place = image * (self.num_classes * slots) + index
        boxes = boxes.reshape(-1, 4).index_select(0, place)
        return boxes, scores.flatten().index_select(0, place), index // slots, image

    def _predict(
        self, features: Features, proposals: ProposedBoxes, sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the boxes (M, 4 R) and the scores (M, K) of the proposals."""
        maps = [features[name] for name in self.levels]
        limit = limits(sizes).index_select(0, proposals.image)  # (M, 4)
        boxes, scores = proposals.boxes, []
        for head, predictor in zip(self.heads, self.predictors, strict=True):
            logits, deltas = predictor(head(self.pooler(maps, boxes, proposals.image)))
            probabilities = logits.sigmoid() if predictor.use_sigmoid_ce else logits.softmax(dim=1)
            scores.append(probabilities)
            boxes = predictor.box2box_transform.apply_deltas(deltas, boxes)
            boxes = clip(boxes.unflatten(1, (-1, 4)), limit[:, None]).flatten(1)
        if len(scores) > 1:
            scores = [sum(scores) * (1 / len(scores))]
        return boxes, scores[0][:, :-1]


class Pooler(nn.Module):
    """Detectron2's ROIPooler without lists: it reads a grid of features of each box.

    Args:
        pooler: The pooler of the model.
    """

    def __init__(self, pooler: ROIPooler) -> None:
        super().__init__()
        self.levels = pooler.level_poolers
        self.first, self.last = pooler.min_level, pooler.max_level
        self.canonical_level = pooler.canonical_level
        self.canonical_side = pooler.canonical_box_size

    def forward(self, maps: Sequence[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """Return the grids (M, C, side, side) of boxes (M, 4) in images (M,)."""
        regions = torch.cat((image[:, None].to(boxes.dtype), boxes), dim=1)
        if len(self.levels) == 1:
            return self.levels[0](maps[0], regions)
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = torch.floor(self.canonical_level + torch.log2(sides / self.canonical_side + 1e-8))
        level = level.clamp(self.first, self.last) - self.first
        grids, places = [], []
        for number, (features, pool) in enumerate(zip(maps, self.levels, strict=True)):
            chosen = (level == number).nonzero()[:, 0]
            grids.append(pool(features, regions.index_select(0, chosen)))
            places.append(chosen)
        place = torch.cat(places)
        numbers = torch.arange(place.shape[0], device=place.device)
        order = torch.zeros_like(image).scatter(0, place, numbers)
        return torch.cat(grids).index_select(0, order)


def limits(sizes: Tensor) -> Tensor:
    """Return the largest coordinates (B, 4) of boxes in images of sizes (B, 2), as float32."""
    return sizes.flip(1).repeat(1, 2).float()


def clip(boxes: Tensor, limit: Tensor) -> Tensor:
    """Move the corners of boxes (…, 4) into their images, which end at the limit (…, 4)."""
    return torch.minimum(boxes.clamp(min=0), limit)


def _in_slots(values: Tensor, slot: Tensor, num_images: int, slots: int) -> Tensor:
    """Return values (M, n) as (B, P, n), with zeros where there is no proposal."""
    if not torch.compiler.is_compiling():  # an export has a value for each slot
        table = values.new_zeros((num_images * slots, values.shape[1]))
        values = table.index_put((slot,), values)
    return values.unflatten(0, (num_images, slots))
