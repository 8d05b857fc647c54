"""The rehearsal on two nodes, and its message on machines that cannot create namespaces."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_datasets import REPOSITORY, load_script

tool = load_script("tools/dev/rehearse_two_nodes.py")


def test_programs_that_are_missing_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit) as ended:
        tool.main([])
    assert ended.value.code == 2
    assert "unshare (util-linux), nsenter (util-linux), ip (iproute2)" in capsys.readouterr().err


def test_namespaces_that_cannot_be_created_are_named_as_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "PROGRAMS", {})
    monkeypatch.setattr(tool, "NAMESPACE", [sys.executable, "-c", "raise SystemExit('no right')"])
    with pytest.raises(SystemExit) as ended:
        tool.main([])
    assert ended.value.code == 2
    assert "no right" in capsys.readouterr().err


def test_an_output_that_cannot_be_used_is_named_before_the_rehearsal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "missing", str)
    monkeypatch.setattr(tool, "rehearse", None)
    file = tmp_path / "shapes" / "file"
    file.parent.mkdir()
    file.touch()
    messages = {file: f"--output {file} cannot be written", tmp_path: f"{file.parent} is not empty"}
    for output, message in messages.items():
        with pytest.raises(SystemExit) as ended:
            tool.main(["--output", str(output)])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_rehearsal_that_is_killed_leaves_nothing_running() -> None:
    script = (
        "import os\n"
        "import sys; sys.path.insert(0, 'tools/dev')\n"
        "from rehearse_two_nodes import held\n"
        "with held([]):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,  # closed when the last process that holds it has ended
        check=False,
        timeout=120,
    )
    assert killed.returncode == -9


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["flags", "torchrun"])
def test_two_nodes_train_together(launcher: str, tmp_path: Path) -> None:
    if reason := tool.missing():
        pytest.skip(reason)
    words = ["--launcher", launcher, "--processes", "1", "--output", str(tmp_path)]
    subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / "dev" / "rehearse_two_nodes.py"), *words],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=True,
        timeout=280,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert (tmp_path / "model_final.pth").is_file()
    for rank, log in enumerate(("log.txt", "log.txt.rank1")):
        line = f"Rank of current process: {rank}. World size: 2"
        assert re.search(line, (tmp_path / log).read_text())
