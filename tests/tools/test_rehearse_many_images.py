"""The rehearsal on many images: its measures."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from point_rend.batch_inference.shards import write_shard
from tests.batch_inference.test_shards import RECORDS, run_of
from tests.tiny_datasets import load_script

tool = load_script("tools/dev/rehearse_many_images.py")


def test_the_slope_is_that_of_the_memory_once_it_has_settled() -> None:
    samples = [tool.Sample(10, 5000.0), tool.Sample(100, 0.0)]
    samples += [tool.Sample(i, 300 + 0.004 * i) for i in range(400, 2001, 100)]
    assert tool.slope(samples) == pytest.approx(4.0)
    assert np.isnan(tool.slope([]))


def test_the_memory_is_that_of_a_process_and_all_below_it() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as parent:
        while len(found := tool.descendants(parent.pid)) < 2:
            assert parent.poll() is None
        assert tool.memory_of(found) > tool.memory_of(found[:1]) > 0
        assert tool.memory_of([os.getpid()]) > 10
        parent.communicate(b"\n")


def test_images_are_counted_in_whole_shards(tmp_path: Path) -> None:
    assert tool.finished_images(tmp_path) == 0
    run = run_of()
    run.write(tmp_path)
    write_shard(tmp_path, 1, run, RECORDS)
    assert tool.finished_images(tmp_path) == 3
    write_shard(tmp_path, 2, run, RECORDS[:1])
    assert tool.finished_images(tmp_path) == 4
