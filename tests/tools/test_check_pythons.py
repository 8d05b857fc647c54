"""`make test-pythons`, on pretended Pythons."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_datasets import load_script

tool = load_script("tools/dev/check_pythons.py")

# Logs its arguments; fails where a file in the root asks for it.
PYTHON = """#!/bin/sh
case "$*" in
    *ensurepip*) echo {version}; exit ;;
    *"pip install"*) [ ! -e no-index ] ;;
    *) echo "$(basename "$(dirname "$(dirname "$0")")") $*" >>log; ! grep -qs "$1 $2" trouble ;;
esac
"""
MAKEFILE = """
venv:
	mkdir -p $(VENV)/bin && cp "$(PYTHON)" $(VENV)/bin/python
	echo '#!/bin/sh\\necho "pointrend $$*" >>log' >$(VENV)/bin/pointrend
	chmod +x $(VENV)/bin/pointrend
	[ ! -e no-set-up ]
test:
	echo "test $(VENV) $(ARGS)" >>log
	! grep -qs "$(VENV)" trouble
	echo "=== 7 passed ==="
"""
OTHERS = [version for version in tool.VERSIONS if version != "{}.{}".format(*sys.version_info)]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose sources install nothing, on a machine without other Pythons."""
    root, commands = tmp_path / "repository", tmp_path / "commands"
    root.mkdir()
    commands.mkdir()
    (root / "Makefile").write_text(MAKEFILE)
    for name in ("sh", "make", "mkdir", "cp", "chmod", "grep", "basename", "dirname"):
        (commands / name).symlink_to(shutil.which(name) or "")
    monkeypatch.setenv("PATH", str(commands))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setattr(tool, "REPOSITORY", root)
    return root


def add_python(path: Path, version: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PYTHON.format(version=version))
    path.chmod(0o755)


@pytest.fixture
def pythons(root: Path) -> list[str]:
    """Two other versions: one on the path, one in pyenv."""
    first, second = OTHERS[:2]
    add_python(root.parent / "commands" / f"python{first}", first)
    add_python(root.parent / "pyenv" / "versions" / f"{second}.1" / "bin" / "python", second)
    return [first, second]


@pytest.fixture
def summary(capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, str]]:
    """The last lines that were printed, by version."""

    def read() -> dict[str, str]:
        lines = capsys.readouterr().out.splitlines()[-len(OTHERS) :]
        return dict(line.removeprefix("Python ").split(": ", 1) for line in lines)

    return read


def test_pythons_that_are_missing_are_skipped_by_name(
    root: Path, summary: Callable[[], dict[str, str]]
) -> None:
    # A version manager leaves such a file for a version that is not installed.
    shim = root.parent / "commands" / f"python{OTHERS[0]}"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    tool.main([])
    assert summary() == dict.fromkeys(OTHERS, "skipped: not on this machine")


def test_every_python_gets_its_own_environment_and_every_step(
    root: Path, pythons: list[str], summary: Callable[[], dict[str, str]]
) -> None:
    tool.main([])
    found = summary()
    assert [found[version] for version in pythons] == ["7 passed"] * 2
    log = (root / "log").read_text()
    for version in pythons:
        assert f".venv-{version} -W error -m compileall" in log
        assert f".venv-{version} -W ignore -c" in log
        assert f"test .venv-{version} -q tests/rendering" in log
    assert log.count("pointrend demo --quick --output ") == len(pythons)


def test_failing_tests_fail_the_check_after_all_versions(
    root: Path, pythons: list[str], summary: Callable[[], dict[str, str]]
) -> None:
    (root / "trouble").write_text(f".venv-{pythons[0]}")
    with pytest.raises(SystemExit) as ended:
        tool.main([])
    assert ended.value.code == 1
    found = summary()
    assert [found[version] for version in pythons] == ["failed: tests", "7 passed"]


def test_packages_that_cannot_be_downloaded_skip_their_python(
    root: Path, pythons: list[str], summary: Callable[[], dict[str, str]]
) -> None:
    for name in ("no-set-up", "no-index"):
        (root / name).touch()
    tool.main([])
    found = summary()
    assert {found[version] for version in pythons} == {"skipped: its packages cannot be downloaded"}


def test_set_up_that_fails_although_all_packages_are_there_fails_the_check(
    root: Path, pythons: list[str], summary: Callable[[], dict[str, str]]
) -> None:
    (root / "no-set-up").touch()
    with pytest.raises(SystemExit):
        tool.main([])
    found = summary()
    assert {found[version] for version in pythons} == {"failed: set-up"}


def test_full_disk_skips_a_python(
    pythons: list[str], monkeypatch: pytest.MonkeyPatch, summary: Callable[[], dict[str, str]]
) -> None:
    monkeypatch.setattr(tool, "BYTES", 1e30)
    tool.main([])
    found = summary()
    assert all("of free space" in found[version] for version in pythons)


@pytest.mark.usefixtures("root")
def test_command_over_its_limit_ends_with_its_children() -> None:
    sleep = shutil.which("sleep", path=os.defpath)
    status, output = tool.run(["sh", "-c", f"{sleep} 60 & echo $!; wait"], limit=0.5)
    assert status is None
    for _ in range(100):  # after its parent, the system collects it
        try:
            os.kill(int(output), 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the child is still there")
