"""Scores of result files, computed after the fact: mask AP by COCO's rule and by Boundary IoU's."""

import json
from collections.abc import Mapping
from pathlib import Path

from faster_coco_eval import COCO, COCOeval_faster

# Width of the band along a mask's boundary over the image diagonal.
BOUNDARY_DILATION_RATIO = 0.02


def average_precision(json_file: Path, results_file: Path) -> dict[str, float]:
    """Compute the mask AP of a result file in percent.

    Args:
        json_file: COCO annotations.
        results_file: COCO results with masks, as ``coco_instances_results.json``.

    Returns:
        AP, AP50, AP75 and boundary AP; 0 without any detection.

    Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation".
    """
    if not json.loads(results_file.read_text()):
        return dict.fromkeys(("AP", "AP50", "AP75", "boundary AP"), 0.0)
    scores = {}
    for kind in ("segm", "boundary"):
        truth = COCO(str(json_file))
        evaluation = COCOeval_faster(
            truth,
            truth.loadRes(str(results_file)),
            kind,
            boundary_dilation_ratio=BOUNDARY_DILATION_RATIO,
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        scores[kind] = [100 * float(value) for value in evaluation.stats[:3]]
    named = dict(zip(("AP", "AP50", "AP75"), scores["segm"], strict=True))
    return named | {"boundary AP": scores["boundary"][0]}


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out one line of figures per name, all with the same columns."""
    columns = list(next(iter(rows.values())))
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{column:>14}" for column in columns)]
    for name, scores in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{scores[column]:14.1f}" for column in columns))
    return "\n".join(lines)
