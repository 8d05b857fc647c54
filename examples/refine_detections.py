"""Masks for another detector: refine_detections.py model_final.pth photo.jpg boxes.json masks.png.

The boxes are JSON as `results[0].to_json()` of Ultralytics writes it. In a program, the functions
of `supervision.Detections` read the results of many detectors, such as `from_ultralytics`.
"""

import json
import sys

import numpy as np
import supervision as sv

from point_rend import Predictor
from point_rend.integrations.supervision import refine
from point_rend.utils.pictures import read_picture
from point_rend.visualization.drawing import write_names
from point_rend.visualization.layout import save_picture


def read_boxes(file):
    """Return the detections of a file of boxes."""
    with open(file, encoding="utf-8") as text:
        found = json.load(text)
    boxes = [[x["box"][side] for side in ("x1", "y1", "x2", "y2")] for x in found]
    return sv.Detections(
        xyxy=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        confidence=np.array([x["confidence"] for x in found], dtype=np.float64),
        class_id=np.array([x["class"] for x in found], dtype=np.int64),
        data={"class_name": np.array([x["name"] for x in found], dtype=str)},
    )


def main(model, photo, boxes, output, *class_map):
    """Draw a mask for each box of a photo; further arguments map classes, as in `car=auto`."""
    predictor, image = Predictor.from_checkpoint(model), read_picture(photo)
    mapping = dict(pair.split("=") for pair in class_map)
    detections = refine(predictor, image, read_boxes(boxes), mapping or None)
    picture = sv.MaskAnnotator(opacity=0.6).annotate(image, detections)
    names = [str(name) for name in detections.data["class_name"]]
    masks = np.asarray(detections.mask)
    save_picture(output, write_names(picture, masks, names))
    for name, mask in zip(names, masks, strict=True):
        print(f"{name}: {mask.sum()} pixels")
    return detections


if __name__ == "__main__":
    main(*sys.argv[1:])
