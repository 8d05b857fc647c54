"""Timing: functions run in turn, and a module's share of the time."""

from collections.abc import Callable

import torch

from point_rend.experiments.benchmark.timing import interleaved_seconds, share_of_time


def test_the_sides_run_in_turn_and_the_first_round_is_not_timed() -> None:
    order: list[str] = []
    ticks = iter(range(100))

    def clock() -> float:
        return float(next(ticks))

    runs = [lambda: order.append("ours"), lambda: order.append("baseline")]
    seconds = interleaved_seconds(runs, 3, "cpu", clock=clock)
    assert order == ["ours", "baseline"] * 4
    assert seconds == [(1.0,) * 3, (1.0,) * 3]


def test_a_side_is_charged_for_its_own_time_only() -> None:
    now = [0.0]

    def spend(seconds: float) -> Callable[[], None]:
        def run() -> None:
            now[0] += seconds

        return run

    seconds = interleaved_seconds([spend(2), spend(5)], 2, "cpu", clock=lambda: now[0])
    assert seconds == [(2.0, 2.0), (5.0, 5.0)]


def test_both_sides_get_the_same_time_in_a_round_and_the_median_counts() -> None:
    now, order = [0.0], []
    # The first run is the warm-up; the first of each round is slow.
    quick = iter([2.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 5.0, 2.0, 3.0])

    def ours() -> None:
        order.append("ours")
        now[0] += next(quick)

    def baseline() -> None:
        order.append("baseline")
        now[0] += 10

    seconds = interleaved_seconds([ours, baseline], 2, "cpu", clock=lambda: now[0])
    assert order == ["ours", "baseline", *["ours"] * 6, "baseline", *["ours"] * 3, "baseline"]
    assert seconds == [(1.0, 3.0), (10.0, 10.0)]


def test_a_side_that_takes_no_time_runs_once_per_round() -> None:
    assert interleaved_seconds([int, int], 2, "cpu", clock=lambda: 0.0) == [(0, 0)] * 2


def test_the_share_of_a_module_is_its_time_over_that_of_the_whole_run() -> None:
    now = [0.0]
    head = torch.nn.Identity()

    def run() -> None:
        now[0] += 3
        head(torch.zeros(1))
        now[0] += 4

    inside = head.register_forward_hook(lambda *_: now.__setitem__(0, now[0] + 1))
    assert share_of_time(run, head, 2, "cpu", clock=lambda: now[0]) == 1 / 8
    inside.remove()
    assert not head._forward_hooks
    assert not head._forward_pre_hooks
