#!/usr/bin/env python
"""Rehearse a run on two machines with one: two network namespaces, connected by a virtual cable.

    python tools/dev/rehearse_two_nodes.py                       # started with --num-machines
    python tools/dev/rehearse_two_nodes.py --launcher torchrun

Each namespace has its own address and loopback, so the processes of the two can only meet over the
cable, as those of two machines over the network. Without arguments for train_net.py, a few
iterations of the demo are trained and evaluated on the CPU. The only privilege needed is that of
creating namespaces, on Linux.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from point_rend.data.shapes.coco import generate
from point_rend.utils.files import check_output

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / "configs" / "Demo" / "pointrend_shapes.yaml"
PROGRAMS = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2"}
NAMESPACE = ["unshare", "--user", "--map-root-user", "--net"]
ADDRESSES = ("10.99.0.1", "10.99.0.2")
CABLE_ENDS = ("node0", "node1")  # names of the network interfaces
PORT = 29500
QUICK = ("SOLVER.MAX_ITER", "6", "SOLVER.WARMUP_ITERS", "1", "INPUT.MIN_SIZE_TRAIN", "(96,)")


def missing() -> str:
    """Describe what this machine lacks for a rehearsal; empty if nothing."""
    lacking = [
        f"{name} ({package})" for name, package in PROGRAMS.items() if not shutil.which(name)
    ]
    if lacking:
        return f"these programs are missing: {', '.join(lacking)}"
    tried = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"namespaces cannot be created here: {shlex.join(NAMESPACE)}: {tried.stderr.strip()}"
    return ""


def inside(holder: subprocess.Popen[bytes]) -> list[str]:
    """Return the words that, before a command, run it in the namespaces of a process."""
    return ["nsenter", f"--target={holder.pid}", "--user", "--net", "--preserve-credentials"]


@contextmanager
def held(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Keep the namespaces that a command creates open, at most while this process lives."""
    holder = subprocess.Popen([*command, "cat"], stdin=subprocess.PIPE)  # cat ends with its input
    try:
        name = Path(f"/proc/{holder.pid}/comm")
        while name.read_text().strip() != "cat":  # the namespaces exist once cat runs
            if holder.poll() is not None:
                raise SystemExit(f"error: {shlex.join(command)} has failed")
            time.sleep(0.01)
        yield holder
    finally:
        holder.communicate()


@contextmanager
def two_nodes() -> Iterator[list[list[str]]]:
    """Create two namespaces, connected by a virtual cable.

    Yields:
        For each namespace, the words that, before a command, run it there.
    """
    with held(NAMESPACE) as first, held([*inside(first), "unshare", "--net"]) as second:
        nodes = [inside(first), inside(second)]
        cable = ["ip", "link", "add", CABLE_ENDS[0], "type", "veth", "peer", "name", CABLE_ENDS[1]]
        subprocess.run([*nodes[0], *cable, "netns", str(second.pid)], check=True)
        for node, end, address in zip(nodes, CABLE_ENDS, ADDRESSES, strict=True):
            for words in (
                ["ip", "link", "set", "lo", "up"],
                ["ip", "address", "add", f"{address}/24", "dev", end],
                ["ip", "link", "set", end, "up"],
            ):
                subprocess.run([*node, *words], check=True)
        yield nodes


def command_of(node: int, launcher: str, processes: int, arguments: Sequence[str]) -> list[str]:
    """Return the command that a user would type on a machine."""
    script = "train_net.py"
    if launcher == "torchrun":
        words = ["-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}"]
        words += [f"--nproc-per-node={processes}", f"--master-addr={ADDRESSES[0]}"]
        return [sys.executable, *words, f"--master-port={PORT}", script, *arguments]
    words = [f"--num-gpus={processes}", "--num-machines=2", f"--machine-rank={node}"]
    return [sys.executable, script, *words, f"--dist-url=tcp://{ADDRESSES[0]}:{PORT}", *arguments]


def demo_arguments(output: Path) -> list[str]:
    """Draw the built-in data set and return arguments of train_net.py for a short training.

    It replaces that of an earlier rehearsal.
    """
    words = ["--overwrite", "--config-file", str(CONFIG)]
    sets = generate(output / "shapes", num_train=16, num_val=4, image_size=(96, 96))
    for name, split in sets.items():
        words += ["--register-coco", f"shapes_{name}", str(split.json_file), str(split.image_root)]
    return [*words, *QUICK, "OUTPUT_DIR", str(output)]


def rehearse(commands: Sequence[Sequence[str]], environ: Mapping[str, str]) -> list[int]:
    """Run a command on each node at the same time; return their exit codes."""
    with two_nodes() as nodes:
        started = []
        for node, end, command in zip(nodes, CABLE_ENDS, commands, strict=True):
            print(f"{end}$ {shlex.join(command)}", flush=True)
            interface = {"GLOO_SOCKET_IFNAME": end, "NCCL_SOCKET_IFNAME": end}
            started.append(
                subprocess.Popen([*node, *command], cwd=REPOSITORY, env={**environ, **interface})
            )
        return [process.wait() for process in started]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 2 if the machine lacks something, else with that of a failed node.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--launcher", choices=["flags", "torchrun"], default="flags")
    parser.add_argument("--processes", type=int, default=2, help="on each machine (default 2)")
    parser.add_argument("--output", type=Path, default=Path("output/two_nodes"))
    parser.add_argument("arguments", nargs="*", help="of train_net.py, after --")
    args = parser.parse_args(argv)
    lacking = missing()
    if lacking:
        parser.error(lacking)
    try:
        if not args.arguments:
            check_output(args.output, folder=True)
        arguments = args.arguments or demo_arguments(args.output.resolve())
    except (ValueError, OSError) as error:
        parser.error(str(error))
    commands = [command_of(node, args.launcher, args.processes, arguments) for node in range(2)]
    codes = rehearse(commands, {"OMP_NUM_THREADS": "1", **os.environ})
    print(f"exit codes: {', '.join(map(str, codes))}")
    raise SystemExit(max(codes, key=abs))


if __name__ == "__main__":
    main()
