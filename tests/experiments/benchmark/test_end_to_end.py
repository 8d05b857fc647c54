"""CPU seconds by stage: sums, medians, the table, and ways that compute the same."""

import dataclasses
import itertools
import json
from pathlib import Path

import cv2
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from point_rend.cli import benchmark
from point_rend.experiments.benchmark import end_to_end
from point_rend.experiments.benchmark.end_to_end import (
    REST,
    Timing,
    Way,
    differences,
    format_timings,
    measure_ways,
)
from point_rend.experiments.benchmark.settings import Settings, Sizes
from tests.config.test_published_configs import NARROW

SMALL = Settings(
    repeat=1,
    boxes=(3,),
    classes=(4,),
    shared_opts=NARROW,
    sizes=Sizes(instance_image=(64, 96), pasted_image=(70, 100)),
)


def instances(*corners: float, classes: tuple[int, ...] = (0, 1)) -> Instances:
    boxes = torch.tensor([[x, 0.0, x + 10, 10] for x in corners])
    masks = torch.zeros(len(boxes), 20, 40, dtype=torch.bool)
    masks[:, :10, :10] = True
    return Instances(
        (20, 40),
        pred_boxes=Boxes(boxes),
        pred_classes=torch.tensor(classes),
        scores=torch.ones(len(boxes)),
        pred_masks=masks,
    )


class Nested(nn.Module):
    """A model with a stage within a stage, and a clock that it advances."""

    def __init__(self) -> None:
        super().__init__()
        self.outer, self.inner, self.now = nn.Identity(), nn.Identity(), 0.0
        self.outer.register_forward_hook(lambda *_: self.spend(2))
        self.outer.register_forward_pre_hook(lambda *_: self.inner(torch.zeros(1)) and None)
        self.inner.register_forward_hook(lambda *_: self.spend(5))

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def forward(self, _: list) -> list[dict[str, Instances]]:
        self.spend(1)
        self.outer(torch.zeros(1))
        return [{"instances": instances(0, 5)}]


def test_each_second_belongs_to_one_stage_or_to_the_rest() -> None:
    model = Nested()
    stages = {"inner": (model.inner, None), "outer": (model.outer, model.inner)}
    order = [len(x._forward_hooks) + len(x._forward_pre_hooks) for x in (model.outer, model.inner)]
    (timing,) = measure_ways([Way("one", model, stages)], {}, 2, clock=lambda: model.now)
    for seconds in timing.rounds:
        assert seconds["inner"] == 5
        assert sum(seconds.values()) == 2 * seconds["whole"]
        assert seconds["whole"] == 8
    assert len(timing.rounds) == 2
    after = [len(x._forward_hooks) + len(x._forward_pre_hooks) for x in (model.outer, model.inner)]
    assert after == order


def test_ways_take_turns() -> None:
    turns = []

    class Turn(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, _: list) -> list[dict[str, Instances]]:
            turns.append(self.name)
            return [{"instances": instances(0, 5)}]

    clock = itertools.count().__next__
    timings = measure_ways([Way(x, Turn(x)) for x in "ab"], {}, 2, clock=clock)
    assert turns == list("ababab")
    assert [timing.rounds[0] for timing in timings] == [{"whole": 1}, {"whole": 1}]


def test_instances_are_compared_in_their_order() -> None:
    expected = instances(0, 5)
    assert differences(instances(0, 5), expected) == (0, 0.0, 0.0)
    assert differences(instances(0, 5, classes=(0, 2)), expected)[0] == 1
    assert differences(instances(0, classes=(0,)), expected)[0] == 1
    others, largest, _ = differences(instances(0.25, 9), expected)
    assert (others, largest) == (1, 0.25)
    found = instances(0, 5)
    found.pred_masks[0, 0, 0] = False
    assert differences(found, expected) == (0, 0.0, pytest.approx(1 / 1600))
    assert differences(instances(50, 60), expected) == (2, 0.0, 0.0)


def test_the_table_has_a_row_for_each_stage_and_a_column_for_each_way() -> None:
    rounds = [{"ResNet": x, REST: 1.0, "whole": x + 1} for x in (3.0, 1.0, 2.0)]
    timings = [
        Timing("as built", rounds, instances(0, 5)),
        Timing("a file", [{"whole": 1.5}], instances(0, 5)),
    ]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in format_timings(timings).splitlines()
    ]
    assert rows[0] == ["CPU seconds", "as built", "a file"]
    table = {row[0]: row[1:] for row in rows[2:]}
    assert table["ResNet"] == ["2.00", "–"]
    assert table["whole"] == ["3.00", "1.50"]
    assert table["smallest–largest whole"] == ["2.00–4.00", "1.50–1.50"]
    assert table["as built / this"] == ["1.00", "2.00"]
    assert table["instances"] == ["2", "2"]


def test_the_ways_of_the_benchmark_compute_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timings = end_to_end.run_end_to_end(SMALL, tmp_path, "name")
    assert [timing.name for timing in timings] == ["stock", "as built", "prepared"]
    built = timings[1].instances
    assert len(built) == 3
    for timing in timings:
        others, largest, differing = differences(timing.instances, built)
        assert others == 0
        assert largest < 1e-3
        assert differing < 1e-4
        stages = {"ResNet", "FPN", "RPN", "RoIAlign", "box head", "mask head", REST, "whole"}
        assert set(timing.rounds[0]) == stages
    table = (tmp_path / "name.md").read_text()
    assert table in capsys.readouterr().out + "\n"
    assert cv2.imread(str(tmp_path / "name.png")).std() > 0
    saved = json.loads((tmp_path / "name.json").read_text())
    assert saved["ways"]["prepared"] == list(timings[2].rounds)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["end-to-end", "masks"], "the case end-to-end has a table of its own"),
        (["end-to-end", "--amp", "bfloat16"], "--amp bfloat16: end-to-end measures CPU seconds"),
        (["end-to-end", "--opts", "MODEL.NONE", "1"], "unknown config key MODEL.NONE"),
    ],
)
def test_other_settings_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        benchmark.main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow  # an export
def test_a_file_is_a_way_that_computes_the_same(tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, files=("onnxruntime", "int8"))
    *_, prepared, file, quantized = end_to_end.run_end_to_end(settings, tmp_path, "name")
    assert (file.name, quantized.name) == settings.files
    others, largest, differing = differences(file.instances, prepared.instances)
    assert others == 0
    assert largest < 1e-3
    assert differing < 1e-4
    assert len(quantized.instances) > 0
