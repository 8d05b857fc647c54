"""Runs of several cases."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch

from point_rend.experiments.benchmark import run
from point_rend.experiments.benchmark.load import busy_processes
from point_rend.experiments.benchmark.run import make_cases, run_cases
from point_rend.experiments.benchmark.settings import OVERVIEW, Settings
from tests.experiments.benchmark.planted import TINY, case

pytest.importorskip("detectron2.projects.point_rend")


def test_a_report_has_every_case_in_its_table_its_json_file_and_its_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(TINY, boxes=(1, 2), classes=(3,), repeat=3, seed=5)
    folder = tmp_path / "new"
    records = run_cases(make_cases(["masks"], settings), settings, folder, "tiny")
    assert {file.name for file in folder.iterdir()} == {"tiny.json", "tiny.md", "tiny.png"}

    content = json.loads((folder / "tiny.json").read_text())
    assert content["settings"]["seed"] == 5
    assert len(content["records"]) == len(records) == 2
    for entry, measured in zip(content["records"], records, strict=True):
        assert measured.baseline is not None
        for key, side in (("ours", measured.ours), ("theirs", measured.baseline)):
            assert entry[key]["seconds"] == list(side.seconds)
            assert len(side.seconds) == 3
            assert entry[key]["peak_bytes"] == side.peak_bytes

    table = (folder / "tiny.md").read_text()
    assert all(f"| {record.name} | stock |" in table for record in records)
    assert table in capsys.readouterr().out
    assert cv2.imread(str(folder / "tiny.png")).std() > 0


def test_finished_cases_are_reported_when_a_later_one_fails(tmp_path: Path) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("out of memory")

    cases = [case("case 0"), case("case 1", ours=fail)]
    with pytest.raises(torch.OutOfMemoryError):
        run_cases(cases, Settings(repeat=1), tmp_path, "benchmark")
    (entry,) = json.loads((tmp_path / "benchmark.json").read_text())["records"]
    assert entry["name"] == "case 0"


def test_the_load_runs_while_both_sides_are_measured_and_not_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = []

    @contextmanager
    def record(number: int) -> Iterator[None]:
        with busy_processes(number) as processes:
            started.append(processes)
            yield

    def side() -> torch.Tensor:
        assert [process.poll() for process in started[-1]] == [None, None]
        return torch.zeros(1, 1, 4, 4)

    monkeypatch.setattr(run, "busy_processes", record)
    cases = [case("case 0", ours=side, baseline=side), case("case 1", ours=side, baseline=side)]
    run_cases(cases, Settings(repeat=1, busy_processes=2), None, "benchmark")
    assert [process.poll() is None for case in started for process in case] == [False] * 4


def test_options_that_change_the_weights_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    settings = replace(TINY, boxes=(1,), classes=(3,), opts=("MODEL.POINT_HEAD.NUM_FC", "2"))
    with pytest.raises(SystemExit) as stopped:
        run_cases(make_cases(["masks"], settings), settings, None, "benchmark")
    assert stopped.value.code == 2
    message = "error: --opts change the weights, e.g. point_head.fc3.bias"
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_overview_has_cases_of_all_kinds_that_differ() -> None:
    cases = make_cases([OVERVIEW], TINY)
    titles = [(case.name, case.baseline) for case in cases]
    assert len(set(titles)) == len(titles)
    every = {x.name for kind in run.CASES for x in run.CASES[kind](TINY)}
    assert {name for name, _ in titles} <= every
    for kind in run.CASES:
        assert {x.name for x in run.CASES[kind](TINY)} & {name for name, _ in titles}, kind
    with pytest.raises(ValueError, match="--boxes and --classes: expected none, since overview"):
        make_cases([OVERVIEW], replace(TINY, boxes=(1,)))


def test_a_gpu_that_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device is cuda, but there is no CUDA device on this m"):
        make_cases(["masks"], Settings(device="cuda"))
