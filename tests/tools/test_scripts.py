"""Every script and every sub-command, started as a user does it, from another folder."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

from point_rend.cli import COMMANDS
from tests.tiny_datasets import REPOSITORY

DOORS = [REPOSITORY / "train_net.py", *sorted((REPOSITORY / "tools").glob("*.py"))]
SCRIPTS = [*DOORS, *sorted((REPOSITORY / "tools" / "dev").glob("*.py"))]
BY_TRAIN_NET = {"train", "evaluate"}
# Each starts in a fork of a process that has imported the slow modules.
START = """
import os, runpy, sys
import cv2, detectron2.engine, matplotlib, pycocotools.mask, torch
import point_rend, tools
assert tools.IS_FOREIGN
for start in sys.argv[1:]:
    print(f"# start {start}", flush=True)
    if not os.fork():
        try:
            if start.endswith(".py"):
                sys.argv, sys.path[0] = [start, "--help"], os.path.dirname(start)
                runpy.run_path(start, run_name="__main__")
            else:
                sys.argv = ["-m", start, "--help"]
                runpy.run_module("point_rend", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code or 0)  # at once: unloading the modules takes a second
        raise SystemExit("did not exit after its help")
    code = os.waitstatus_to_exitcode(os.wait()[1])
    print(f"\\n# exit code {code}", flush=True)
"""


def test_every_start_answers_for_help_with_a_foreign_package_called_tools(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign" / "tools"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("IS_FOREIGN = True\n")
    starts = {str(script): script.name for script in SCRIPTS}
    starts |= {name: f"pointrend {name}" for name in COMMANDS}
    done = subprocess.run(
        [sys.executable, "-c", START, *starts],
        cwd=tmp_path,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{foreign.parent}:{REPOSITORY}", "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=280,
    )
    answers = {answer.splitlines()[0]: answer for answer in done.stdout.split("# start ")[1:]}
    assert list(answers) == list(starts), done.stdout
    for start, answer in answers.items():
        assert f"usage: {starts[start]} [-h]" in answer, answer
        assert answer.endswith("\n# exit code 0\n"), answer


def test_every_subcommand_has_one_door() -> None:
    opened = []
    for door in DOORS:
        opened += re.findall(r'run_command\("(.*)"\)', door.read_text(encoding="utf-8"))
    by_path = {"install-detectron2"}  # its code runs before the package can be imported
    assert sorted([*opened, *BY_TRAIN_NET, *by_path]) == sorted(COMMANDS)


def test_no_script_imports_another_or_changes_the_search_path() -> None:
    for script in SCRIPTS:
        tree = ast.parse(script.read_text(encoding="utf-8"))
        imported = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add("." if node.level else (node.module or "").split(".")[0])
            elif isinstance(node, ast.Attribute):
                assert ast.unparse(node) != "sys.path", script
        assert not imported & {"tools", ".", *(other.stem for other in SCRIPTS)}, script
