"""Warnings of Detectron2 and PyTorch that a user of the commands can do nothing about."""

import logging
import re
import warnings

WARNINGS: list[tuple[type[Warning], str]] = [
    (FutureWarning, "`torch.jit.script` is "),  # Detectron2, fvcore: deprecated, by Python 3.14
    (FutureWarning, "`torch.jit.script_method` is "),  # not supported
    (FutureWarning, "`torch.cuda.amp."),  # Detectron2 in mixed precision
    (UserWarning, "torch.meshgrid: in an upcoming release"),  # Detectron2's anchors
    (UserWarning, "pkg_resources is deprecated as an API"),  # Detectron2's model zoo
]
LOGGED = {
    "torch.fx._symbolic_trace": "is_fx_tracing will return true for both",
    "torch.utils.cpp_extension": "No CUDA runtime is found",  # on machines without a GPU
}


def hide_third_party_warnings() -> None:
    """Hide the listed warnings in this process; `python -W` and PYTHONWARNINGS come first."""
    for category, start in WARNINGS:
        warnings.filterwarnings("ignore", re.escape(start), category, append=True)
    for name, start in LOGGED.items():
        logging.getLogger(name).addFilter(_Without(start))


class _Without(logging.Filter):
    """Drops the records whose message starts with a prefix.

    Args:
        start: The prefix.
    """

    def __init__(self, start: str) -> None:
        super().__init__()
        self.start = start

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is kept."""
        return not record.getMessage().startswith(self.start)
