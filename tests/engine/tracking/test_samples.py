"""Pictures of predictions of any model and data set."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from point_rend.engine.tracking.samples import filled, put_samples
from point_rend.engine.tracking.writer import pictures_of
from point_rend.utils.pixel_format import PixelFormat

SIZE = (40, 60)
BOX = [10.0, 5.0, 30.0, 25.0]


class Planted(nn.Module):
    """Returns the same result for each image."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__()
        self.result = result

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self.result for _ in batch]


def instances(**fields: Any) -> dict[str, Any]:
    boxes = Boxes(torch.tensor([BOX]))
    scores, classes = torch.tensor([0.9]), torch.tensor([2])
    found = Instances(SIZE, pred_boxes=boxes, scores=scores, pred_classes=classes, **fields)
    return {"instances": found}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two images of the same name, as the frames of two videos."""
    paths = [tmp_path / video / "0001.png" for video in "ab"]
    for path in paths:
        path.parent.mkdir()
        cv2.imwrite(str(path), np.full((*SIZE, 3), 90, np.uint8))
    return list(map(str, paths))


def pictures(result: dict[str, Any], files: list[str], **metadata: Any) -> dict[str, np.ndarray]:
    loader = [[{"file_name": file}] if file else [{}] for file in files]
    with EventStorage() as storage:
        put_samples(
            Planted(result), loader, Metadata(**metadata), count=4, pixel_format=PixelFormat()
        )
        return pictures_of(storage)[0]


@pytest.mark.parametrize(
    "result",
    [
        instances(pred_masks=torch.ones(1, *SIZE, dtype=torch.bool)),
        instances(),  # of a model without masks
        instances(pred_keypoints=torch.rand(1, 5, 3)),
        {"sem_seg": torch.eye(3)[:, :1, None].expand(3, *SIZE)},
        {"panoptic_seg": (torch.ones(SIZE), [{"id": 1, "category_id": 7, "isthing": False}])},
    ],
    ids=["masks", "boxes", "keypoints", "semantic", "panoptic"],
)
@pytest.mark.parametrize("names", [{}, {"thing_classes": ["a"], "stuff_classes": ["b"]}])
def test_each_image_has_a_picture_even_where_classes_have_no_names_and_images_the_same(
    result: dict[str, Any], names: dict[str, list[str]], files: list[str]
) -> None:
    found = pictures(result, files, **names)
    assert list(found) == ["predictions/0001", "predictions/0001 (2)"]
    for picture in found.values():
        assert picture.shape == (*SIZE, 3)
        assert picture.std() > 0


@pytest.mark.parametrize(
    ("file", "words"), [("", "an image without file_name"), ("gone.png", "no image gone.png")]
)
def test_an_image_that_cannot_be_drawn_ends_the_pictures_alone(
    file: str, words: str, files: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    found = pictures(instances(), [files[0], file, files[1]])
    assert list(found) == ["predictions/0001"]
    assert words in caplog.text


def test_a_filled_box_has_the_pixels_whose_centers_it_holds() -> None:
    box = torch.tensor([[1.5, 0.0, 4.4, 2.6], [-5.0, -5.0, 99.0, 99.0]])
    expected = torch.zeros(2, 4, 5, dtype=torch.bool)
    expected[0, :3, 1:4] = True
    expected[1] = True
    masks: Tensor = filled(box, (4, 5))
    assert torch.equal(masks, expected)
