"""The models that `predict.py` and `visualize_points.py` run: options, weights and classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import AugInput, AugmentationList
from detectron2.modeling import build_model
from PIL import Image

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.config.checks import check_config, check_test_time_augmentation
from point_rend.data.augmentation import build_augmentations
from point_rend.data.checks.image_files import MODES_BEYOND_8_BITS
from point_rend.data.datasets.classes import summary
from point_rend.engine import preflight
from point_rend.evaluation.tta import build_test_time_augmentation
from point_rend.rendering.uncertainty import label_map


class Segment(NamedTuple):
    """Pixels of one image that belong together."""

    mask: np.ndarray  # (H, W) bool
    category: int
    is_thing: bool = False
    score: float | None = None
    box: tuple[float, ...] = ()  # x0, y0, x1, y1


class Prediction(NamedTuple):
    """What a model says of one image."""

    shown: list[Segment]  # in a picture
    instances: list[Segment]
    labels: np.ndarray | None  # (H, W)


# The model
class WholeModelCheckpointer(SafeDetectionCheckpointer):
    """Refuses a checkpoint that leaves parts of the model random, such as that of another kind."""

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        state = self.model.state_dict(keep_vars=True)
        lacking = set(incompatible.missing_keys)
        loaded = {id(tensor) for key, tensor in state.items() if key not in lacking}
        # A parameter that the model has under several names is there under one of them.
        missing = [key for key in state if key in lacking and id(state[key]) not in loaded]
        if missing:
            raise ValueError(
                f"{self._source} lacks {summary(missing)} of the {len(state)} parameters: expected "
                "weights of this model"
            )
        return incompatible


class Predictor:
    """A model with all that lies between a picture and its result.

    Args:
        cfg: config of the model and its weights; they are random if MODEL.WEIGHTS is empty.
        allow_unsafe: load a checkpoint that runs code.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if config, checkpoint and machine do not fit together.
    """

    def __init__(self, cfg: CfgNode, *, allow_unsafe: bool = False) -> None:
        check_config(cfg, training=False)
        check_test_time_augmentation(cfg)
        preflight.check_machine(cfg, 1)
        self.model = build_model(cfg).eval()
        WholeModelCheckpointer(self.model, allow_unsafe=allow_unsafe).load(cfg.MODEL.WEIGHTS)
        self.forward = self.model
        if cfg.TEST.AUG.ENABLED:
            self.forward = build_test_time_augmentation(cfg, self.model)
        self.augmentations = AugmentationList(build_augmentations(cfg, is_train=False))
        self.format = cfg.INPUT.FORMAT

    def inputs(self, image: np.ndarray) -> dict[str, Any]:
        """Prepare a picture (H, W, 3) uint8, BGR, for the model."""
        height, width = image.shape[:2]
        augmented = AugInput(image[:, :, ::-1] if self.format == "RGB" else image)
        self.augmentations(augmented)
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        return {"image": torch.from_numpy(pixels), "height": height, "width": width}

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Segment pictures together."""
        return [_prediction(x) for x in self.forward([self.inputs(image) for image in images])]


def _prediction(result: Mapping[str, Any]) -> Prediction:
    """Convert a model's result for one image."""
    instances = _instances(result["instances"].to("cpu")) if "instances" in result else []
    labels, shown = None, instances
    if "sem_seg" in result:
        labels = label_map(result["sem_seg"]).cpu().numpy()
        labels = labels.astype(np.uint8 if len(result["sem_seg"]) <= 256 else np.uint16)
        shown = [Segment(labels == k, int(k)) for k in np.unique(labels)]
    if "panoptic_seg" in result:
        segments, known = result["panoptic_seg"]
        ids = segments.cpu().numpy()
        shown = [
            Segment(ids == x["id"], x["category_id"], x["isthing"], x.get("score")) for x in known
        ]
    return Prediction(shown, instances, labels)


def _instances(found: Any) -> list[Segment]:
    rows = zip(
        found.pred_masks.numpy(),
        found.pred_classes.tolist(),
        found.scores.tolist(),
        found.pred_boxes.tensor.tolist(),
        strict=True,
    )
    return [Segment(mask, k, True, score, tuple(box)) for mask, k, score, box in rows]


def read_picture(file: Path) -> np.ndarray:
    """Read an image as it is to be looked at: (H, W, 3) uint8, BGR.

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        with Image.open(file) as image:
            if image.mode.startswith(MODES_BEYOND_8_BITS):
                raise ValueError(f"is of mode {image.mode}: expected 8 bits per channel")
        return np.ascontiguousarray(read_image(str(file), "BGR"))
    # Pillow reports a broken file as any of the first three, by format.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: {error}") from error
