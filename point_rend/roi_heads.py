"""The ROI heads of PointRend: Detectron2's, compatible with old configs and checkpoints."""

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.modeling import StandardROIHeads
from detectron2.structures import Instances

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
