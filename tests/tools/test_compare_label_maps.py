"""The tool that compares semantic results: planted truths, and errors."""

import json
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest

from tools import compare_label_maps


def predictions(folder: Path, images: Path, maps: dict[str, np.ndarray], name: str) -> Path:
    records = []
    for stem, labels in maps.items():
        for k in np.unique(labels):
            rle = mask_util.encode(np.asfortranarray((labels == k).astype(np.uint8)))
            rle["counts"] = rle["counts"].decode()
            file_name = str(images / f"{stem}.jpg")
            records.append({"file_name": file_name, "category_id": int(k), "segmentation": rle})
    path = folder / f"{name}.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    truth, shifted = {}, {}
    for number in range(3):
        label = np.zeros((40, 60), dtype=np.uint8)
        label[:, 20 + number :] = 1
        label[30:, :] = 255
        truth[str(number)] = np.where(label == 255, 0, label)
        shifted[str(number)] = np.roll(truth[str(number)], 2, axis=1)
        cv2.imwrite(str(images / f"{number}.jpg"), np.full((40, 60, 3), 90, dtype=np.uint8))
        cv2.imwrite(str(labels / f"{number}.png"), label)
    perfect = predictions(tmp_path, images, truth, "perfect")
    wrong = predictions(tmp_path, images, shifted, "shifted")
    return [
        *("--images", str(images), "--labels", str(labels), "--classes", "left,right"),
        *("--results", f"shifted={wrong}", "--results", f"perfect={perfect}"),
        *("--output", str(tmp_path / "pictures"), "--num-images", "2"),
    ]


def figures(table: str) -> dict[str, list[float]]:
    rows = [line.split() for line in table.splitlines()]
    return {row[0]: [float(x) for x in row[1:]] for row in rows if row and row[0] != "mIoU"}


def test_the_truth_scores_100_and_a_shift_costs_boundaries_most(arguments, capsys):
    compare_label_maps.main(arguments)
    table = capsys.readouterr().out.split("Pictures")[0]
    rows = figures(table)
    assert rows["perfect"] == [100, 100]
    # 2 + 2 of 60 columns change sides; the bands, one pixel wide, hardly meet
    assert 80 < rows["shifted"][0] < 95
    assert rows["shifted"][1] < 80
    folder = Path(arguments[arguments.index("--output") + 1])
    pictures = sorted(folder.iterdir())
    assert [picture.name for picture in pictures] == ["0.png", "1.png"]
    assert cv2.imread(str(pictures[0])).shape[1] == 4 * 60 + 3 * 8


def test_a_missing_label_map_is_named(arguments, tmp_path):
    (tmp_path / "labels" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.png"):
        compare_label_maps.main(arguments)


def test_a_file_of_another_kind_is_named(arguments, tmp_path):
    (tmp_path / "shifted.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"shifted\.json is not a sem_seg_predictions\.json"):
        compare_label_maps.main(arguments)


def test_two_results_of_one_name_are_refused(arguments, capsys):
    twice = [word.replace("shifted=", "perfect=") for word in arguments]
    with pytest.raises(SystemExit) as stop:
        compare_label_maps.main(twice)
    assert stop.value.code == 2
    assert "--results: the name 'perfect' is given 2 times" in capsys.readouterr().err
