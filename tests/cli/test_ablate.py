"""tools/ablate.py subdivision: cells of the table, what is kept, a tiny model on a tiny set."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import torch
from detectron2.modeling import build_model

from point_rend import load_config
from point_rend.cli import ablate
from point_rend.experiments.ablation import subdivision as ablate_subdivision
from point_rend.experiments.ablation.results import Origin, digest, keep_cell, origin_of, read_cell
from point_rend.experiments.ablation.subdivision import Cell, format_subdivision, steps_to
from point_rend.rendering.subdivision import SubdivisionPlan
from tests.tiny_datasets import BASELINE, POINTREND, TINY_MODEL, process_state_restored, write_coco


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("sys.argv", ["ablate.py"])
    with process_state_restored():
        yield


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Options of train_net.py for a tiny model with random weights."""
    torch.manual_seed(0)
    weights = tmp_path / "model.pth"
    model = build_model(load_config(POINTREND, [*TINY_MODEL, "MODEL.ROI_HEADS.NUM_CLASSES", "3"]))
    torch.save({"model": model.state_dict()}, weights)
    dataset = ["--register-coco", "tiny", *write_coco(tmp_path / "tiny")]
    names = ["DATASETS.TEST", "('tiny',)", "MODEL.WEIGHTS", str(weights)]
    return ["--config-file", POINTREND, *dataset, *TINY_MODEL, *names]


def command(output: Path, options: list[str]) -> list[str]:
    own = ["subdivision", "--output", str(output), "--sides", "14,28", "--point-sides", "14,28"]
    return [*own, "--", *options]


def refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        ablate.main(argv)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_cells_whose_points_cover_all_grids_are_one():
    assert Cell.of(28, 56**2) == Cell.of(28, 28**2) != Cell.of(28, 14**2)
    plans = [SubdivisionPlan(7, 2, points).without_covered_steps() for points in (784, 3136)]
    assert {(plan.start_side, plan.steps) for plan in plans} == {(28, 0)}


@pytest.mark.parametrize(("side", "steps"), [(7, 0), (14, 1), (224, 5)])
def test_the_number_of_steps_follows_from_the_side(side: int, steps: int):
    assert steps_to(side, 7) == steps


@pytest.mark.parametrize("side", [3, 21, 30])
def test_a_side_that_no_doubling_reaches_is_refused(side: int):
    with pytest.raises(ValueError, match=f"{side} is no power of two times 7"):
        steps_to(side, 7)


def test_the_table_has_each_side_and_number_of_points():
    results = {
        Cell(14, 196): {"segm/AP": 1.0},
        Cell(28, 196): {"segm/AP": 2.0},
        Cell(28, 784): {"segm/AP": 3.456},
    }
    assert format_subdivision(results, [14, 28], [14, 28], ["segm/AP"]).splitlines() == [
        "| segm/AP | 14² points | 28² points |",
        "|---|---:|---:|",
        "| 14×14 | 1.00 | 1.00 |",
        "| 28×28 | 2.00 | 3.46 |",
    ]


