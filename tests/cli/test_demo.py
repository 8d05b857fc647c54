"""The demo: its figures, its pictures, and the whole of it in small."""

import json
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from point_rend.cli import demo, demo_semantic
from point_rend.data.shapes.coco import Split, generate


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("demo") / "shapes"
    return generate(folder, num_train=1, num_val=4, image_size=(128, 128), seed=1)["val"]


def test_the_truth_is_rendered_at_the_size_of_the_picture(split: Split) -> None:
    content = json.loads(split.json_file.read_text())
    annotations = [a for a in content["annotations"] if a["image_id"] == 1]
    truth = demo.truth_of(annotations, (128, 128))
    side = 128 * demo.MAGNIFICATION
    assert truth.masks.shape == (len(annotations), side, side)
    assert truth.masks.dtype == bool
    for mask, box, annotation in zip(truth.masks, truth.boxes, annotations, strict=True):
        area = mask.sum() / demo.MAGNIFICATION**2
        assert area == pytest.approx(annotation["area"], rel=0.06)
        y, x = np.nonzero(mask)
        corners = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        # Smoothing takes up to a pixel of the image, or two where an outline ends in a tip.
        np.testing.assert_allclose(corners, box, atol=2 * demo.MAGNIFICATION)


def test_a_closeup_shows_the_middle_of_the_box_in_the_middle() -> None:
    panel = np.zeros((90, 90, 3), dtype=np.uint8)
    panel[20:30, 60:70] = 200
    (cut,) = demo.closeup([panel], np.array([60, 20, 70, 30]), side=60)
    assert cut.shape == (60, 60, 3)
    assert (cut[10:50, 10:50] > 150).all()
    assert cut[:3, :3].max() < 40


@pytest.mark.parametrize("tool", [demo, demo_semantic])
def test_an_output_that_is_a_file_is_named_before_the_work(
    tool: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tool, "run_step", None)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as ended:
        tool.main(["--quick", "--output", str(file)])
    assert ended.value.code == 2
    assert f"--output {file} cannot be written: {file} is not a folder" in capsys.readouterr().err


def test_a_failing_step_is_named_and_its_exit_code_kept(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        demo.run_step("Fail on purpose", [sys.executable, "-c", "raise SystemExit(7)"])
    assert end.value.code == 7
    out, err = capfd.readouterr()
    assert "$ " in out
    assert "this step failed: Fail on purpose" in err


def test_the_quick_demo_runs_from_nothing_to_pictures(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(demo.REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    demo.main(["--quick", "--output", str(tmp_path)])
    out, _ = capfd.readouterr()
    assert out.count("\n$ ") == 4
    assert "train_net.py --config-file configs/Demo/pointrend_shapes.yaml" in out
    assert "eta: " in out
    assert "boundary AP" in out
    picture = cv2.imread(str(tmp_path / "pictures" / "images.png"))
    panel = demo.IMAGE_SIDE * demo.MAGNIFICATION
    assert picture.shape[0] > 4 * panel
    assert picture.shape[1] > 4 * panel
    assert "<h1>Evaluation of coarse 7×7 and PointRend</h1>" in (
        tmp_path / "report.html"
    ).read_text(encoding="utf-8")
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["closeups.png", *(f"image_00000{i}.png" for i in range(1, 5)), "images.png"]
