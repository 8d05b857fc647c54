"""Resuming from the last checkpoint, or an earlier one."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm

from point_rend.checkpoint.checkpointer import (
    SafeDetectionCheckpointer,
    holds_checkpoint,
    saved_by_training,
)
from point_rend.checkpoint.sealed_file import DamagedError
from tests.checkpoint.nets import assert_same_state, log_of, net, save_net


def test_resuming_takes_up_the_model_and_the_optimizer(tmp_path: Path):
    model = net(seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model["backbone"](torch.ones(1, 4)).sum().backward()
    optimizer.step()
    SafeDetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).save("m", iteration=5)

    again = net(seed=2)
    other = torch.optim.SGD(again.parameters(), lr=0.5, momentum=0.9)
    checkpointer = SafeDetectionCheckpointer(again, str(tmp_path), optimizer=other)
    assert checkpointer.resume_or_load("unused", resume=True) == {"iteration": 5}
    assert_same_state(again.state_dict(), model.state_dict())
    assert other.param_groups[0]["lr"] == 0.1
    momentum = other.state_dict()["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, optimizer.state_dict()["state"][0]["momentum_buffer"])


def test_the_stock_checkpointer_resumes_what_ours_saved(tmp_path: Path):
    model, again = net(seed=1), net(seed=2)
    SafeDetectionCheckpointer(model, str(tmp_path)).save("m", iteration=5)
    stock = DetectionCheckpointer(again, str(tmp_path))
    assert stock.resume_or_load("unused", resume=True) == {"iteration": 5}
    assert_same_state(again.state_dict(), model.state_dict())


def test_resuming_in_an_empty_directory_starts_from_the_weights_with_a_warning(tmp_path: Path):
    weights = save_net(tmp_path / "weights.pth")
    (tmp_path / "empty").mkdir()
    model = net()
    checkpointer = SafeDetectionCheckpointer(model, str(tmp_path / "empty"))
    with log_of("fvcore.common.checkpoint") as messages:
        checkpointer.resume_or_load(weights, resume=True)
    assert any(m.startswith("WARNING Nothing to resume") and weights in m for m in messages)
    assert_same_state(model.state_dict(), net(seed=9).state_dict())


def test_resuming_where_only_some_processes_have_a_checkpoint_is_refused_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    others = [(True, "far"), (False, "far"), (False, "away")]
    monkeypatch.setattr(comm, "all_gather", lambda mine: [(False, "far"), mine, *others])
    checkpointer = SafeDetectionCheckpointer(net(), str(tmp_path))
    lacking = f"1 of 5 .* for rank 0, 3 in 'far' and rank 1 in '{tmp_path}' and rank 4 in 'away'"
    with pytest.raises(ValueError, match=f"only {lacking}: OUTPUT_DIR has to be one folder"):
        checkpointer.resume_or_load("", resume=True)
    save_run(tmp_path)
    with pytest.raises(ValueError, match=r"only 2 of 5 .* for rank 0, 3 in 'far' and rank 4 in"):
        checkpointer.resume_or_load("", resume=True)


def test_not_resuming_loads_the_weights_alone_silently(tmp_path: Path):
    weights = save_net(tmp_path / "weights.pth")
    model = net()
    SafeDetectionCheckpointer(net(seed=3), str(tmp_path)).save("m")
    with log_of("fvcore.common.checkpoint") as messages:
        SafeDetectionCheckpointer(model, str(tmp_path)).resume_or_load(weights, resume=False)
    assert not any(message.startswith("WARNING") for message in messages)
    assert_same_state(model.state_dict(), net(seed=9).state_dict())


def test_resuming_is_strict_about_shapes_even_where_loading_is_not(tmp_path: Path):
    SafeDetectionCheckpointer(net(classes=7), str(tmp_path)).save("m")
    checkpointer = SafeDetectionCheckpointer(net(), str(tmp_path), strict_shapes=False)
    with pytest.raises(ValueError, match="these shapes do not fit"):
        checkpointer.resume_or_load("unused", resume=True)
    checkpointer.resume_or_load(str(tmp_path / "m.pth"), resume=False)


@pytest.mark.parametrize("name", ["../m.pth", "{outside}", "sub/m.pth", "..", ".", "m\0.pth", "/"])
def test_last_checkpoint_cannot_lead_out_of_its_folder(tmp_path: Path, name: str):
    outside = save_net(tmp_path / "m.pth")
    folder = tmp_path / "run"
    (folder / "sub").mkdir(parents=True)
    save_net(folder / "sub" / "m.pth")
    (folder / "last_checkpoint").write_text(name.format(outside=outside))
    with pytest.raises(ValueError, match="must name a file in its own folder") as error:
        SafeDetectionCheckpointer(net(), str(folder)).resume_or_load("", resume=True)
    assert str(folder / "last_checkpoint") in str(error.value)


def test_last_checkpoint_cannot_lead_out_through_a_link(tmp_path: Path):
    outside = save_net(tmp_path / "m.pth")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "link.pth").symlink_to(outside)
    (folder / "last_checkpoint").write_text("link.pth")
    with pytest.raises(ValueError, match="must name a file in its own folder"):
        SafeDetectionCheckpointer(net(), str(folder)).get_checkpoint_file()


def test_a_linked_output_folder_is_followed(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    checkpointer = SafeDetectionCheckpointer(net(), str(tmp_path / "link"))
    checkpointer.save("m")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "link" / "m.pth")


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_last_checkpoint_is_an_error(tmp_path: Path, text: str):
    (tmp_path / "last_checkpoint").write_text(text)
    with pytest.raises(ValueError, match="last_checkpoint is empty"):
        SafeDetectionCheckpointer(net(), str(tmp_path)).resume_or_load("", resume=True)


@pytest.mark.parametrize("name", [b"gone.pth", b"\xff\xfe"])
def test_a_last_checkpoint_that_names_no_file_is_an_error(tmp_path: Path, name: bytes):
    (tmp_path / "last_checkpoint").write_bytes(name)
    with pytest.raises(DamagedError, match=r"last_checkpoint names .* no such file"):
        SafeDetectionCheckpointer(net(), str(tmp_path)).resume_or_load("", resume=True)


class Progress:
    """An object that is saved together with a model."""

    def __init__(self, iteration: int = -1) -> None:
        self.iteration = iteration

    def state_dict(self) -> dict[str, int]:
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.iteration = state["iteration"]


def save_run(folder: Path, iterations: int = 3) -> None:
    """Save checkpoints of a training, a second apart, and newer weights in the same folder."""
    for iteration in range(iterations):
        trainer = Progress(iteration)
        name = f"model_{iteration}"
        SafeDetectionCheckpointer(net(seed=iteration), str(folder), trainer=trainer).save(name)
        os.utime(folder / f"{name}.pth", (iteration, iteration))
    save_net(folder / "weights.pth")


def resumed(folder: Path) -> tuple[Progress, list[str]]:
    """Resume in a folder; return the state that has been found, and the warnings."""
    trainer, model = Progress(), net(seed=77)
    with log_of("fvcore.common.checkpoint") as messages:
        checkpointer = SafeDetectionCheckpointer(model, str(folder), trainer=trainer)
        checkpointer.resume_or_load("", resume=True)
    assert_same_state(model.state_dict(), net(seed=trainer.iteration).state_dict())
    return trainer, [message for message in messages if message.startswith("WARNING")]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, os.remove])
def test_resuming_goes_back_to_the_newest_readable_checkpoint_with_a_warning(
    tmp_path: Path, damage: Callable[[Path], None]
):
    save_run(tmp_path)
    (tmp_path / "weights.pth").rename(tmp_path / "model_3.pth")
    for name in ("model_2.pth", "model_1.pth"):
        damage(tmp_path / name)
    trainer, (warning,) = resumed(tmp_path)
    assert trainer.iteration == 0
    assert f"Resuming from {tmp_path / 'model_0.pth'}, because" in warning
    assert "model_2.pth" in warning
    assert ("model_1.pth" in warning) == (damage is not os.remove)
    assert "model_3.pth holds no trainer" in warning


def link_to_nothing(tag: Path) -> None:
    tag.unlink()
    tag.symlink_to("gone")


USELESS_TAGS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda tag: tag.write_text(""),
    "dangling": lambda tag: tag.write_text("gone.pth"),
    "zeros": lambda tag: tag.write_bytes(bytes(11)),
    "binary": lambda tag: tag.write_bytes(bytes(range(256))),
    "huge": lambda tag: tag.write_bytes(b"model_0.pth" * 1000),
    "a dangling link": link_to_nothing,
}


@pytest.mark.parametrize("change", USELESS_TAGS.values(), ids=USELESS_TAGS)
def test_resuming_finds_the_newest_checkpoint_if_the_tag_is_useless(
    tmp_path: Path, change: Callable[[Path], object]
):
    save_run(tmp_path)
    change(tmp_path / "last_checkpoint")
    trainer, (warning,) = resumed(tmp_path)
    assert trainer.iteration == 2
    assert str(tmp_path / "last_checkpoint") in warning


def test_the_newest_checkpoint_is_that_of_the_most_iterations_not_the_youngest_file(
    tmp_path: Path,
):
    for iteration, name in enumerate(["model_final", "model_0000001", "model_0000002", "mine"]):
        trainer = Progress(iteration)
        checkpointer = SafeDetectionCheckpointer(
            net(seed=iteration), str(tmp_path), trainer=trainer
        )
        checkpointer.save(name, iteration=iteration)
        os.utime(tmp_path / f"{name}.pth", (9 - iteration, 9 - iteration))
    for expected in (3, 2, 1, 0):
        (tmp_path / "last_checkpoint").unlink(missing_ok=True)
        trainer, (warning,) = resumed(tmp_path)
        assert trainer.iteration == expected
        (tmp_path / warning.split(", because")[0].rpartition("/")[2]).unlink()


def test_a_tag_alone_or_a_training_without_a_tag_is_not_nothing_to_resume(tmp_path: Path):
    save_run(tmp_path, iterations=1)
    truncate(tmp_path / "model_0.pth")
    (tmp_path / "last_checkpoint").unlink()
    with pytest.raises(DamagedError, match=r"no checkpoint can be resumed: .*missing; .*model_0"):
        resumed(tmp_path)
    (tmp_path / "model_0.pth").unlink()
    checkpointer = SafeDetectionCheckpointer(net(), str(tmp_path), trainer=Progress())
    assert not checkpointer.has_checkpoint()  # weights of another name are never overwritten


def test_weights_without_the_state_of_a_training_are_not_resumed(tmp_path: Path):
    save_net(tmp_path / "weights.pth")
    (tmp_path / "last_checkpoint").write_text("weights.pth")
    with pytest.raises(DamagedError, match=r"weights.pth holds no trainer"):
        resumed(tmp_path)


@pytest.mark.parametrize("name", ["model_final_ema.pth", "model_best.pth"])
def test_weights_of_a_training_belong_to_it_but_are_not_resumed(tmp_path: Path, name: str):
    save_net(tmp_path / name)
    assert saved_by_training(tmp_path) == [name]
    assert not holds_checkpoint(tmp_path)
    save_run(tmp_path, iterations=2)
    (tmp_path / "last_checkpoint").unlink()
    trainer, _ = resumed(tmp_path)
    assert trainer.iteration == 1


def test_a_tag_that_can_be_followed_is_followed_to_an_older_checkpoint(tmp_path: Path):
    save_run(tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_1.pth")
    trainer, warnings = resumed(tmp_path)
    assert trainer.iteration == 1
    assert warnings == []


def test_resuming_without_any_readable_checkpoint_is_an_error_that_names_all(tmp_path: Path):
    save_run(tmp_path, iterations=2)
    for path in tmp_path.glob("model_*"):
        truncate(path)
    with pytest.raises(DamagedError, match="damaged") as error:
        resumed(tmp_path)
    for name in ("model_0.pth", "model_1.pth", "weights.pth"):
        assert str(error.value).count(str(tmp_path / name)) == 1
