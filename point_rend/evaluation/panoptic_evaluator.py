"""Panoptic quality of the outputs of a model, on data in COCO's panoptic format.

Cityscapes' panoptic labels (`createPanopticImgs.py` of cityscapesscripts) have the same format.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from point_rend.data.datasets.coco import read_panoptic
from point_rend.data.datasets.panoptic import segment_ids
from point_rend.data.loader.samples import UnusableDataError
from point_rend.evaluation.panoptic_quality import (
    Counts,
    as_quality_results,
    compare_segments,
    total,
)
from point_rend.evaluation.saving import FileSaver
from point_rend.utils.pictures import read_picture

logger = logging.getLogger(__name__)
TASK = "panoptic_seg"
Records = Sequence[Mapping[str, Any]]


class _Image(NamedTuple):
    """What was found in an image."""

    image_id: str
    counts: dict[int, Counts]
    prediction: dict[str, Any]


class PanopticEvaluator(DatasetEvaluator):
    """Panoptic quality, with the names of the metrics of Detectron2's evaluator.

    Args:
        dataset_name: A registered name, with `panoptic_json` and `panoptic_root` in its metadata.
        output_dir: Folder for the predictions.

    Raises:
        FileNotFoundError: If the file of the segments does not exist.
        ValueError: If it is not in COCO's panoptic format.
    """

    def __init__(self, dataset_name: str, output_dir: str) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._metadata = metadata
        self._name = dataset_name
        self._root = Path(PathManager.get_local_path(metadata.panoptic_root))
        self._json_file = metadata.panoptic_json
        content = read_panoptic(self._json_file)
        self._categories = content["categories"]
        self._truth = {str(x["image_id"]): x for x in content["annotations"]}
        self._ids = {
            is_thing: {number: identity for identity, number in known.items()}
            for is_thing, known in (
                (True, metadata.thing_dataset_id_to_contiguous_id),
                (False, metadata.stuff_dataset_id_to_contiguous_id),
            )
        }
        self._files = FileSaver(output_dir)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._images: list[_Image] = []

    def process(self, inputs: Records, outputs: Records) -> None:
        """Compare the segments of images with the ground truth.

        Args:
            inputs: Records of the data set, with "image_id" and "file_name".
            outputs: Per image "panoptic_seg": ids (H, W), and the segments or None, as the models
                of Detectron2 return them.

        Raises:
            UnusableDataError: If the ground truth of an image cannot be used.
        """
        for record, output in zip(inputs, outputs, strict=True):
            ids, segments = output[TASK]
            self._images.append(self._compare(record, ids.cpu().numpy().astype(np.int64), segments))

    def _compare(
        self, record: Mapping[str, Any], ids: np.ndarray, segments: Sequence[Any] | None
    ) -> _Image:
        image_id = str(record["image_id"])
        if segments is None:
            ids, segments = self._from_labels(ids)
        predicted = {
            x["id"]: self._ids[bool(x["isthing"])][x["category_id"]]
            if x.get("isthing") is not None
            else x["category_id"]
            for x in segments
        }
        truth = self._truth.get(image_id)
        if truth is None:
            raise UnusableDataError(f"{self._json_file} has no segments of image {image_id}")
        file = self._root / truth["file_name"]
        try:
            true_ids = segment_ids(read_picture(file, "RGB", what="panoptic labels"))
            counts = compare_segments(
                ids,
                predicted,
                true_ids,
                {x["id"]: x["category_id"] for x in truth["segments_info"]},
                [x["id"] for x in truth["segments_info"] if x.get("iscrowd", 0)],
            )
        except OSError as error:
            raise UnusableDataError(f"{self._name}: {error}") from error
        except ValueError as error:
            raise UnusableDataError(f"{self._name}: {file}: {error}") from error
        name = f"{Path(record['file_name']).stem}.png"
        found = [{"id": identity, "category_id": x} for identity, x in predicted.items()]
        prediction = {"image_id": record["image_id"], "file_name": name, "segments_info": found}
        return _Image(image_id, counts, prediction)

    def _from_labels(self, labels: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Return ids and segments of labels: class times `label_divisor` plus a number, or -1."""
        classes = {int(x): int(x) // self._metadata.label_divisor for x in np.unique(labels)}
        segments = [
            {"id": label + 1, "category_id": number, "isthing": number in self._ids[True]}
            for label, number in classes.items()
            if label >= 0
        ]
        return labels + 1, segments

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Evaluate the images of all processes.

        Returns:
            Metrics in percent under "panoptic_seg"; None in all processes but the first.

        Raises:
            NotSavedError: If the predictions could not be saved; the metrics have been logged.
        """
        gathered = comm.gather(self._images)
        if not comm.is_main_process():
            return None
        # In the same order with any number of processes; a sampler may give an image twice.
        images = {image.image_id: image for of_rank in gathered for image in of_rank}
        ordered = [images[key] for key in sorted(images)]
        if len(ordered) < len(self._truth):
            logger.warning(
                "%s: %d of the %d images of %s were evaluated",
                self._name,
                len(ordered),
                len(self._truth),
                self._json_file,
            )
        results = as_quality_results(total(x.counts for x in ordered), self._categories)
        rows = {"all": "", "things": "_th", "stuff": "_st"}
        for name, ending in rows.items():
            table = {key: results[f"{key}{ending}"] for key in ("PQ", "SQ", "RQ")}
            logger.info("Panoptic quality of %s:\n%s", name, create_small_table(table))
        predictions = [x.prediction for x in ordered]
        content = {"annotations": predictions, "categories": self._categories}
        self._files.save_json("predictions.json", content)
        self._files.finish()
        return {TASK: results}
