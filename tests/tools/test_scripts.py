"""Every script of the folder, as a user starts it who is somewhere else."""

import os
import subprocess
import sys
from pathlib import Path

from tests.tiny_datasets import REPOSITORY

SCRIPTS = [
    file
    for file in sorted((REPOSITORY / "tools").glob("*.py"))
    if '\nif __name__ == "__main__":\n' in file.read_text(encoding="utf-8")
]
# Each starts in a process of its own, with what takes long to import there already.
START = """
import os, runpy, sys
import cv2, detectron2.engine, matplotlib, pycocotools.mask, torch
import point_rend
for script in sys.argv[1:]:
    print(f"# script {script}", flush=True)
    if not os.fork():
        sys.argv, sys.path[0] = [script, "--help"], os.path.dirname(script)
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code or 0)  # at once: to take down what was imported takes a second
        raise SystemExit("it has not ended after its help")
    code = os.waitstatus_to_exitcode(os.wait()[1])
    print(f"\\n# exit code {code}", flush=True)
"""


def test_every_script_answers_for_help_wherever_it_is_started(tmp_path: Path) -> None:
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", START, *map(str, SCRIPTS)],
        cwd=tmp_path,
        env=environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=280,
    )
    answers = {answer.splitlines()[0]: answer for answer in done.stdout.split("# script ")[1:]}
    assert list(answers) == list(map(str, SCRIPTS)), done.stdout
    for answer in answers.values():
        assert "usage: " in answer, answer
        assert answer.endswith("\n# exit code 0\n"), answer


def test_no_script_is_left_out() -> None:
    parts = {"ablate_cells", "ablate_sampling", "ablate_subdivision", "benchmark_cases"}
    parts |= {"benchmark_training", "predict_model", "predict_results"}
    parts |= {"report_gallery", "report_parts"}
    files = {file.stem for file in (REPOSITORY / "tools").glob("*.py")}
    assert files - {script.stem for script in SCRIPTS} == parts
