"""Mapper from a record of a data set to the input of a model."""

import copy
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data.transforms import AugInput, PadTransform, TransformList
from detectron2.structures import BitMasks, PolygonMasks, polygons_to_bitmask

from point_rend.config.defaults import pixel_format, with_defaults
from point_rend.data.augmentation import as_input, build_augmentations
from point_rend.data.point_supervision import add_points, have_points
from point_rend.ground_truth.shared_masks import SharedMasks
from point_rend.utils.bands import read_input
from point_rend.utils.pictures import PictureError, read_label_map
from point_rend.utils.pixel_format import PixelFormat


class NamingDatasetMapper(DatasetMapper):
    """Detectron2's mapper with the augmentation of this package; its errors name the image.

    The masks are :class:`SharedMasks`: small on their way from the worker, stored once in training.
    With the format polygon, RLE masks remain bitmasks.

    Args:
        is_train: Whether the mapper is for training.
        pixel_format: Pixels that the model expects; by default those of `image_format`, 8 bits.
        point_supervision: Whether objects with annotated points have them in place of masks.
        sample_points: Number of points drawn from those of each object; 0 takes all.
        arguments: Those of Detectron2's mapper.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        pixel_format: PixelFormat | None = None,
        point_supervision: bool = False,
        sample_points: int = 0,
        **arguments: Any,
    ) -> None:
        super().__init__(is_train, **arguments)
        self.point_supervision = point_supervision
        self.sample_points = sample_points
        self.pixel_format = pixel_format or PixelFormat(self.image_format)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read the arguments from a config."""
        if not is_train and cfg.MODEL.KEYPOINT_ON:  # an evaluation needs no training set
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.KEYPOINT_ON = False
        arguments = super().from_config(cfg, is_train)
        jitter = is_train and with_defaults(cfg).INPUT.LSJ.ENABLED
        return arguments | {
            "augmentations": build_augmentations(cfg, is_train=is_train),
            "recompute_boxes": arguments["recompute_boxes"] or (jitter and cfg.MODEL.MASK_ON),
            "pixel_format": pixel_format(cfg),
            "point_supervision": cfg.INPUT.get("POINT_SUP", False),
            "sample_points": cfg.INPUT.get("SAMPLE_POINTS", 0),
        }

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
        file_name = dataset_dict["file_name"]
        try:
            return self._map(copy.deepcopy(dataset_dict))
        except (OSError, ValueError) as error:
            reason: object = error
            if isinstance(error, PictureError) and error.path == str(file_name):
                reason = error.fault
            raise ValueError(
                f"image {dataset_dict.get('image_id')!r}, file {file_name}, cannot be used: "
                f"{reason}"
            ) from error

    def _map(self, record: dict[str, Any]) -> dict[str, Any]:
        """Read and transform a record, in place."""
        image = read_input(record["file_name"], self.pixel_format)
        utils.check_image_size(record, image)
        labels = None
        if "sem_seg_file_name" in record:
            labels = _read_labels(record.pop("sem_seg_file_name"), image.shape[:2])
        augmented = AugInput(image, sem_seg=labels)
        transforms = self.augmentations(augmented)
        image_shape = augmented.image.shape[:2]
        record["image"] = as_input(augmented.image)
        if labels is not None:
            record["sem_seg"] = torch.from_numpy(augmented.sem_seg.astype(np.int64))
        if self.proposal_topk is not None:
            utils.transform_proposals(
                record, image_shape, transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, image_shape)
        return record

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: TransformList, image_shape: tuple[int, int]
    ) -> None:
        objects = [x for x in dataset_dict.pop("annotations") if not x.get("iscrowd", 0)]
        transforms = _padding_background(transforms)
        by_points = self.point_supervision and have_points(objects)
        for annotation in objects:
            if not self.use_instance_mask or by_points:
                annotation.pop("segmentation", None)
            if not self.use_keypoint:
                annotation.pop("keypoints", None)
            elif not annotation.get("keypoints"):  # of a category without them
                annotation["keypoints"] = [0.0] * (3 * len(self.keypoint_hflip_indices))
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
        if by_points:
            add_points(instances, objects, transforms, self.sample_points)
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


def _padding_background(transforms: TransformList) -> TransformList:
    """Return transforms of masks: Detectron2's pad them as label maps, with the ignored label."""
    for_masks = []
    for transform in transforms.transforms:
        if isinstance(transform, PadTransform):
            transform = copy.copy(transform)
            transform.seg_pad_value = 0
        for_masks.append(transform)
    return TransformList(for_masks)


def build_validation_mapper(cfg: CfgNode) -> NamingDatasetMapper:
    """Build a mapper with the ground truth of a training and the image sizes of an evaluation."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.AUG.ENABLED = False  # with it, images are not resized here
    arguments = NamingDatasetMapper.from_config(cfg, is_train=True)
    # Nothing is cut off, so boxes stay as they are annotated.
    as_in_tests = {"augmentations": build_augmentations(cfg, is_train=False)}
    return NamingDatasetMapper(**arguments | as_in_tests | {"recompute_boxes": False})


def _read_labels(file_name: str, image_shape: tuple[int, int]) -> np.ndarray:
    """Read a label map (H, W) uint8, and check its size."""
    labels = read_label_map(file_name)
    if labels.dtype != np.uint8:  # other types are resized in another way
        raise ValueError(f"label map {file_name} has values up to {labels.max()}: expected 255")
    if labels.shape != image_shape:
        raise ValueError(
            f"label map {file_name} is of (height, width) {labels.shape}, the image {image_shape}"
        )
    return labels
