"""Mapper from a record of a data set to the input of a model."""

from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data.transforms import TransformList
from detectron2.structures import BitMasks, PolygonMasks, polygons_to_bitmask
from PIL import Image

from point_rend.data.augmentation import build_augmentations
from point_rend.ground_truth.shared_masks import SharedMasks


class NamingDatasetMapper(DatasetMapper):
    """Detectron2's mapper with the augmentation of this package; its errors name the image.

    The masks are :class:`SharedMasks`: small on their way from the worker, stored once in training.
    With the format polygon, RLE masks remain bitmasks.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read the arguments from a config."""
        arguments = super().from_config(cfg, is_train)
        return arguments | {"augmentations": build_augmentations(cfg, is_train=is_train)}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read and transform one record.

        Args:
            dataset_dict: A record in Detectron2's standard format.

        Returns:
            The result of Detectron2's `DatasetMapper`, with shared masks as "gt_masks".

        Raises:
            ValueError: If the image cannot be decoded, or if it or its annotations contradict the
                record.
        """
        try:
            return super().__call__(dataset_dict)
        # Pillow reports a broken file as any of the first three, by format.
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"image {dataset_dict.get('image_id')!r}, file {dataset_dict['file_name']}, "
                f"cannot be used: {error}"
            ) from error

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: TransformList, image_shape: tuple[int, int]
    ) -> None:
        objects = [x for x in dataset_dict.pop("annotations") if not x.get("iscrowd", 0)]
        for annotation in objects:
            if not self.use_instance_mask:
                annotation.pop("segmentation", None)
            if not self.use_keypoint:
                annotation.pop("keypoints", None)
            utils.transform_instance_annotations(
                annotation,
                transforms,
                image_shape,
                keypoint_hflip_indices=self.keypoint_hflip_indices,
            )
        segmentations = [x.pop("segmentation") for x in objects if "segmentation" in x]
        instances = utils.annotations_to_instances(objects, image_shape)
        if segmentations:
            if len(segmentations) < len(objects):
                raise ValueError(f"{len(objects)} objects, but {len(segmentations)} masks")
            masks = [self._mask(segmentation, image_shape) for segmentation in segmentations]
            instances.gt_masks = SharedMasks.cat(masks)
            if self.recompute_boxes:
                instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)

    def _mask(
        self, segmentation: list[np.ndarray] | np.ndarray, image_shape: tuple[int, int]
    ) -> SharedMasks:
        """Store a mask of polygons or pixels (H, W) in the mapper's format."""
        if isinstance(segmentation, list):
            if self.instance_mask_format == "polygon":
                return SharedMasks.of(PolygonMasks([segmentation]), image_shape)
            segmentation = polygons_to_bitmask(segmentation, *image_shape)
        # A copy: flipping leaves negative strides, and resizing read-only pixels.
        pixels = np.array(segmentation, dtype=bool, order="C")
        return SharedMasks.of(BitMasks(pixels[None]), image_shape)
