"""Commands in processes of their own, without network."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

# Variables of `make test` that must not reach the commands under test.
OWN_VARIABLES = (
    *("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS"),
    *("ARGS", "PYTHON", "VENV", "DETECTRON2", "PYTHONPATH"),
)
# Both streams in order, and no files but those of the command.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES} | {
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def run(
    command: Sequence[str | Path], folder: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command without network and collect its output."""
    environment = {**ENVIRONMENT, "PIP_NO_INDEX": "1", **variables}
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        check=False,
    )
