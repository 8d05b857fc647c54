"""Losses on the test sets: their values, and that a training does not notice them."""

import math
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances, Keypoints
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn import functional as F

from point_rend import load_config
from point_rend.cli import train
from point_rend.data.loader.validation import ValidationLoader
from point_rend.engine import run, validation
from point_rend.engine.validation import TOTAL_LOSS, Validation, computing_losses, mean_losses
from tests.config.test_published_configs import SMALL
from tests.config.test_semantic_configs import sample
from tests.engine.killing import (
    Run,
    assert_identical,
    command,
    final,
    tagged_iteration,
    write_mixed,
)
from tests.runs import metrics, refusal, set_up
from tests.test_models_on_a_gpu import CLASSES, INSTANCES, small_model
from tests.tiny_datasets import CocoSet, process_state_restored

COUNT = 7

pytestmark = pytest.mark.usefixtures("_restored")


# A planted model


class Head(nn.Module):
    """A head with a random loss, a running average, and pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.vis_period = 1
        self.average = 0.0

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        assert self.training
        assert not self.vis_period
        self.average = 0.9 * self.average + 1
        self.first = self.average
        noise = random.random() + float(np.random.rand()) + torch.rand(())
        return {"loss_random": noise, "loss_linear": self.layer(features).abs().mean()}


class Backbone(nn.Module):
    """Batch normalization and a dropout that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, images: Tensor) -> Tensor:
        return F.dropout(self.norm(images), training=self.training)


class Planted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Backbone()
        self.drop = nn.Dropout()
        self.heads = nn.ModuleList([Head()])
        self.register_buffer("calls", torch.zeros(()))
        self.broken: tuple[int, ...] = ()

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        assert self.training
        assert not torch.is_grad_enabled()
        self.calls += 1
        if {x["image_id"] for x in batch} & {*self.broken}:
            raise FloatingPointError("scores contain Inf/NaN")
        images = torch.stack([x["image"].flatten() for x in batch])
        return self.heads[0](self.drop(self.backbone(images)))