def test_cells_are_evaluated_once_and_shown(
    tmp_path: Path,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    rendered = []
    build = ablate_subdivision.train_net.Trainer.build_model

    def build_and_note(cfg: object) -> torch.nn.Module:
        model = build(cfg)
        rendered.append(model.roi_heads.mask_head.refinement.renderer.plan)
        return model

    monkeypatch.setattr(ablate_subdivision.train_net.Trainer, "build_model", build_and_note)
    output = tmp_path / "output"
    ablate.main(command(output, options))
    assert [(p.output_side, p.points_per_step) for p in rendered] == [
        (14, 196),
        (28, 196),
        (28, 784),
    ]
    names = {file.stem for file in output.glob("*.json")}
    assert names == {"side14_points196", "side28_points196", "side28_points784"}
    table = (output / "subdivision.md").read_text()
    assert table.splitlines()[0] == "| segm/AP | 14² points | 28² points |"
    assert table in capsys.readouterr().out
    assert cv2.imread(str(output / "subdivision.png")).shape == (480, 720, 3)

    lost = output / "side28_points196.json"
    kept = json.loads(lost.read_text())["figures"]
    lost.unlink()
    ablate.main(command(output, options))
    assert len(rendered) == 3 + 1
    assert json.loads(lost.read_text())["figures"] == pytest.approx(kept, nan_ok=True)
    assert (output / "subdivision.md").read_text() == table
    two = [*command(output, options)]
    ablate.main([*two[:1], "--metric", "segm/AP,bbox/AP", *two[1:]])
    assert (output / "subdivision.md").read_text().startswith(f"{table}\n| bbox/AP |")
    assert cv2.imread(str(output / "subdivision.png")).shape == (480, 1440, 3)

    said = refusal(command(output, [*options, "TEST.DETECTIONS_PER_IMAGE", "4"]), capsys)
    assert "was measured with other options" in said
    argv = command(output, options)
    said = refusal([*argv[:1], "--metric", "segm/BP", *argv[1:]], capsys)
    assert "--metric segm/BP: expected one of" in said
    assert "segm/AP50" in said
    weights = Path(options[-1])
    content = torch.load(weights)
    torch.save({"model": {key: 0.5 * value for key, value in content["model"].items()}}, weights)
    said = refusal(command(output, options), capsys)
    assert f"measured with other contents of MODEL.WEIGHTS {weights}: expected the same" in said
    assert len(rendered) == 3 + 1


ORIGIN = Origin(["--config-file", "a.yaml"], {"config a.yaml": "c0", "MODEL.WEIGHTS a.pth": "f1"})


def test_a_cell_reads_back_the_same(tmp_path: Path):
    file = tmp_path / "cell.json"
    assert read_cell(file, ORIGIN) is None
    for figures in ({"segm/AP": 1.5, "bbox/AP": -1.0}, None):
        keep_cell(file, ORIGIN, figures)
        assert read_cell(file, ORIGIN) == figures


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"config a.yaml": "c1"}, "other contents of config a.yaml: expected"),
        ({"config a.yaml": "c1", "MODEL.WEIGHTS a.pth": ""}, "a.yaml and MODEL.WEIGHTS a.pth"),
        ({"annotations b.json of b": "b0"}, "other contents of annotations b.json of b: expected"),
    ],
)
def test_a_cell_of_other_contents_names_them(tmp_path: Path, inputs: dict[str, str], said: str):
    file = tmp_path / "cell.json"
    keep_cell(file, ORIGIN, {})
    with pytest.raises(ValueError, match=said):
        read_cell(file, ORIGIN._replace(inputs=ORIGIN.inputs | inputs))
    keep_cell(file, ORIGIN._replace(inputs=ORIGIN.inputs | inputs), {})
    with pytest.raises(ValueError, match=said):
        read_cell(file, ORIGIN)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"options": [', "is not JSON"),
        ("{}", "is no cell of this version of ablate.py: expected a JSON object with options"),
        ("[]", "is no cell"),
        ('{"options": [], "figures": {}}', "is no cell"),
        ('{"options": "x", "inputs": {}, "figures": {}}', "is no cell"),
        ('{"options": [1], "inputs": {}, "figures": {}}', "is no cell"),
        ('{"options": [], "inputs": [], "figures": {}}', "is no cell"),
        ('{"options": [], "inputs": {}, "figures": [1]}', "is no cell"),
        ('{"options": [], "inputs": {}, "figures": {"segm/AP": "1"}}', "is no cell"),
    ],
)
def test_a_file_that_is_no_cell_is_refused(tmp_path: Path, text: str, said: str):
    file = tmp_path / "side14_points196.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"side14_points196\.json {said}"):
        read_cell(file, Origin([], {}))


def test_figures_follow_from_contents_and_not_from_times_or_places(options: list[str]):
    origin = origin_of(options, training=False)
    json_file, weights = options[options.index("tiny") + 1], options[-1]
    assert list(origin.inputs) == [
        f"config {POINTREND}",
        f"MODEL.WEIGHTS {weights}",
        f"annotations {json_file} of tiny",
    ]
    os.utime(weights, (1, 1))
    os.utime(json_file, (1, 1))
    moved = origin_of([*options, "OUTPUT_DIR", "elsewhere"], training=False)
    assert moved.inputs == origin.inputs
    Path(json_file).write_text(Path(json_file).read_text() + " ")
    changed = origin_of(options, training=False).inputs
    assert [x for x in changed if changed[x] != origin.inputs[x]] == list(changed)[2:]


def test_a_digest_of_a_folder_follows_its_files_and_their_names(tmp_path: Path):
    assert digest(tmp_path / "nowhere") == ""
    found = []
    for name, text in (("a/b", "1"), ("a/b", "2"), ("c", "1"), ("c", "")):
        file = tmp_path / "labels" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        found.append(digest(tmp_path / "labels"))
    assert len(set(found)) == 4
    file.unlink()
    assert digest(tmp_path / "labels") == found[1]


def test_a_model_without_steps_is_refused(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
):
    argv = command(tmp_path / "output", [o if o != POINTREND else BASELINE for o in options])
    assert "expected PointRendMaskHead" in refusal(argv, capsys)


def test_options_of_train_net_are_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "expected -- and options" in refusal(command(tmp_path, []), capsys)


def test_sides_are_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    said = refusal(["subdivision", "--output", str(tmp_path), "--sides", "28,x"], capsys)
    assert "expected numbers with commas between them, got '28,x'" in said


def test_an_output_that_is_a_file_is_named_before_the_work(
    options: list[str], capsys: pytest.CaptureFixture[str]
):
    said = refusal(command(Path(options[-1]), options), capsys)
    assert f"--output {options[-1]} cannot be written: {options[-1]} is not a folder" in said
