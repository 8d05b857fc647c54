"""The first module of this package that a spawned process imports, before Detectron2."""

import signal
from collections.abc import Callable
from typing import Any

from point_rend.utils.downloads import guard_detectron2
from point_rend.utils.imports import after_import
from point_rend.utils.signals import SIGNALS, signals_end_the_command
from point_rend.utils.third_party import hide_third_party_warnings

hide_third_party_warnings()
after_import("detectron2.utils.file_io", guard_detectron2, undisturbed=())


def enter(local_rank: int, function: Callable[..., None], *args: Any) -> None:
    """Call `function(local_rank, *args)`; a signal ends it with one line and exit code 128 + n.

    A new process unpickles its function first, then the arguments: this module comes before those
    that import Detectron2. Until here, the signals that ask to end have waited.
    """
    with signals_end_the_command(reported=local_rank == 0):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        function(local_rank, *args)
