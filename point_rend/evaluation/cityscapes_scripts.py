"""Cityscapes' evaluation scripts, which need NumPy 1 by themselves.

cityscapesscripts 2.3.0, the newest version, calls `np.in1d`, which NumPy 2.4 removed. It also
writes its counts as JSON, which fails for the integers that `np.count_nonzero` returns since
NumPy 2.3.
Importing this module gives the scripts both functions as they were.

The scripts read the environment when they are imported: import this module late.
"""

import types
from typing import Any

import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as instances  # noqa: N813
import cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling as pixels  # noqa: N813
import numpy as np


def _in1d(array: Any, wanted: Any, invert: bool = False) -> np.ndarray:
    return np.isin(array, wanted, invert=invert).ravel()


def _count_nonzero(array: Any) -> int:
    return int(np.count_nonzero(array))


instances.np = pixels.np = types.SimpleNamespace(
    **vars(np) | {"in1d": _in1d, "count_nonzero": _count_nonzero}
)
