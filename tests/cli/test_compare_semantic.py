"""`pointrend compare-semantic`: planted ground truth, and bad input."""

import json
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest

from point_rend.cli import compare_semantic
from point_rend.evaluation import semantic_comparison


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
    gt, shifted = {}, {}
    for number in range(3):
        label = np.zeros((40, 60), dtype=np.uint8)
        label[:, 20 + number :] = 1
        label[30:, :] = 255
        gt[str(number)] = np.where(label == 255, 0, label)
        shifted[str(number)] = np.roll(gt[str(number)], 2, axis=1)
        cv2.imwrite(str(images / f"{number}.jpg"), np.full((40, 60, 3), 90, dtype=np.uint8))
        cv2.imwrite(str(labels / f"{number}.png"), label)
    perfect = predictions(tmp_path, images, gt, "perfect")
    wrong = predictions(tmp_path, images, shifted, "shifted")
    return [
        *("--images", str(images), "--labels", str(labels), "--classes", "left,right"),
        *("--results", f"shifted={wrong}", "--results", f"perfect={perfect}"),
        *("--output", str(tmp_path / "pictures"), "--num-images", "2"),
    ]


def metrics(table: str) -> dict[str, list[float]]:
    rows = [line.split() for line in table.splitlines()]
    return {row[0]: [float(x) for x in row[1:]] for row in rows if row and row[0] != "mIoU"}


def test_the_ground_truth_scores_100_and_a_shift_costs_boundaries_most(arguments, capsys):
    compare_semantic.main(arguments)
    table = capsys.readouterr().out.split("Pictures")[0]
    rows = metrics(table)
    assert rows["perfect"] == [100, 100]
    # 2 + 2 of 60 columns change their class; the bands, one pixel wide, hardly overlap.
    assert 80 < rows["shifted"][0] < 95
    assert rows["shifted"][1] < 80
    folder = Path(arguments[arguments.index("--output") + 1])
    pictures = sorted(folder.iterdir())
    assert [picture.name for picture in pictures] == ["0.png", "1.png"]
    assert cv2.imread(str(pictures[0])).shape[1] == 4 * 60 + 3 * 8


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line with which the command refuses its input."""
    with pytest.raises(SystemExit) as stop:
        compare_semantic.main(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def changed(arguments: list[str], flag: str, value: object) -> list[str]:
    place = arguments.index(flag) + 1
    return [*arguments[:place], str(value), *arguments[place + 1 :]]


def test_a_missing_label_map_is_named_before_the_work(arguments, tmp_path, capsys):
    (tmp_path / "labels" / "1.png").unlink()
    label_file = tmp_path / "labels" / "1.png"
    assert f"there is no label map {label_file}" in refusal(arguments, capsys)
    assert not (tmp_path / "pictures").exists()


def test_invalid_label_maps_and_photographs_are_named(arguments, tmp_path, capsys):
    for file in (tmp_path / "images" / "1.jpg", tmp_path / "labels" / "0.png"):
        file.write_bytes(b"text")
        assert f"{file} is not an image, but a text" in refusal(arguments, capsys)


def test_predictions_without_a_label_map_of_their_size_are_named(arguments, tmp_path, capsys):
    file = tmp_path / "labels" / "1.png"
    cv2.imwrite(str(file), np.zeros((40, 50), np.uint8))
    error = refusal(arguments, capsys)
    assert f"{file} and 'shifted', with 2 --classes: expected a prediction and a label map" in error


@pytest.mark.parametrize(
    "text", ['{"a": 1}', '[{"image_id": 1, "category_id": 1, "bbox": [], "score": 1}]', "[1]"]
)
def test_a_file_of_another_kind_is_named(arguments, tmp_path, capsys, text):
    (tmp_path / "shifted.json").write_text(text)
    error = refusal(arguments, capsys)
    assert (
        "shifted.json is not a sem_seg_predictions.json as `pointrend evaluate` writes it" in error
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [("[{", "is truncated or not JSON: "), ("[]", "has no predictions: expected some for every")],
)
def test_a_file_that_is_broken_or_empty_is_named(arguments, tmp_path, capsys, text, message):
    (tmp_path / "perfect.json").write_text(text)
    assert f"perfect.json {message}" in refusal(arguments, capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 2}, "is of class 2, expected 0 to 1, since --classes has 2"),
        ({"category_id": -1}, "is of class -1, expected 0 to 1"),
        (
            {"file_name": "/elsewhere/0.jpg"},
            "refers to /elsewhere/0.jpg, which is not in --images",
        ),
        ({"segmentation": {"size": [40, 59], "counts": "0"}}, "has an RLE of size (40, 59), the"),
        ({"segmentation": {"size": [40, 60], "counts": "0"}}, "has an RLE of 0 pixels"),
    ],
)
def test_an_invalid_prediction_is_named(arguments, tmp_path, capsys, change, message):
    file = tmp_path / "shifted.json"
    records = json.loads(file.read_text())
    records[1] |= change
    file.write_text(json.dumps(records))
    assert f"shifted.json: prediction 1 {message}" in refusal(arguments, capsys)


def test_results_of_different_images_are_refused(arguments, tmp_path, capsys):
    file = tmp_path / "shifted.json"
    records = [x for x in json.loads(file.read_text()) if not x["file_name"].endswith("2.jpg")]
    file.write_text(json.dumps(records))
    error = refusal(arguments, capsys)
    assert (
        "expected the same images in all, but 2.jpg is in 'perfect' and not in 'shifted'" in error
    )


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--images", "nowhere", "--images: there is no folder nowhere"),
        ("--labels", "nowhere", "--labels: there is no folder nowhere"),
        ("--images", "labels", "which is not in --images labels"),
        ("--classes", "nowhere.txt", "the file of the class names does not exist: 'nowhere.txt'"),
        ("--classes", "one", "is of class 1, expected 0 to 0, since --classes has 1"),
        ("--output", "perfect.json", "--output perfect.json cannot be written: perfect.json is no"),
        ("--num-images", "-1", "--num-images: expected 0 or more, got -1"),
    ],
)
def test_an_invalid_option_is_named_before_the_work(
    arguments, tmp_path, capsys, monkeypatch, flag, value, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(semantic_comparison, "SemanticIoU", None)
    assert message in refusal(changed(arguments, flag, value), capsys)
    assert not (tmp_path / "pictures").exists()


def test_two_results_of_one_name_are_refused(arguments, capsys):
    twice = [word.replace("shifted=", "perfect=") for word in arguments]
    assert "--results: the name 'perfect' is given 2 times" in refusal(twice, capsys)
