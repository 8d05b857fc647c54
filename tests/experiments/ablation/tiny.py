"""Options of tiny ablations, planted trainings, and refused commands."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from point_rend import load_config
from point_rend.cli import ablate
from point_rend.engine.arguments import build_parser
from tests.tiny_datasets import POINTREND, TINY_MODEL, write_coco
from tests.tiny_semantic import write_sem_seg


def training_options(folder: Path) -> list[str]:
    """Options of train_net.py for a tiny training."""
    dataset = ["--register-coco", "tiny", *write_coco(folder / "tiny")]
    names = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)", "SOLVER.MAX_ITER", "1"]
    return ["--config-file", POINTREND, *dataset, *TINY_MODEL, *names]


def evaluation_options(folder: Path) -> list[str]:
    """Options of train_net.py for a tiny model with random weights, whose file comes last."""
    torch.manual_seed(0)
    weights = folder / "model.pth"
    model = build_model(load_config(POINTREND, [*TINY_MODEL, "MODEL.ROI_HEADS.NUM_CLASSES", "3"]))
    torch.save({"model": model.state_dict()}, weights)
    dataset = ["--register-coco", "tiny", *write_coco(folder / "tiny")]
    names = ["DATASETS.TEST", "('tiny',)", "MODEL.WEIGHTS", str(weights)]
    return ["--config-file", POINTREND, *dataset, *TINY_MODEL, *names]


def semantic_options(folder: Path) -> list[str]:
    """Options of train_net.py for a tiny training of a semantic model."""
    tree = {
        "_BASE_": POINTREND,
        "MODEL": {
            "META_ARCHITECTURE": "PointRendSemanticSegmentor",
            "MASK_ON": False,
            "SEM_SEG_HEAD": {"NAME": "PointRendSemSegHead", "IN_FEATURES": ["p2", "p3"]},
            "POINT_HEAD": {"SUBDIVISION_STEPS": 2},
        },
    }
    config = folder / "semantic.yaml"
    config.write_text(yaml.safe_dump(tree))
    dataset = ["--register-sem-seg", "tiny", *write_sem_seg(folder / "scenes")]
    names = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)"]
    return ["--config-file", str(config), *dataset, *TINY_MODEL, *names]


class PlantedTrainings:
    """Replaces `trainings.train`: records the trainings and writes planted metrics.

    Args:
        metric: Name of the metric; its value is the seed plus a tenth of k.
        failing: Trainings, by number from 1, that end without metrics.
        code: Exit code of these.
        others: Further metrics, the same in all trainings.

    Attributes:
        folders: Names of the folders of the trainings.
        options: Their config values by key.
    """

    def __init__(
        self,
        metric: str = "segm/AP",
        failing: Sequence[int] = (),
        code: int = 143,
        others: dict[str, float] | None = None,
    ) -> None:
        self.metric, self.failing, self.code, self.others = metric, failing, code, others or {}
        self.folders: list[str] = []
        self.options: list[dict[str, str]] = []

    def __call__(self, options: Sequence[str]) -> None:
        args = build_parser().parse_args(options)
        values = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
        folder = Path(values["OUTPUT_DIR"])
        folder.mkdir(parents=True, exist_ok=True)
        self.folders.append(folder.name)
        self.options.append(values)
        if len(self.folders) in self.failing:
            raise SystemExit(self.code)
        k = int(values.get("MODEL.POINT_HEAD.OVERSAMPLE_RATIO", 0))
        value = int(values["SEED"]) + k / 10
        lines = [
            {"iteration": 0, "total_loss": 1.0},
            {"iteration": int(values["SOLVER.MAX_ITER"]), self.metric: value, **self.others},
        ]
        (folder / "metrics.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line in which `pointrend ablate` refuses a command."""
    with pytest.raises(SystemExit) as ended:
        ablate.main(argv)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]
