"""Calls that run in another thread, and how they end."""

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from point_rend.playground.main_thread import MainThread


def test_calls_run_in_the_thread_that_works_one_after_the_other() -> None:
    main = MainThread()
    running: list[int] = []

    def job(number: int) -> tuple[int, str]:
        running.append(number)
        assert len(running) == 1
        running.pop()
        return number, threading.current_thread().name

    worker = threading.Thread(target=main.work, name="worker")
    worker.start()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda number: main.call(job, number), range(50)))
        with pytest.raises(ZeroDivisionError):
            main.call(lambda: 1 / 0)
    assert results == [(number, "worker") for number in range(50)]
    main.stop()
    worker.join()


def test_an_interrupt_ends_the_work_and_all_calls_that_wait() -> None:
    main = MainThread()
    release = threading.Event()

    def interrupted() -> None:
        release.wait()
        raise KeyboardInterrupt

    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(main.call, interrupted)]
        calls += [pool.submit(main.call, int) for _ in range(2)]
        threading.Timer(0.05, release.set).start()
        with pytest.raises(KeyboardInterrupt):
            main.work()
        for call in calls:
            with pytest.raises(CancelledError):
                call.result(5)
    with pytest.raises(CancelledError):
        main.call(int)
