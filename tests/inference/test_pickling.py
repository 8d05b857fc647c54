"""A predictor that is pickled: same results elsewhere, without the files it was made from."""

import multiprocessing
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle

from point_rend import Predictor, load_config
from point_rend.runtime.exported_model import ExportedModel
from tests.cli.test_predict import checkpoint_of
from tests.inference.test_predictor import EXACT, MODELS, assert_same, scene
from tests.runtime.planted import planted
from tests.tiny_datasets import TINY_MODEL, process_state_restored

AUGMENTED = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64, 80)"]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


def predictor_of(folder: Path, kind: str = "instance", *opts: str, **options: Any) -> Predictor:
    """Return the predictor of a tiny model whose checkpoint no longer exists."""
    config, classes = MODELS[kind]
    weights = checkpoint_of(folder / "m.pth", config=config, opts=classes)
    cfg = load_config(config, [*TINY_MODEL, *classes, *weights, *opts])
    predictor = Predictor(cfg, **options)
    (folder / "m.pth").unlink()
    return predictor


@pytest.mark.parametrize("library", [pickle, cloudpickle])
@pytest.mark.parametrize("kind", MODELS)
def test_an_unpickled_predictor_gives_the_same_results(kind: str, library: Any, tmp_path: Path):
    predictor = predictor_of(tmp_path, kind)
    again = library.loads(library.dumps(predictor))
    assert_same(again(scene()), predictor(scene()))
    assert again.cfg == predictor.cfg
    assert again.metadata.as_dict() == predictor.metadata.as_dict()
    assert again([scene()], batch_size=1)[0].keys() == predictor(scene()).keys()


@pytest.mark.parametrize("kind", ["instance", "semantic"])
def test_augmentation_and_unpasted_masks_survive(kind: str, tmp_path: Path):
    predictor = predictor_of(tmp_path, kind, *AUGMENTED, paste_masks=False)
    again = pickle.loads(pickle.dumps(predictor))
    ours, theirs = again(scene()), predictor(scene())
    if kind == "instance":
        ours, theirs = ours["instances"], theirs["instances"]
        assert type(ours.pred_masks) is type(theirs.pred_masks)
        assert list(ours.pred_masks.rles()) == list(theirs.pred_masks.rles())
        torch.testing.assert_close(ours.scores, theirs.scores, **EXACT)
    else:
        assert_same(ours, theirs)


def test_what_a_user_has_changed_in_the_model_is_part_of_the_pickle(tmp_path: Path):
    predictor = predictor_of(tmp_path)
    predictor.model.roi_heads.box_predictor.test_score_thresh = 2.0
    assert len(pickle.loads(pickle.dumps(predictor))(scene())["instances"]) == 0


def scores_of(predictor: Predictor) -> list[float]:
    return predictor(scene())["instances"].scores.tolist()


def test_a_process_that_shares_nothing_gives_the_same_results(tmp_path: Path):
    predictor = predictor_of(tmp_path)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(scores_of, [predictor]).get(timeout=120) == scores_of(predictor)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("planted.onnx", {}),
        ("planted.onnx", {"backend": "openvino"}),
        ("planted.pt2", {"allow_unsafe": True}),
        ("planted.ts", {"allow_unsafe": True}),
    ],
)
def test_an_exported_model_takes_its_file_along(name: str, options: Any, tmp_path: Path):
    path = shutil.copy(planted(name), tmp_path)
    predictor = Predictor.from_exported(path, threads=1, **options)
    content = pickle.dumps(predictor)
    os.unlink(path)
    once = pickle.loads(content)
    twice = pickle.loads(pickle.dumps(once))
    for again in (once, twice):
        assert isinstance(again.model, ExportedModel)
        assert again.model.session.runtime == predictor.model.session.runtime
        assert_same(again(scene()), predictor(scene()))


def test_an_exported_file_that_has_changed_is_not_taken_along(tmp_path: Path):
    path = Path(shutil.copy(planted(), tmp_path))
    predictor = Predictor(path)
    os.utime(path, ns=(0, 0))
    with pytest.raises(pickle.PicklingError, match="has changed since it was loaded"):
        pickle.dumps(predictor)


# Devices


@pytest.mark.usefixtures("cuda")
def test_a_pickle_of_a_gpu_holds_nothing_of_the_gpu(tmp_path: Path):
    predictor = predictor_of(tmp_path, "semantic").to("cuda")
    assert predictor.model.pixel_mean.device.type == "cuda"
    state = predictor.__getstate__()
    assert {x.device.type for x in state["model"].state_dict().values()} == {"cpu"}
    assert predictor.model.pixel_mean.device.type == "cuda"
    again = pickle.loads(pickle.dumps(predictor))
    assert again.cfg.MODEL.DEVICE == "cuda"
    assert again.model.pixel_mean.device.type == "cuda"
    assert_same(again.to("cpu")(scene()), predictor.to("cpu")(scene()))


def test_a_machine_without_the_device_refuses_in_one_line(tmp_path: Path):
    predictor = predictor_of(tmp_path)
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE is cuda, but there is no CUDA device"):
        predictor.to("cuda")
    assert predictor.cfg.MODEL.DEVICE == "cpu"
    assert len(predictor(scene())["instances"]) > 0
    with pytest.raises(ValueError, match=r"planted\.onnx runs on the CPU, not on cuda"):
        Predictor(planted()).to("cuda")
