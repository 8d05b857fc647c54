"""The command `pointrend`: help, errors, imports, warnings, processes, completion."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

import point_rend
from point_rend.cli import COMMANDS, main, module_of
from point_rend.engine.arguments import build_parser
from point_rend.engine.trainer import resume_command
from point_rend.utils.program import program
from tests.commands import run
from tests.tiny_datasets import REPOSITORY, TINY_MODEL, CocoSet, write_coco

PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "tools/README.md"]
)
# Modules that help needs none of, and code that makes some of them missing.
HEAVY = ("torch", "torchvision", "detectron2", "numpy", "cv2", "matplotlib", "pycocotools", "PIL")
BLOCK = """
import sys
class Missing:
    def find_spec(name, *_):
        if name in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing)
"""


def test_help_fits_on_a_screen_and_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert 24 <= len(lines) <= 40
    assert max(map(len, lines)) <= 80
    first_words = [line.split()[0] for line in lines if line.startswith("  ")]
    assert first_words == list(COMMANDS)


def test_no_command_is_answered_by_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
    assert capsys.readouterr().out.startswith("usage: pointrend COMMAND")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"pointrend {point_rend.__version__}\n"


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("trainn", "; did you mean train?"),
        ("prepare_ade20k", "; did you mean prepare-ade20k?"),
        ("zzz", "; `pointrend --help` lists the commands"),
    ],
)
def test_unknown_command_is_one_line_with_advice(
    word: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([word])
    assert end.value.code == 2
    assert capsys.readouterr().err == f"pointrend: error: unknown command {word}{advice}\n"


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    """Neither that of the command nor that of any sub-command."""
    code = (
        BLOCK.format(blocked=HEAVY) + "from point_rend.cli import COMMANDS, module_of, usage\n"
        "usage()\n"
        "for name in COMMANDS: module_of(name).build_parser().format_help()\n"
    )
    done = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stdout


def test_without_detectron2_the_package_explains_what_to_install(tmp_path: Path) -> None:
    code = (
        BLOCK.format(blocked=["detectron2"]) + "import point_rend\n"
        "try: point_rend.PointRendMaskHead\n"
        "except ImportError as error: print(error)\n"
        "from point_rend.cli import main\n"
        "sys.argv = ['/bin/pointrend', 'train', '--config-file', 'x']\n"
        "main()\n"
    )
    done = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(REPOSITORY))
    remedy = "Detectron2 is not installed; install it with: pointrend install-detectron2"
    assert done.stdout.splitlines() == [
        f"point_rend.PointRendMaskHead cannot be imported: {remedy}",
        f"pointrend train: error: {remedy}",
    ]
    assert done.returncode == 2


def test_other_import_errors_are_not_explained_away(tmp_path: Path) -> None:
    code = BLOCK.format(blocked=["torch"]) + "import point_rend; point_rend.point_sample"
    done = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 1
    assert "Detectron2 is not installed" not in done.stdout


# --- names of the running command -----------------------------------------------------------------

CONSOLE = ["/venv/bin/pointrend", "train", "--config-file", "a b.yaml"]
MODULE = ["/lib/point_rend/__main__.py", "train", "--resume", "--config-file", "a b.yaml"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (CONSOLE, "pointrend train"),
        (MODULE, "pointrend train"),
        (["/venv/bin/pointrend"], "pointrend"),
        (["tools/predict.py", "--help"], "predict.py"),
        (["/lib/pytest/__main__.py", "tests"], "__main__.py"),
    ],
)
def test_program_is_named_as_it_was_started(
    argv: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert program() == expected


def test_resuming_repeats_the_command_as_it_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    rest = "--resume --config-file 'a b.yaml'"
    monkeypatch.setattr(sys, "argv", CONSOLE)
    assert resume_command() == f"/venv/bin/pointrend train {rest}"
    monkeypatch.setattr(sys, "argv", MODULE)
    assert resume_command() == f"{shlex.quote(sys.executable)} -m point_rend train {rest}"
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert resume_command() == f"torchrun <with the same options> -m point_rend train {rest}"


def test_options_of_training_include_those_of_detectron2_with_their_defaults() -> None:
    ours, theirs = build_parser(), default_argument_parser()
    options = {option: action for action in ours._actions for option in action.option_strings}
    for action in theirs._actions:
        for option in action.option_strings:
            assert options[option].dest == action.dest
            if action.dest not in ("help", "dist_url"):  # ours: a file that all processes see
                assert options[option].default == action.default
    words = ["--config-file", "x", "--num-gpus", "2", "--eval-only", "A", "--b"]
    parsed = [vars(parser.parse_args(words)) for parser in (ours, theirs)]
    for values in parsed:
        del values["dist_url"]
    assert parsed[1].items() <= parsed[0].items()


@pytest.mark.parametrize("name", COMMANDS)
def test_usage_begins_with_the_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/venv/bin/pointrend", name])
    assert module_of(name).build_parser().format_usage().startswith(f"usage: pointrend {name} [-h]")


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    found = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action.choices, dict):
            found |= {x for parser in action.choices.values() for x in options_of(parser)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documents_use_existing_commands_and_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    assert not re.search(r"python (-m )?tools[./](?!dev/)", text)
    for line in re.findall(r"(?<![/\w])pointrend ([a-z][^`\n]*)", text):
        name, *words = re.findall(r"(?<!\S)[a-z][\w-]*|(?<!\S)--[\w-]+", line)
        assert name in COMMANDS, line
        known = options_of(module_of(name).build_parser())
        if name == "ablate":
            known |= options_of(build_parser())
        assert {word for word in words if word.startswith("--")} <= known, line


# --- warnings and processes -----------------------------------------------------------------------


@pytest.mark.parametrize("module", ["cli", "inference", "engine.spawned"])
def test_warnings_of_third_parties_are_hidden_by_name_and_ours_are_shown(
    module: str, tmp_path: Path
) -> None:
    code = (
        f"import logging, warnings, point_rend.{module}\n"
        "warnings.warn('`torch.jit.script` is deprecated. Use another', FutureWarning)\n"
        "warnings.warn('torch.meshgrid: in an upcoming release, it will', UserWarning)\n"
        "logging.getLogger('torch.fx._symbolic_trace').warning('is_fx_tracing will return true "
        "for both')\n"
        "warnings.warn('shown 1', FutureWarning)\n"
        "warnings.warn('shown 2')\n"
        "logging.getLogger('torch.fx._symbolic_trace').warning('shown 3')\n"
    )
    command = [sys.executable, "-c", code]
    shown = run(command, tmp_path, PYTHONPATH=str(REPOSITORY)).stdout
    assert "torch" not in shown
    assert all(f"shown {i}" in shown for i in (1, 2, 3))
    asked = run([*command[:1], "-W", "default", *command[1:]], tmp_path, PYTHONPATH=str(REPOSITORY))
    assert "torch.jit.script" in asked.stdout


@pytest.mark.slow
def test_the_command_trains_in_two_processes_without_foreign_warnings(tmp_path: Path) -> None:
    tiny: CocoSet = write_coco(tmp_path / "tiny", images=4)
    script = tmp_path / "bin" / "pointrend"  # as pip writes it
    script.parent.mkdir()
    script.write_text("from point_rend.cli import main\nif __name__ == '__main__':\n    main()\n")
    output = tmp_path / "output"
    config = "InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml"
    done = subprocess.run(
        [
            *(sys.executable, str(script), "train", "--num-gpus", "2", "--config-file", config),
            *("--register-coco", "tiny", str(tiny.json_file), str(tiny.image_root), *TINY_MODEL),
            *("DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "()", "OUTPUT_DIR", str(output)),
        ],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (output / "model_final.pth").is_file()
    for name in ("FutureWarning", "UserWarning", "is_fx_tracing", "No CUDA runtime"):
        assert name not in done.stderr


# --- completion -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pointrend co", {"compare", "compare-semantic"}),
        ("pointrend predict --config", {"--config-file"}),
        ("pointrend ablate sub", {"subdivision"}),
    ],
)
def test_shells_complete_commands_and_their_options(
    line: str, expected: set[str], tmp_path: Path
) -> None:
    pytest.importorskip("argcomplete")
    answer = tmp_path / "answer"
    variables = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    done = run([sys.executable, "-m", "point_rend"], tmp_path, **variables)
    assert {word.strip() for word in answer.read_text().splitlines()} == expected, done.stdout