def record(number: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    return {"image_id": number, "image": torch.randn(4, 1, 1, generator=generator)}


def mapped(number: dict[str, Any]) -> dict[str, Any]:
    if number["image_id"] < 0:
        raise ValueError("file -1.jpg cannot be used")
    return record(number["image_id"])


def loader(*numbers: int, num_workers: int = 0) -> ValidationLoader:
    records: Any = [{"image_id": number} for number in numbers or range(COUNT)]
    return ValidationLoader(records, mapped, num_workers=num_workers)


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that a training depends on."""
    return {
        "weights": {name: x.clone() for name, x in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "attributes": [
            {k: v for k, v in vars(module).items() if isinstance(v, int | float | None)}
            for module in model.modules()
        ],
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()),
    }


def test_the_losses_are_means_over_images_of_their_own_random_numbers_without_dropout() -> None:
    model = Planted()
    losses = Validation(model, ["set"], lambda _: loader()).losses_on("set")
    norm, layer = model.backbone.norm, model.heads[0].layer
    linear = [
        layer(record(i)["image"].flatten() / math.sqrt(1 + norm.eps)).abs().item()
        for i in range(COUNT)
    ]
    assert losses["loss_linear"] == pytest.approx(np.mean(linear), rel=1e-6)
    assert 0 < losses["loss_random"] < 3
    assert losses[TOTAL_LOSS] == pytest.approx(losses["loss_random"] + losses["loss_linear"])
    assert list(losses) == ["loss_random", "loss_linear", TOTAL_LOSS]


@pytest.mark.parametrize("broken", [(), (2,)], ids=["sound", "diverged"])
def test_the_model_and_all_random_numbers_stay_as_they_were(broken: tuple[int, ...]) -> None:
    model = Planted()
    model.heads[0].train(False)
    model.broken = broken
    before = state(model)
    Validation(model, ["set"], lambda _: loader()).losses_on("set")
    assert_identical(state(model), before)
    assert not hasattr(model.heads[0], "first")


def test_the_losses_depend_on_neither_earlier_ones_nor_the_workers() -> None:
    model = Planted()
    check = Validation(model, ["set", "again"], lambda name: loader(num_workers=len(name) - 3))
    first = check.losses_on("set")
    torch.manual_seed(8)
    assert check.losses_on("set") == check.losses_on("again") == first


def test_the_losses_are_the_same_for_any_number_of_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Planted()
    alone = Validation(model, ["set"], lambda _: loader()).losses_on("set")
    shares = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        check = Validation(model, ["set"], lambda _: loader())
        shares.append(check._losses_by_image(loader(), "set"))
    assert [len(share) for share in shares] == [3, 2, 2]
    monkeypatch.setattr(comm, "gather", lambda _: shares)
    monkeypatch.setattr(comm, "is_main_process", lambda: True)
    assert check.losses_on("set") == alone
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert check.losses_on("set") == {}
    assert check.add_to({}) == {}


def test_a_model_that_has_diverged_has_losses_of_nan() -> None:
    model = Planted()
    model.broken = (2,)
    losses = Validation(model, ["set"], lambda _: loader()).losses_on("set")
    assert math.isnan(losses[TOTAL_LOSS])
    assert math.isnan(mean_losses([{"a": math.inf, TOTAL_LOSS: math.inf}])["a"])


def test_a_loss_that_an_image_lacks_counts_as_zero_and_the_order_makes_no_difference() -> None:
    rows = [{"a": 1e16, TOTAL_LOSS: 1e16}, {"a": 1.0, "b": 4.0, TOTAL_LOSS: 5.0}]
    rows.append({"a": -1e16, TOTAL_LOSS: -1e16})
    for order in (rows, rows[::-1], [rows[1], rows[0], rows[2]]):
        assert mean_losses(order) == {"a": 1 / 3, "b": 4 / 3, TOTAL_LOSS: 5 / 3}


def test_the_precision_is_that_of_the_training() -> None:
    class Seeing(nn.Linear):
        def forward(self, batch: Any) -> dict[str, Tensor]:
            outputs = super().forward(batch[0]["image"].flatten())
            seen.append(outputs.dtype)
            return {"loss": outputs.float().sum()}

    seen: list[torch.dtype] = []
    check = Validation(Seeing(4, 1), ["set"], lambda _: loader(1), precision=torch.bfloat16)
    check.losses_on("set")
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unusable_image_is_named(num_workers: int) -> None:
    numbers = loader(0, -1, num_workers=num_workers)
    with pytest.raises(ValueError, match=r"^file -1.jpg cannot be used$"):
        Validation(Planted(), ["set"], lambda _: numbers).losses_on("set")


@pytest.mark.parametrize("names", [["a"], ["a", "validation"]])
def test_losses_stand_below_validation_and_below_the_set_if_there_are_several(
    names: list[str],
) -> None:
    results = {"bbox": {"AP": 1.0}} if len(names) < 2 else {name: {"bbox": {}} for name in names}
    found = Validation(Planted(), names, lambda _: loader()).add_to(results)
    assert (
        results.items() <= {**found, **({"validation": {"bbox": {}}} if names[1:] else {})}.items()
    )
    own = found["validation"]
    if names[1:]:
        assert own.keys() == {"bbox", "a", "validation"}
        own = own["validation"]
    assert own.keys() == {"loss_random", "loss_linear", TOTAL_LOSS}


# Whole models


def with_keypoints(image: dict[str, Any]) -> dict[str, Any]:
    instances: Instances = image["instances"]
    centers = instances.gt_boxes.get_centers()
    points = torch.cat([centers, torch.full_like(centers[:, :1], 2)], dim=1)
    instances.gt_keypoints = Keypoints(points[:, None].repeat(1, 17, 1))
    return image


CASCADE = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"]
MORE = {"cascade": [*CASCADE, "True"], "keypoints": ["MODEL.KEYPOINT_ON", "True"]}


def model_of(kind: str) -> tuple[nn.Module, list[dict[str, Any]]]:
    if kind not in MORE:
        _, model, batch = small_model(kind)
        return model, batch
    name = INSTANCES["standard"][0]
    cfg = load_config(f"InstanceSegmentation/{name}.yaml", [*SMALL, *CLASSES, *MORE[kind]])
    torch.manual_seed(0)
    batch = [sample(cfg), sample(cfg)]
    return build_model(cfg), list(map(with_keypoints, batch))


@pytest.mark.parametrize(
    "kind", ["standard", "implicit", "semantic", "deeplab", "panoptic", "cascade", "keypoints"]
)
def test_every_kind_of_model_gives_the_losses_of_its_training_and_stays_the_same(
    kind: str,
) -> None:
    model, (image, _) = model_of(kind)
    before = state(model)
    numbers: Any = ValidationLoader([image], dict)  # type: ignore[arg-type]
    check = Validation(model, ["set"], lambda _: numbers)
    losses = check.losses_on("set")
    assert check.losses_on("set") == losses
    assert_identical(state(model), before)
    with EventStorage():
        expected = model([image])
    assert losses.keys() == {*expected, TOTAL_LOSS}
    assert all(map(math.isfinite, losses.values()))


def test_dropout_is_off_wherever_detectron2_has_it() -> None:
    model, (image, _) = model_of("deeplab")
    (pyramid,) = [x for x in model.modules() if type(x).__name__ == "ASPP"]
    pyramid.dropout = 0.5
    with computing_losses(model), torch.no_grad(), EventStorage():
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(model([image])["loss_sem_seg"])
    assert torch.equal(*found)


# Trainings

SCHEDULE = ["SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "2"]
LOSSES = [*SCHEDULE, "TEST.VALIDATION_LOSS", "True"]


@pytest.fixture(scope="module")
def trained(
    mixed: CocoSet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Path]]:
    folder = tmp_path_factory.mktemp("trained")
    for name, schedule in (("plain", SCHEDULE), ("losses", LOSSES)):
        with process_state_restored():
            train.main(command(mixed, folder / name, *schedule))
    return lambda name: folder / name


def test_a_training_does_not_notice_the_losses(trained: Callable[[str], Path]) -> None:
    plain, with_losses = final(trained("plain")), final(trained("losses"))
    assert with_losses.pop("metadata") != plain.pop("metadata")  # the config
    assert_identical(with_losses, plain)
    for ours, theirs in zip(metrics(trained("losses")), metrics(trained("plain")), strict=True):
        rest = {key: x for key, x in ours.items() if not key.startswith("validation/")}
        for timing in ("time", "data_time", "eta_seconds", "rank_data_time"):
            rest.pop(timing, None), theirs.pop(timing, None)
        assert str(rest) == str(theirs)  # NaN equals NaN


def test_each_evaluation_writes_the_losses(trained: Callable[[str], Path]) -> None:
    lines = [x for x in metrics(trained("losses")) if "validation/total_loss" in x]
    assert [line["iteration"] for line in lines] == [1, 4]
    for line in lines:
        assert math.isfinite(line["validation/loss_mask_point"])
        assert "bbox/AP" in line
    assert not any(key.startswith("validation") for key in metrics(trained("plain"))[0])
    assert lines[0]["validation/total_loss"] != lines[1]["validation/total_loss"]


def test_a_signal_ends_the_losses_at_once_and_saves_the_last_iteration(
    mixed: CocoSet, tmp_path: Path
) -> None:
    def compute_so() -> None:
        def losses_on(*_: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            print("the losses go on")

        validation.Validation.losses_on = losses_on  # type: ignore[method-assign]

    argv = command(mixed, tmp_path / "output", *LOSSES)
    process = Run(argv, tmp_path / "log.txt", forked=True, first=compute_so)
    assert process.end() == 128 + signal.SIGTERM
    assert "the losses go on" not in process.output()
    assert tagged_iteration(tmp_path / "output") == 1


def test_an_image_that_breaks_ends_the_training_with_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_mixed(tmp_path / "broken")
    argv = command(written, tmp_path / "output", *LOSSES, "DATASETS.TRAIN", "('other',)")
    argv[:0] = ["--register-coco", "other", *write_mixed(tmp_path / "other")]
    job = set_up(argv)
    monkeypatch.setattr(run.Trainer, "test", lambda *_: {})
    path = Path(written.image_root) / "003.png"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SystemExit) as ended:
        run.run(*job)
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("train_net.py: error: image 4, file ")
    assert tagged_iteration(tmp_path / "output") == 1


# Data


def test_the_images_are_those_of_an_evaluation_with_the_ground_truth_of_a_training(
    mixed: CocoSet, tmp_path: Path
) -> None:
    crop = ["INPUT.CROP.ENABLED", "True", "INPUT.MIN_SIZE_TEST", "56", "TEST.AUG.ENABLED", "True"]
    cfg = set_up(command(mixed, tmp_path, *crop)).cfg
    found = dict(run.Trainer.build_validation_loader(cfg, "mixed"))
    expected = run.Trainer.build_test_loader(cfg, "mixed")
    for number, ((image,), ours) in enumerate(zip(expected, found.values(), strict=True)):
        assert torch.equal(ours["image"], image["image"])
        assert ours["image_id"] == image["image_id"] == number + 1
        assert ours["instances"].gt_masks.tensor.shape[1:] == image["image"].shape[1:]


@pytest.mark.parametrize("keeps", [True, False])
def test_empty_images_and_crowds_are_treated_as_in_training(keeps: bool, tmp_path: Path) -> None:
    written = write_mixed(tmp_path / "crowds", images=4)
    content = written.read()
    of_image = lambda number: [x for x in content["annotations"] if x["image_id"] == number]  # noqa: E731
    for annotation in of_image(2):
        annotation["iscrowd"] = 1
    of_image(3)[0]["iscrowd"] = 1
    removed = of_image(4)
    content["annotations"] = [x for x in content["annotations"] if x not in removed]
    written.rewrite(content)
    cfg = set_up(
        command(written, tmp_path, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", str(not keeps), *LOSSES)
    ).cfg
    found = [x for _, x in run.Trainer.build_validation_loader(cfg, "mixed")]
    counts = {x["image_id"]: len(x["instances"]) for x in found}
    remaining = len(of_image(3)) - 1
    full = {1: len(of_image(1)), 3: remaining}
    assert counts == (full | {2: 0, 4: 0} if keeps else full)


def test_impossible_annotations_are_left_out_and_a_set_without_any_is_refused(
    mixed: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = write_mixed(tmp_path / "other")
    content = written.read()
    content["annotations"][0]["bbox"][2] = 0
    written.rewrite(content)
    more = [*LOSSES, "DATASETS.TEST", "('other',)"]
    argv = ["--register-coco", "other", *written, *command(mixed, tmp_path / "output", *more)]
    assert set_up(argv).datasets_to_clean == ("other",)
    assert set_up([*argv, "TEST.VALIDATION_LOSS", "False"]).datasets_to_clean == ()
    written.rewrite(content | {"annotations": []})
    assert "TEST.VALIDATION_LOSS is True, but other" in refusal(argv, capsys)
