"""The ROI heads of PointRend: Detectron2's, compatible with old configs and checkpoints."""

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor

from point_rend.checkpoint.legacy_keys import upgrade_state_dict
from point_rend.ground_truth.shared_masks import share_masks

logger = logging.getLogger(__name__)


class PointRendROIHeads(StandardROIHeads):
    """:class:`StandardROIHeads` that accept configs and checkpoints of the first PointRend.

    The first version named the mask head ``CoarseMaskHead`` and stored the point head next to it.
    """

    _version = 2

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict) -> dict:
        if cfg.MODEL.MASK_ON and cfg.MODEL.ROI_MASK_HEAD.NAME == "CoarseMaskHead":
            logger.warning(
                "MODEL.ROI_MASK_HEAD.NAME CoarseMaskHead is a name of the first version: it is "
                "read as PointRendMaskHead with POOLER_TYPE ''"
            )
            cfg = cfg.clone()
            cfg.defrost()
            mask_head = cfg.MODEL.ROI_MASK_HEAD
            mask_head.NAME, mask_head.POOLER_TYPE = "PointRendMaskHead", ""
        return super()._init_mask_head(cfg, input_shape)

    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: Sequence[Instances]
    ) -> list[Instances]:
        """Label proposals as Detectron2 does, without copying a mask for each of them."""
        return super().label_and_sample_proposals(proposals, share_masks(targets))

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        upgrade_state_dict(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class PointRendCascadeROIHeads(PointRendROIHeads, CascadeROIHeads):
    """:class:`CascadeROIHeads` whose mask head is trained on the boxes that it renders.

    At inference, the masks and keypoints are those of the boxes of the last stage. In training
    Detectron2 takes those of the proposals, before the first stage. Here MODEL.ROI_BOX_HEAD.
    TRAIN_ON_PRED_BOXES, which Detectron2 reads for heads of one stage only, takes the boxes that
    the last stage predicts for what it has matched with objects; at most as many of an image as
    there are objects among the sampled proposals (POSITIVE_FRACTION).
    """

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Detect objects, or compute the losses; arguments as of :meth:`StandardROIHeads.forward`.

        Returns:
            The detections and no losses; in training, the sampled proposals and the losses.
        """
        if not (self.training and self.train_on_pred_boxes):
            results: tuple[list[Instances], dict[str, Tensor]] = super().forward(
                images, features, proposals, targets
            )
            return results
        assert targets is not None
        targets = share_masks(targets)
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses, labeled, boxes = self._train_stages(features, proposals, targets)
        regions = [
            self._region(*of_image) for of_image in zip(labeled, boxes, targets, strict=True)
        ]
        losses |= self._forward_mask(features, regions)
        losses |= self._forward_keypoint(features, regions)
        return proposals, losses

    def _train_stages(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances]
    ) -> tuple[dict[str, Tensor], list[Instances], Sequence[Tensor]]:
        """Return the losses of all stages, the labeled boxes of the last one, and its predictions.

        The predictions of an image with R boxes are (R, 4).
        """
        levels = [features[name] for name in self.box_in_features]
        sizes = [x.image_size for x in proposals]
        losses: dict[str, Tensor] = {}
        boxes: Sequence[Tensor] = ()
        for stage, predictor in enumerate(self.box_predictor):
            if stage:
                proposals = self._create_proposals_from_boxes(boxes, sizes)
                proposals = self._match_and_label_boxes(proposals, stage, targets)
            predictions = self._run_stage(levels, proposals, stage)
            boxes = [x.detach() for x in predictor.predict_boxes(predictions, proposals)]
            with get_event_storage().name_scope(f"stage{stage}"):
                of_stage = predictor.losses(predictions, proposals)
            losses |= {f"{name}_stage{stage}": loss for name, loss in of_stage.items()}
        return losses, proposals, boxes

    @torch.no_grad()
    def _region(self, labeled: Instances, boxes: Tensor, target: Instances) -> Instances:
        """Return what the last stage has matched in an image, with its predictions and objects."""
        most = int(self.batch_size_per_image * self.positive_fraction)
        chosen = (labeled.gt_classes < self.num_classes).nonzero()[:most, 0]
        region = Instances(labeled.image_size, proposal_boxes=Boxes(boxes[chosen]))
        region.gt_classes = labeled.gt_classes[chosen]
        if len(target):
            overlaps = pairwise_iou(target.gt_boxes, labeled.proposal_boxes[chosen])
            matched, _ = self.proposal_matchers[-1](overlaps)
            for name, value in target.get_fields().items():
                if name.startswith("gt_") and name != "gt_classes":
                    region.set(name, value[matched])
        return region
