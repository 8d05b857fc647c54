"""The demos: metrics, pictures, and a small run from nothing to the pictures."""

import json
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from point_rend.cli import demo, demo_semantic
from point_rend.data.shapes.coco import Split, generate
from point_rend.experiments.demo import instances, steps
from point_rend.playground import serving
from tests.tiny_datasets import REPOSITORY


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("demo") / "shapes"
    return generate(folder, num_train=1, num_val=4, image_size=(128, 128), seed=1)["val"]


def test_the_ground_truth_is_rendered_at_the_size_of_the_picture(split: Split) -> None:
    content = json.loads(split.json_file.read_text())
    annotations = [a for a in content["annotations"] if a["image_id"] == 1]
    ground_truth = instances.render_annotations(annotations, (128, 128))
    side = 128 * instances.MAGNIFICATION
    assert ground_truth.masks.shape == (len(annotations), side, side)
    assert ground_truth.masks.dtype == bool
    for mask, box, annotation in zip(*ground_truth, annotations, strict=True):
        area = mask.sum() / instances.MAGNIFICATION**2
        assert area == pytest.approx(annotation["area"], rel=0.06)
        y, x = np.nonzero(mask)
        corners = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        # Smoothing takes up to a pixel of the image, or two where an outline ends in a tip.
        np.testing.assert_allclose(corners, box, atol=2 * instances.MAGNIFICATION)


def test_a_closeup_shows_the_middle_of_the_box_in_the_middle() -> None:
    panel = np.zeros((90, 90, 3), dtype=np.uint8)
    panel[20:30, 60:70] = 200
    (cut,) = instances.closeup([panel], np.array([60, 20, 70, 30]), side=60)
    assert cut.shape == (60, 60, 3)
    assert (cut[10:50, 10:50] > 150).all()
    assert cut[:3, :3].max() < 40


def test_the_closeups_show_the_largest_detected_object_of_each_class() -> None:
    def thing(category: int, area: int, x: int, image: int = 1) -> dict:
        box = [x, 0, 10, 10]
        return {"category_id": category, "area": area, "bbox": box, "image_id": image}

    small, missed = thing(1, area=5, x=0), thing(1, area=9, x=50)
    unsure, elsewhere = thing(2, area=3, x=0), thing(2, area=2, x=0, image=2)
    results = [
        {**thing(1, area=0, x=2), "score": 0.9},  # overlaps the small object by two thirds
        {**thing(1, area=0, x=56), "score": 0.9},  # and the large one too little
        {**thing(2, area=0, x=0), "score": 0.4},
    ]
    found = instances.largest_detected([missed, small, unsure, elsewhere], results)
    assert found == {1: small, 2: unsure}
    assert instances.largest_detected([missed, small], []) == {1: missed}


@pytest.mark.parametrize("command", [demo, demo_semantic])
def test_an_output_that_is_a_file_is_named_before_the_work(
    command: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "run_step", None)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as ended:
        command.main(["--quick", "--output", str(file)])
    assert ended.value.code == 2
    assert f"--output {file} cannot be written: {file} is not a folder" in capsys.readouterr().err


def test_a_failing_step_is_named_and_its_exit_code_kept(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        steps.run_step("Fail on purpose", ["python", "-c", "raise SystemExit(7)"])
    assert end.value.code == 7
    out, err = capfd.readouterr()
    assert "$ python -c 'raise SystemExit(7)'\n" in out
    assert "this step failed: Fail on purpose" in err


def test_the_quick_demo_runs_from_nothing_to_pictures_in_the_current_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    demo.main(["--quick"])
    out, err = capfd.readouterr()
    assert out.count("\n$ ") == 4
    assert out.count("\n--- ") == out.count("\n=== ") == 5
    assert "\n$ pointrend train --resume --config-file Demo/pointrend_shapes.yaml " in out
    assert "\n$ pointrend evaluate --config-file Demo/pointrend_shapes.yaml " in out
    assert "eta: " in out
    assert "boundary AP" in out
    assert "POINT_HEAD_ON is False" not in out + err  # it is an option of the coarse step
    assert (out + err).count("not used by the model") == 1
    assert "Warning" not in err
    output = tmp_path / "output" / "demo-quick"
    picture = cv2.imread(str(output / "pictures" / "images.png"))
    panel = demo.IMAGE_SIDE * instances.MAGNIFICATION
    assert picture.shape[0] > 4 * panel
    assert picture.shape[1] > 4 * panel
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "<h1>Evaluation of coarse 7×7 and PointRend</h1>" in page
    names = sorted(path.name for path in (output / "pictures").iterdir())
    assert names == ["closeups.png", *(f"image_00000{i}.png" for i in range(1, 5)), "images.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """What `pointrend demo` does, in order, with the page and the steps pretended."""
    found: list[tuple[str, object]] = []
    monkeypatch.setattr(serving, "check", lambda args: found.append(("check", args.port)))
    monkeypatch.setattr(serving, "serve", lambda args: found.append(("serve", args)))
    monkeypatch.setattr(demo, "run", lambda output, quick: found.append(("run", (output, quick))))
    return found


def test_the_page_serves_the_model_of_the_demo_which_runs_first_if_there_is_none(
    tmp_path: Path, calls: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    demo.main(["--serve", "--quick", "--port", "0"])
    output = Path("output", "demo-quick")
    assert [name for name, _ in calls] == ["check", "run", "serve"]
    assert calls[1][1] == (output, True)
    args = calls[2][1]
    assert args.config_file == str(output / "pointrend" / "config.yaml")
    assert args.opts[:2] == ["MODEL.WEIGHTS", str(output / "pointrend" / "model_final.pth")]
    assert args.examples == output / "shapes" / "val"
    calls.clear()
    (output / "pointrend").mkdir(parents=True)
    (output / "pointrend" / "model_final.pth").touch()
    demo.main(["--serve", "--quick", "--examples", "mine"])
    assert [name for name, _ in calls] == ["check", "serve"]
    assert calls[1][1].examples == Path("mine")


def test_the_page_serves_any_model_without_the_demo(calls: list) -> None:
    demo.main(["--serve", "--model", "folder"])
    demo.main(["--serve", "--config-file", demo.CONFIG, "--opts", "MODEL.WEIGHTS", "mine.pth"])
    assert [name for name, _ in calls] == ["check", "serve"] * 2
    assert calls[1][1].examples is None
    assert calls[3][1].opts == ["MODEL.WEIGHTS", "mine.pth"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "1"], "--port needs --serve"),
        (["--model", "folder"], "--model needs --serve"),
        (["--serve", "--opts", "A", "1"], "--opts and --classes need --config-file or --model"),
    ],
)
def test_options_of_the_page_that_do_not_fit_are_named(
    options: list[str], message: str, calls: list, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        demo.main(options)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert calls == []
