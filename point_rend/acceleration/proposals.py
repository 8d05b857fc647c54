"""Proposals: only the best anchors are decoded."""

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.structures import Boxes, Instances
from torch import Tensor

from point_rend.acceleration.inference import is_accelerated


class FastRPN(RPN):
    """Detectron2's RPN, which chooses the best anchors of each level before it decodes them."""

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Return the proposals of each image; arguments as of :meth:`RPN.predict_proposals`."""
        if not is_accelerated(self, pred_objectness_logits[0]):
            return super().predict_proposals(
                anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes
            )
        count = self.pre_nms_topk[False]
        proposals, best = [], []
        levels = zip(anchors, pred_objectness_logits, pred_anchor_deltas, strict=True)
        for boxes, logits, deltas in levels:
            values, chosen = logits.topk(min(count, logits.shape[1]), dim=1)
            images = torch.arange(len(logits))[:, None]
            decoded = self.box2box_transform.apply_deltas(
                deltas[images, chosen].flatten(0, 1), boxes.tensor[chosen].flatten(0, 1)
            )
            proposals.append(decoded.unflatten(0, chosen.shape))
            best.append(values)
        limits = self.nms_thresh, count, self.post_nms_topk[False], self.min_box_size
        return find_top_rpn_proposals(proposals, best, image_sizes, *limits, False)
