"""`pointrend benchmark`: settings from the command line, and errors."""

from pathlib import Path
from typing import Any

import pytest

from point_rend.cli import benchmark
from point_rend.experiments.benchmark import run
from point_rend.experiments.benchmark.settings import Settings
from tests.experiments.benchmark.planted import case, record


def test_the_command_names_all_cases() -> None:
    assert benchmark.CASES.keys() == run.CASES.keys()


def test_options_are_settings_and_each_case_runs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, records = [], [record(1.0, 2.0)]

    def run_cases(*arguments: Any) -> list[Any]:
        calls.append(arguments)
        return records

    masks, conv = case("masks"), case("conv")
    monkeypatch.setitem(run.CASES, "masks", lambda _: [masks])
    monkeypatch.setitem(run.CASES, "conv", lambda _: [conv])
    monkeypatch.setattr(run, "run_cases", run_cases)
    opts = ["MODEL.POINT_HEAD.NUM_FC", "2"]
    words = ["conv", "masks", "conv", "--repeat", "2", "--boxes", "1", "6", "--classes", "3"]
    words += ["--seed", "7", "--amp", "bfloat16", "--busy-processes", "2"]
    words += ["--output", str(tmp_path), "--opts", *opts]
    assert benchmark.main(words) is records
    settings = Settings(
        repeat=2,
        boxes=(1, 6),
        classes=(3,),
        seed=7,
        amp="bfloat16",
        opts=tuple(opts),
        busy_processes=2,
    )
    assert calls == [([conv, masks], settings, tmp_path, "benchmark_conv_masks")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["everything"], "invalid choice: 'everything'"),
        (["overview", "--classes", "3"], "--boxes and --classes: expected none, since overview"),
        (["masks", "--boxes", "0"], "expected a whole number of 1 or more, got '0'"),
        (["masks", "--repeat", "-1"], "expected a whole number of 1 or more, got '-1'"),
        (["masks", "--busy-processes", "0"], "expected a whole number of 1 or more, got '0'"),
        (["masks", "--amp", "float8"], "invalid choice: 'float8'"),
        (["masks", "--device", "abacus"], "--device is 'abacus': expected cpu, cuda or cuda:N"),
        (["masks", "--opts", "MODEL.NONE", "1"], "unknown config key MODEL.NONE"),
        (["masks", "--opts", "MODEL.MASK_ON"], "expected pairs KEY VALUE"),
        (
            ["masks", "--output", f"{__file__}/folder"],
            f"--output {__file__}/folder cannot be written: ",
        ),
    ],
)
def test_a_wrong_word_is_one_clear_error(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(words)
    assert stopped.value.code == 2
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last_line
    assert message in last_line
