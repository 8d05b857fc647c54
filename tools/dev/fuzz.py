#!/usr/bin/env python
"""Fuzz the readers of users' files for a while.

    python tools/dev/fuzz.py                          # lists the targets
    python tools/dev/fuzz.py coco_json --seconds 600

The targets are the modules of tests/robustness/fuzzing. Rounds of new random inputs follow each
other until the time is over, each with 4 GB of memory and 5 seconds an input; the first input that
ends in anything but a result or a user error is printed. The target also notices a crash: the
round's seed repeats it.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TARGETS = REPOSITORY / "tests" / "robustness" / "fuzzing"
MEMORY = 4 << 30  # bytes of private memory


def targets() -> list[str]:
    """Return the names of the targets."""
    return sorted(file.stem.removeprefix("test_") for file in TARGETS.glob("test_*.py"))


def fuzz(target: str, seconds: float, seed: int) -> int:
    """Run rounds of a target until the time is over or an input fails.

    Args:
        target: One of :func:`targets`.
        seconds: No round starts later than this.
        seed: Seed of the first round; the next ones count up.

    Returns:
        The exit code of pytest for the failing round, or 0.
    """
    end, rounds = time.monotonic() + seconds, 0
    command = [sys.executable, "-X", "faulthandler", "-m", "pytest", "-q", "-x", "--no-header"]
    command += ["-p", "no:cacheprovider", str(TARGETS / f"test_{target}.py")]
    while time.monotonic() < end:
        done = subprocess.run(
            [*command, f"--hypothesis-seed={seed + rounds}"],
            cwd=REPOSITORY,
            env=os.environ | {"FUZZING_PROFILE": "long", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=limit_memory,
        )
        if done.returncode:
            print(done.stdout, done.stderr, sep="\n")
            print(f"{target}: a round failed; --seed {seed + rounds} repeats it")
            return done.returncode
        rounds += 1
    print(f"{target}: {rounds} rounds without a fault, seeds {seed} to {seed + rounds - 1}")
    return 0


def limit_memory() -> None:
    """Limit the memory of this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, hard))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", nargs="?", choices=targets())
    parser.add_argument("--seconds", type=float, default=600, help="default: 600")
    parser.add_argument("--seed", type=int, default=0, help="of the first round; default: 0")
    args = parser.parse_args(argv)
    if args.target is None:
        print(*targets(), sep="\n")
        return 0
    return fuzz(args.target, args.seconds, args.seed)


if __name__ == "__main__":
    sys.exit(main())
