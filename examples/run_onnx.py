"""Run an exported model with NumPy, onnxruntime and Pillow: run_onnx.py model.onnx photo.jpg."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def shares(length, side, start, end, margin=1):
    """Return the pixels of a line between two ends, and the share of each cell in each of them."""
    pixels = np.arange(max(int(start) - 1, 0), min(int(end) + 2, length))
    cells = ((pixels + 0.5 - start) / (end - start) * side - 0.5).clip(-margin, side - 1 + margin)
    return pixels, np.maximum(1 - np.abs(cells[:, None] - np.arange(side)), 0).astype(np.float32)


def encode(mask):
    """Return a mask (height, width) in COCO's compressed run-length encoding."""
    changes, text = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False)), ""
    counts = np.diff(changes, prepend=0, append=mask.size).tolist()
    for n, count in enumerate(counts):
        number = count - (counts[n - 2] if n > 2 else 0)
        last = max(number, ~number).bit_length() // 5  # of its parts of five bits, lowest first
        text += "".join(chr(48 + (number >> 5 * k & 31) + 32 * (k < last)) for k in range(last + 1))
    return {"size": list(mask.shape), "counts": text}


def segment(session, picture):
    """Return name, score, box (x0, y0, x1, y1) and mask of each object, or the mask of a class."""
    model = json.loads(session.get_modelmeta().custom_metadata_map["point_rend"])
    (model.get("channels", 3), model.get("bits", 8)) == (3, 8) or sys.exit("not an 8-bit RGB model")
    picture, names = ImageOps.exif_transpose(picture), model["classes"] or range(1 << 20)
    picture = picture.point(lambda x: x / 256, "L") if picture.mode[0] == "I" else picture
    width, height = size = np.array(picture.size)
    size = size * (model["min_size"] / size.min() if model["min_size"] else 1)
    size = size * min(1, (model["max_size"] if model["min_size"] else size.max()) / size.max())
    columns, rows = size = np.maximum(size + 0.5, 1).astype(np.int64)
    pixels = np.asarray(picture.convert("RGB").resize(size.tolist(), 2), np.float32)  # bilinear
    pixels = (pixels[..., ::-1] if model["image_format"] == "BGR" else pixels).transpose(2, 0, 1)
    pixels = np.pad(pixels, [(0, 0), *((0, -n % model["divisor"]) for n in (rows, columns))])
    first, *others = session.run(None, {"images": pixels[None], "sizes": size[None, ::-1]})
    if model["task"] == "sem_seg":  # the first output has the logits (1, K, H, W)
        down, across = shares(height, rows, 0, height, 0)[1], shares(width, columns, 0, width, 0)[1]
        labels = (down @ first[0, :, :rows, :columns] @ across.T).argmax(0)
        return [{"name": names[k], "mask": encode(labels == k)} for k in np.unique(labels)]
    boxes, found = first * np.tile(picture.size / size, 2).astype(np.float32), []
    for box, score, index, _, mask in zip(boxes, *others, strict=True):
        if (box[2:] > box[:2]).all():
            full, side = np.zeros((height, width), bool), mask.shape[1]
            (x, across), (y, down) = (shares(picture.size[k], side, *box[k::2]) for k in (0, 1))
            full[np.ix_(y, x)] = down @ mask[0] @ across.T >= 0.5
            one = {"name": names[index], "score": float(score), "box": box.round(2).tolist()}
            found.append(one | {"mask": encode(full)})
    return found


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    print(json.dumps(segment(session, Image.open(sys.argv[2])), indent=1))
