"""Measurement of a case: both sides, a baseline that fails, the precision."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from point_rend.experiments.benchmark.measuring import Measurement, in_context, measure
from point_rend.experiments.benchmark.report import HEADINGS, table_row
from point_rend.experiments.benchmark.settings import Settings
from tests.experiments.benchmark.planted import case, comparison


def test_the_time_of_a_side_is_the_median_of_its_rounds() -> None:
    assert Measurement(seconds=(9.0, 1.0, 2.0), peak_bytes=None).median == 2.0


def test_a_baseline_that_does_not_fit_is_reported_and_not_run() -> None:
    def must_not_run() -> None:
        raise AssertionError("the baseline was run")

    record = measure(
        case(baseline_bytes=2**60), comparison(baseline=must_not_run), Settings(repeat=2)
    )
    assert record.baseline is None
    assert len(record.ours.seconds) == 2
    row = dict(zip(HEADINGS, table_row(record), strict=True))
    assert row["time baseline"] == "does not fit (≈ 1073741824.0 GiB)"
    assert row["time ours"].endswith("ms")


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (torch.OutOfMemoryError("Tried to allocate 67 GiB"), "does not fit"),
        (RuntimeError("scatter(): Float | Half\nmore"), "fails: scatter(): Float / Half"),
    ],
)
def test_a_baseline_that_fails_is_reported_and_ours_is_measured(
    error: Exception, reported: str
) -> None:
    def fail() -> None:
        raise error

    record = measure(case(), comparison(baseline=fail), Settings(repeat=2))
    assert record.baseline is None
    assert len(record.ours.seconds) == 2
    row = dict(zip(HEADINGS, table_row(record), strict=True))
    assert row["time baseline"] == reported


def test_an_error_of_our_side_is_raised() -> None:
    def fail() -> None:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        measure(case(), comparison(ours=fail), Settings(repeat=1))


@pytest.mark.parametrize(("amp", "dtype"), [("bfloat16", torch.bfloat16), ("none", torch.float32)])
def test_a_run_has_the_precision_of_the_settings(amp: str, dtype: torch.dtype) -> None:
    x = torch.ones(2, 2)
    assert in_context(lambda: x @ x, Settings(amp=amp), training=False)().dtype == dtype


def test_each_run_converts_the_weights_anew() -> None:
    weight, converted = torch.ones(2, 2, requires_grad=True), []

    class Conversions(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default and args[0] is weight:
                converted.append(1)
            return function(*args, **(kwargs or {}))

    settings = Settings(amp="bfloat16")
    run = in_context(lambda: weight @ weight @ weight, settings, training=False)
    with Conversions():
        run()
        once = len(converted)
        run()
    assert once >= 1
    assert len(converted) == 2 * once
