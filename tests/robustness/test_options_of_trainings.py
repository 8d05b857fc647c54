"""Devices, weights and numbers of processes that are not there."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.robustness.harness import Row, run_row, table
from tests.robustness.test_output_folders import training

Prepare = Callable[[Path], Sequence[str | Path]]
NO_DEVICE = "expected cpu, cuda or cuda:N"


def device(value: str, line: str) -> Row:
    return Row(f"device {value!r}", training("MODEL.DEVICE", value), f"MODEL.DEVICE is .*{line}")


def weights(value: str, line: str, *flags: str) -> Row:
    def prepare(folder: Path) -> Sequence[str | Path]:
        os.mkfifo(folder / "pipe.pth")
        (folder / "link.pth").symlink_to("gone.pth")
        return training(*flags, "MODEL.WEIGHTS", value, test=True)(folder)

    return Row(" ".join(["weights", repr(value), *flags]), prepare, line)


def flags(*words: str, line: str, opts: Sequence[str] = ()) -> Row:
    return Row(" ".join(words), training(*words, *opts, test=True), line)


DEVICES = [
    device("tpu", NO_DEVICE),
    device("gpu", NO_DEVICE),
    device("CPU", NO_DEVICE),
    device("", NO_DEVICE),
    device("cuda:-1", NO_DEVICE),
    device("cuda:x", NO_DEVICE),
    device("cpu,cuda", NO_DEVICE),
    device("cuda:99", "but "),  # no GPU here, or fewer
    device("xpu", "there is no XPU device on this machine; to run on the CPU pass: MODEL.DEVICE"),
    device("meta", "there is no META device on this machine"),
    device("privateuseone", "there is no PRIVATEUSEONE device on this machine"),
]
WEIGHTS = [
    weights("gone.pth", "MODEL.WEIGHTS: there is no checkpoint gone.pth"),
    weights("gone.pth", "MODEL.WEIGHTS: there is no checkpoint gone.pth", "--eval-only"),
    weights("gone.pth", "MODEL.WEIGHTS: there is no checkpoint gone.pth", "--resume"),
    weights("link.pth", "MODEL.WEIGHTS: there is no checkpoint link.pth"),
    weights("tiny", "MODEL.WEIGHTS tiny: a folder, expected a file"),
    weights("tiny", "MODEL.WEIGHTS tiny: a folder, expected a file", "--eval-only"),
    weights("pipe.pth", "MODEL.WEIGHTS pipe.pth: a pipe, expected a file"),
    weights("/dev/zero", "MODEL.WEIGHTS /dev/zero: a device, expected a file"),
    weights("~/model.pth", "MODEL.WEIGHTS: there is no checkpoint ~/model.pth"),
    weights("htps://host/model.pkl", "MODEL.WEIGHTS: 'htps://host/model.pkl': expected an http"),
    weights("file:///model.pth", "MODEL.WEIGHTS: 'file:///model.pth': expected an http"),
    weights("zoo://pointrend", "zoo://pointrend: no model of this name is publ"),
    weights("tiny/instances.json", "tiny/instances.json cannot be read, it is damaged or no che"),
]
PROCESSES = [
    flags("--num-gpus=-1", line="argument --num-gpus: expected a number, 0 or more, got -1"),
    flags("--num-gpus=1.5", line="argument --num-gpus: expected a number, 0 or more, got 1.5"),
    flags(
        "--num-gpus=5000",
        line="--num-gpus is 5000: expected at most .* processes without a GPU on this machine",
        opts=["SOLVER.IMS_PER_BATCH", "5000"],
    ),
    flags("--num-gpus=9999", "--eval-only", line="--num-gpus is 9999: expected at most"),
    flags("--num-gpus=" + 5000 * "9", line="expected at most 4 digits, got 9")._replace(
        name="--num-gpus 9…"
    ),
    flags("--num-machines=x", line="argument --num-machines: invalid int value: 'x'"),
    flags("--num-machines=-1", line="expected 1 machine or more, numbered from 0"),
    flags("--machine-rank=-1", line="--machine-rank is -1 and --num-machines 1: expected 1 mach"),
    flags("--machine-rank=5", line="--machine-rank is 5 and --num-machines 1: expected 1 mach"),
    flags("--num-machines=2", line="expected --dist-url tcp://<address of machine 0>"),
    *(
        flags(
            "--num-machines=2",
            f"--dist-url={url}",
            line="argument --dist-url: expected tcp://<address>:<port>, got",
        )
        for url in (
            "junk",
            "tcp://",
            "tcp://host",
            "tcp://host:0",
            "tcp://host:70000",
            "http://a:1",
        )
    ),
    flags("--resume=yes", line="argument --resume: ignored explicit argument 'yes'"),
    flags("--nonsense", line="unrecognized arguments: --nonsense"),
]


@table([*DEVICES, *WEIGHTS, *PROCESSES])
def test_options(row: Row, tmp_path: Path) -> None:
    run_row(row, tmp_path)
