"""Commands that run as children of this process, and a guardian that ends what it leaves behind."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

from point_rend.utils.errors import signal_exit_code
from point_rend.utils.signals import SIGNALS

ENDING_SECONDS = 600.0  # for a command to save and end after this process is gone

# Ends the processes whose numbers it reads after their launcher has ended, which closes its input.
# It sees to the other end of each process, not to a number that another process may get.
GUARDIAN = """
import os, select, signal, sys, time
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
grace, *pids = map(int, sys.stdin.readline().split())
by_descriptor = hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal")
send, handles = (os.kill, pids)
if by_descriptor:
    send, handles = signal.pidfd_send_signal, []
    for pid in pids:
        try:
            handles.append(os.pidfd_open(pid))
        except OSError:
            pass
sys.stdin.read()
def send_all(number):
    for handle in handles[:]:
        try:
            send(handle, number)
        except OSError:
            handles.remove(handle)
send_all(signal.SIGTERM)
send_all(signal.SIGCONT)
deadline = time.monotonic() + grace
while handles and time.monotonic() < deadline:
    time.sleep(0.2)
    send_all(0)
send_all(signal.SIGKILL)
"""


@contextlib.contextmanager
def guarded(pids: Sequence[int | None], grace: float) -> Iterator[None]:
    """End processes if this one ends before the block does, even if it is killed.

    They get SIGTERM, and are killed if they do not end in time.

    Args:
        pids: Their process ids.
        grace: Seconds between the two.
    """
    with subprocess.Popen(
        [sys.executable, "-ISc", GUARDIAN],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # a reader of the output does not wait for it
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as guardian:
        assert guardian.stdin is not None
        guardian.stdin.write(f"{grace:.0f} {' '.join(map(str, pids))}\n".encode())
        guardian.stdin.flush()
        try:
            yield
        finally:
            guardian.kill()


def run_child(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Run a command in a process of its own, which ends with this one.

    The signals that ask to end are passed on to it, since a training saves a checkpoint then.

    Args:
        command: Program and arguments.
        environment: All variables of the process; those of this one by default.

    Returns:
        Its exit code, 128 + n if signal n ended it.
    """
    running: list[subprocess.Popen[bytes]] = []
    arrived: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)
        for process in running:
            process.send_signal(number)

    former = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        process = subprocess.Popen(command, env=environment)
        for number in arrived:  # before it existed
            process.send_signal(number)
        running.append(process)
        with guarded([process.pid], ENDING_SECONDS):
            code = process.wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if arrived and code == 0:  # the process had just finished: the signal is left to this one
        os.kill(os.getpid(), arrived[0])
    return code if code >= 0 else signal_exit_code(-code)
