"""Every value of every key either runs or is refused in one line that names the key."""

import re
from collections.abc import Iterator

import pytest
import torch
from detectron2.config import CfgNode

from point_rend.config.checks import check_config
from tests.robustness.config_values import (
    CONFIGS,
    CONFIGS_OF_DETECTRON2,
    build_config,
    outcome,
    outcome_in_a_process,
    pairs,
    register,
    with_value,
)
from tests.tiny_datasets import process_state_restored

# Classes that the data have and the model lacks are refused by the checks of the data.
OF_THE_DATA = ("IGNORE_VALUE", "NUM_CLASSES")
SHARE_THAT_RUNS = 60  # of the accepted values in the default run: every so many


@pytest.fixture(scope="module", autouse=True)
def _data_sets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with process_state_restored():
        register(tmp_path_factory.mktemp("sets"))
        yield


def refusal(cfg: CfgNode) -> str:
    """Return the message with which a training is refused, or nothing."""
    try:
        check_config(cfg, training=True)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bad_value_is_refused_in_one_line_or_runs(name: str) -> None:
    cfg = build_config(name)
    refusals = [(pair, refusal(with_value(cfg, *pair))) for pair in pairs(cfg)]
    for pair, message in refusals:
        assert not message or re.fullmatch(r".*[A-Z0-9_]{3,}.*, .*", message), (pair, message)
    accepted = [
        pair for pair, message in refusals if not message and not pair[0].endswith(OF_THE_DATA)
    ]
    for pair in accepted[::SHARE_THAT_RUNS]:
        result = outcome(cfg, *pair)
        assert result.kind != "fault", (pair, result.message)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CONFIGS, *CONFIGS_OF_DETECTRON2])
def test_every_bad_value_is_refused_or_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    cfg = build_config(name)
    outcomes = {
        (key, repr(value)): outcome_in_a_process(cfg, key, value)
        for key, value in pairs(cfg)
        if not key.endswith(OF_THE_DATA)
    }
    kinds = [result.kind for result in outcomes.values()]
    with capsys.disabled():
        print(f"\n{name}: { ({kind: kinds.count(kind) for kind in sorted(set(kinds))}) }")
    assert not {pair: x.message for pair, x in outcomes.items() if x.kind == "fault"}
