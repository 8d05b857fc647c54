"""The table, the JSON file and the plot."""

import dataclasses
import json
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import pytest
import torch
from matplotlib.figure import Figure

from point_rend.experiments.benchmark import report
from point_rend.experiments.benchmark.case import Agreement
from point_rend.experiments.benchmark.measuring import Measurement, Record
from point_rend.experiments.benchmark.settings import Settings
from tests.experiments.benchmark.planted import MACHINE, MIB, record


def test_a_row_has_the_ratios_of_the_baseline_to_ours() -> None:
    row = report.table_row(record(2.0, 16.0))
    assert len(row) == len(report.HEADINGS)
    assert row[2:8] == ["2000 ms", "16000 ms", "8.0 (8.0–8.0)", "2 MiB", "16 MiB", "8.0"]
    assert row[8:10] == ["1.0e-06", "2.5e-01"]


def test_the_ratio_is_that_of_the_rounds_and_not_of_the_medians() -> None:
    sides = [
        Measurement(seconds, peak_bytes=None)
        for seconds in ((1.0, 2.0, 3.0), (8.0, 10.0, 30.0))  # 8, 5 and 10 times
    ]
    measured = Record("a head", {}, "stock", sides[0], sides[1], 5, None)
    assert report.table_row(measured)[2:5] == ["2000 ms", "10000 ms", "8.0 (5.0–10.0)"]


def test_the_plot_has_the_range_of_the_ratios_and_the_memory_of_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    sides = [
        Measurement(seconds, peak_bytes=mebibytes * MIB)
        for seconds, mebibytes in (((1.0, 2.0, 3.0), 6), ((8.0, 10.0, 30.0), 60))
    ]
    measured = Record("a head", {}, "stock", sides[0], sides[1], 5, None)
    missing = dataclasses.replace(measured, baseline=None, baseline_bytes_estimated=900 * MIB)
    report.save_plot([measured, missing], tmp_path / "plot.png")
    speed, memory = figures[0].axes
    (bar,) = speed.containers
    (horizontal,) = bar.lines[2]
    (ends,) = horizontal.get_segments()
    assert ends.tolist() == [[5, 0], [10, 0]]
    assert bar.lines[0].get_xydata().tolist() == [[8, 0]]
    baseline, ours = ([patch.get_width() for patch in bars] for bars in memory.containers)
    assert (baseline, ours) == ([60, 900], [6, 6])
    assert [patch.get_hatch() for patch in memory.containers[0]] == [None, "///"]
    assert [label.get_text() for label in speed.get_yticklabels()] == ["a head, stock"] * 2


def test_the_table_is_markdown_and_names_the_machine() -> None:
    text = report.format_markdown([record(1.0, 2.0)] * 2, MACHINE, Settings(repeat=3))
    notes, empty, *rows = text.splitlines()
    assert notes.startswith(
        "a CPU, 2 thread(s), passive wait, torch 1, Detectron2 0, medians of 3 rounds "
        "(the smallest and the largest ratio)"
    )
    assert empty == ""
    assert len(rows) == 4
    assert len({row.count("|") for row in rows}) == 1


def test_the_report_names_the_load() -> None:
    settings = Settings(busy_processes=2)
    text = report.format_markdown([record(1.0, 2.0)], MACHINE, settings)
    assert "alongside 2 busy process(es)" in text.splitlines()[0]
    content = json.loads(report.format_json([record(1.0, 2.0)], MACHINE, settings))
    assert content["settings"]["busy_processes"] == 2
    assert content["machine"]["wait"] == "passive wait"
    assert "busy" not in report.format_markdown([record(1.0, 2.0)], MACHINE, Settings())


def test_the_largest_batches_follow_the_table() -> None:
    measured = dataclasses.replace(record(1, 2), largest_batches=(40, 28))
    text = report.format_markdown([measured, record(1, 2)], MACHINE, Settings())
    assert text.splitlines()[-1] == "a head: 40 images fit, with stock 28."


def test_this_machine_is_described() -> None:
    machine = report.describe_machine("cpu")
    assert machine.keys() == MACHINE.keys()
    assert machine["torch"] == torch.__version__
    assert machine["threads"] == torch.get_num_threads()
    assert machine["cpu"]


def test_the_json_file_holds_every_time_and_the_medians() -> None:
    measured = dataclasses.replace(
        record(1.0, 2.0), ours=Measurement((3.0, 1.0, 2.0), 7), largest_batches=(4, 2)
    )
    content = json.loads(report.format_json([measured], MACHINE, Settings(seed=5)))
    assert content.keys() == {"machine", "settings", "records"}
    assert content["machine"] == MACHINE
    assert content["settings"]["seed"] == 5
    (entry,) = content["records"]
    assert entry == {
        "name": "a head",
        "parameters": {"boxes": 2},
        "rival": "stock",
        "ours": {"seconds": [3.0, 1.0, 2.0], "peak_bytes": 7, "head_share": None, "median": 2.0},
        "theirs": {"seconds": [2.0] * 3, "peak_bytes": 2**21, "head_share": None, "median": 2.0},
        "rival_bytes_estimated": 5,
        "agreement": {"largest": 0.25, "differing": 1e-6, "boundary": 0.1},
        "largest_batches": [4, 2],
        "rival_failure": None,
    }


def test_a_difference_that_is_not_finite_is_null_in_json() -> None:
    agreement = Agreement(largest=float("nan"), differing=float("inf"))
    measured = dataclasses.replace(record(1, 2), agreement=agreement)
    data = report.format_json([measured], MACHINE, Settings())
    written = json.loads(data, parse_constant=lambda name: pytest.fail(name))["records"][0]
    assert written["agreement"] == {"largest": None, "differing": None, "boundary": None}


@pytest.mark.parametrize("sides", [(1.0, None), (0.0, None), (0.0, 0.0)])
def test_a_side_without_measurements_leaves_a_gap_in_the_report(
    tmp_path: Path, sides: tuple[float, float | None]
) -> None:
    records = [record(*sides)]
    data = report.format_json(records, MACHINE, Settings())
    assert (json.loads(data)["records"][0]["theirs"] is None) == (sides[1] is None)
    report.save_report(tmp_path, "gap", records, "table", data)
    assert {file.name for file in tmp_path.iterdir()} == {"gap.md", "gap.json", "gap.png"}
    assert cv2.imread(str(tmp_path / "gap.png")).std() > 0


def test_a_file_that_cannot_be_completed_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.png").write_text("old")

    def fail(_: Any, file: BinaryIO, **__: Any) -> None:
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="no space left"):
        report.save_report(tmp_path, "x", [], "", "")
    assert (tmp_path / "x.png").read_text() == "old"
