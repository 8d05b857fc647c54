"""A model in one folder, on this machine and on a hub."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from huggingface_hub import ModelCard, constants

from point_rend import Predictor, load_config
from point_rend.checkpoint.class_metadata import read_stored_metadata
from point_rend.cli import evaluate, run_command
from point_rend.engine import run, setup
from point_rend.inference.model_card import build_card, flat_metrics, read_metrics_file
from point_rend.runtime.hub import is_repository
from point_rend.runtime.model_folder import FILES, read_model_folder
from tests.checkpoint.nets import contents
from tests.cli.test_predict import (
    PANOPTIC,
    SEMANTIC,
    THREE_CLASSES,
    TINY_SEMANTIC,
    checkpoint_of,
)
from tests.hub_server import COMMIT, TOKEN, Hub
from tests.runtime.planted import planted
from tests.tiny_datasets import (
    KINDS,
    POINTREND,
    TINY_MODEL,
    process_state_restored,
    scene,
    write_coco,
)

METRICS = {"segm": {"AP": 37.25, "AP50": 60, "AP-disc": 1, "APl": float("nan")}, "bbox": {"AP": 4}}
FLAT = {"segm/AP": 37.25, "segm/AP50": 60, "bbox/AP": 4}


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


def build(folder: Path, config: str = POINTREND, opts: tuple[str, ...] = (), **classes: Any):
    opts = (*THREE_CLASSES, *opts)
    weights = checkpoint_of(folder / "m.pth", config=config, opts=opts, **classes)
    return Predictor(load_config(config, [*TINY_MODEL, *opts, *weights]))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that tests only read."""
    folder = tmp_path_factory.mktemp("saved")
    predictor = build(folder, thing_classes=list(KINDS), thing_colors=[[1, 2, 3]] * 3)
    return predictor.save_pretrained(folder / "model", license="mit", metrics=METRICS)


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """Return a folder that a test may change."""
    return shutil.copytree(saved, tmp_path / "model")


def assert_same_results(ours: Predictor, theirs: Predictor) -> None:
    actual, expected = ours(scene(0)[0]), theirs(scene(0)[0])
    assert actual.keys() == expected.keys()
    if "sem_seg" in expected:
        assert torch.equal(actual["sem_seg"], expected["sem_seg"])
    if "instances" in expected:
        fields = expected["instances"].get_fields()
        for name, value in actual["instances"].get_fields().items():
            tensor = getattr(value, "tensor", value)
            assert torch.equal(tensor, getattr(fields[name], "tensor", fields[name]))


@pytest.mark.parametrize(
    ("config", "opts"),
    [(POINTREND, ()), (SEMANTIC, TINY_SEMANTIC), (PANOPTIC, TINY_SEMANTIC)],
    ids=["instance", "semantic", "panoptic"],
)
def test_a_model_comes_back_with_its_bits_results_and_classes(
    config: str, opts: tuple[str, ...], tmp_path: Path
) -> None:
    first = build(tmp_path, config, tuple(opts))
    folder = first.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    again = Predictor.from_pretrained(folder)
    for name, value in first.metadata.as_dict().items():
        if name != "name":
            assert json.dumps(again.metadata.get(name)) == json.dumps(value)
    state = first.model.state_dict()
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert stored.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(stored[key], value)
    assert_same_results(again, first)


def test_the_config_is_complete_and_without_what_belongs_to_a_machine(saved: Path) -> None:
    cfg = load_config(str(saved / "config.yaml"))
    assert (cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.OUTPUT_DIR) == ("", "cuda", "./output")
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    assert cfg.MODEL.RESNETS.DEPTH == load_config(POINTREND, TINY_MODEL).MODEL.RESNETS.DEPTH
    stored = read_stored_metadata(str(saved / "model.safetensors"))
    assert stored.config == (saved / "config.yaml").read_text()
    assert stored.classes["thing_classes"] == list(KINDS)


def test_config_and_parameters_work_on_their_own(saved: Path) -> None:
    expected = Predictor.from_pretrained(saved)
    weights = saved / "model.safetensors"
    assert_same_results(
        Predictor.from_config_file(str(saved / "config.yaml"), weights=weights), expected
    )
    assert_same_results(Predictor.from_checkpoint(weights), expected)


def test_a_loaded_model_can_be_saved_again_with_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    again = Predictor.from_pretrained(saved).save_pretrained(tmp_path / "model")
    for name in ("model.safetensors", "config.yaml", "labels.json"):
        assert (again / name).read_bytes() == (saved / name).read_bytes()


def test_labels_are_names_ids_and_colors_in_the_order_of_the_classes(saved: Path) -> None:
    entries = json.loads((saved / "labels.json").read_text())["thing_classes"]
    assert [entry["name"] for entry in entries] == list(KINDS)
    assert [entry["id"] for entry in entries] == [1, 2, 3]
    assert [entry["color"] for entry in entries] == [[1, 2, 3]] * 3


def test_the_hub_reads_the_card(saved: Path) -> None:
    card = ModelCard.load(saved / "README.md")
    assert card.data.library_name == "point_rend"
    assert card.data.license == "mit"
    assert "instance-segmentation" in card.data.tags
    found = {(x.metric_name, x.metric_value) for x in card.data.eval_results}
    assert found == {(name.replace("/", " "), value) for name, value in FLAT.items()}
    digest = hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    assert card.data.to_dict()["point_rend"]["sha256"] == digest
    assert digest in card.text
    assert 'Predictor.from_pretrained("model")' in card.text
    assert str(saved.parent) not in card.content


def test_metrics_come_from_an_evaluation_or_from_the_file_of_a_training(tmp_path: Path) -> None:
    assert flat_metrics(METRICS) == FLAT
    assert flat_metrics({"a": METRICS}) == {f"a/{name}": value for name, value in FLAT.items()}
    file = tmp_path / "metrics.json"
    lines = ['{"lr": 1, "segm/AP": 1, "point/accuracy": 2}', "", '{"segm/AP": NaN, "bbox/AP": 4}']
    file.write_text("\n".join([*lines, '{"segm/AP": 37.25, "segm/AP50": 60, "segm/AP-disc": 1}']))
    assert read_metrics_file(file) == FLAT
    file.write_text(json.dumps(METRICS, indent=1))
    assert read_metrics_file(file) == FLAT
    for content, message in (("{}", "has no metric of segm, "), ("{", "truncated or not JSON")):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_metrics_file(file)


# Writing


def test_the_present_parameters_are_saved(saved: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_pretrained(saved)
    with torch.no_grad():
        for parameter in predictor.model.parameters():
            parameter.mul_(1.5)
    again = Predictor.from_pretrained(predictor.save_pretrained(tmp_path / "model"))
    assert_same_results(again, predictor)


def test_a_folder_with_content_is_only_replaced_when_asked(saved: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_pretrained(saved)
    folder = tmp_path / "used"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    (folder / "notes.txt").write_text("notes")
    with pytest.raises(ValueError, match=r"used is not empty: .*overwrite=True"):
        predictor.save_pretrained(folder)
    assert [path.name for path in sorted(folder.iterdir())] == ["README.md", "notes.txt"]
    predictor.save_pretrained(folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "notes"
    assert_same_results(Predictor.from_pretrained(folder), predictor)
    with pytest.raises(ValueError, match=r"notes\.txt is a file, expected a folder"):
        predictor.save_pretrained(folder / "notes.txt", overwrite=True)


def test_a_model_replaces_the_one_that_it_was_loaded_from(model: Path) -> None:
    Predictor.from_pretrained(model, opts=["SEED", "3"]).save_pretrained(model, overwrite=True)
    assert Predictor.from_pretrained(model).cfg.SEED == 3


def test_an_interrupted_writing_leaves_no_folder(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.from_pretrained(saved)

    def fail(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("point_rend.inference.folder.build_card", fail)
    with pytest.raises(OSError, match=r"model could not be saved \(No space left on device\)"):
        predictor.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="No space left on device"):
        predictor.save_pretrained(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_an_empty_folder_stays_itself_and_links_lead_to_the_model(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.from_pretrained(saved)
    files = {path.name: path.read_bytes() for path in saved.iterdir() if path.name != "README.md"}
    there = tmp_path / "working directory"
    there.mkdir()
    monkeypatch.chdir(there)
    (tmp_path / "to-folder").symlink_to(tmp_path / "folder")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-nothing").symlink_to(tmp_path / "absent")
    identity = there.stat().st_ino
    for folder in (".", "../to-folder", "../to-nothing"):
        predictor.save_pretrained(folder)
        for name, content in files.items():
            assert Path(folder, name).read_bytes() == content
    assert there.stat().st_ino == identity
    assert (tmp_path / "to-nothing").is_symlink()
    card = (there / "README.md").read_text()
    assert "\npointrend predict --model 'working directory' --input" in card


def test_one_of_two_processes_that_write_a_folder_at_once_finds_it_taken(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.from_pretrained(saved)

    def be_slower(*arguments: Any, **options: Any) -> str:
        shutil.copytree(saved, tmp_path / "model")
        return build_card(*arguments, **options)

    monkeypatch.setattr("point_rend.inference.folder.build_card", be_slower)
    with pytest.raises(OSError, match="a folder has its name, which another process may have"):
        predictor.save_pretrained(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert_same_results(Predictor.from_pretrained(tmp_path / "model"), predictor)


def test_an_interrupted_replacement_is_noticed_when_the_folder_is_loaded(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.from_pretrained(model)
    with torch.no_grad():
        next(predictor.model.parameters()).add_(1)

    def interrupt(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("point_rend.inference.folder.build_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        predictor.save_pretrained(model, overwrite=True)
    with pytest.raises(ValueError, match="is not the file of the card"):
        Predictor.from_pretrained(model)


def test_what_cannot_be_saved_is_one_error(saved: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_pretrained(saved)
    with pytest.raises(ValueError, match=r"license 'Apache 2': expected an identifier"):
        predictor.save_pretrained(tmp_path / "a", license="Apache 2")
    with pytest.raises(FileNotFoundError, match="metrics file does not exist"):
        predictor.save_pretrained(tmp_path / "a", metrics=tmp_path / "none.json")
    with pytest.raises(
        ValueError, match=r"planted\.onnx is an exported model: save the model that"
    ):
        Predictor(planted()).save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()


# Damaged folders


def changed(name: str, change: Callable[[str], str]) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(change((folder / name).read_text()))


def written(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)


def relabeled(**entry: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        labels = json.loads((folder / "labels.json").read_text())
        labels["thing_classes"][1] |= entry
        (folder / "labels.json").write_text(json.dumps(labels))

    return change


def one_label_less(folder: Path) -> None:
    labels = json.loads((folder / "labels.json").read_text())
    labels["thing_classes"].pop()
    (folder / "labels.json").write_text(json.dumps(labels))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    **{f"no {name}": (without(name), rf"model lacks {name}: expected a folder") for name in FILES},
    "other parameters": (cut, r"safetensors is not the file of the card: its SHA-256 is [0-9a-f]+"),
    "a card without a checksum": (
        changed("README.md", lambda text: text.replace("sha256:", "sha:")),
        r"model card .*README\.md: expected data between two lines ---",
    ),
    "a card without data": (
        written("README.md", "# Model\n"),
        "expected data between two lines ---",
    ),
    "a card that runs code": (
        written("README.md", "---\na: !!python/name:os.system\n---\n"),
        "never executed",
    ),
    "a config that runs code": (
        written("config.yaml", "SEED: !!python/object/apply:os.getpid []"),
        r"config\.yaml, line 1: .*never executed",
    ),
    "a config with a base": (
        changed("config.yaml", lambda text: "_BASE_: /etc/passwd\n" + text),
        r"config\.yaml.*_BASE_",
    ),
    "an unknown key": (changed("config.yaml", lambda text: "SEEDS: 3\n" + text), "SEEDS"),
    "other weights": (
        changed("config.yaml", lambda text: text.replace("WEIGHTS: ''", "WEIGHTS: /etc/passwd")),
        "MODEL.WEIGHTS is /etc/passwd, but .* has weights of its own",
    ),
    "a class less": (
        one_label_less,
        r"labels\.json has 2 thing_classes, but MODEL\.ROI_HEADS\.NUM_CLASSES is 3",
    ),
    "labels that are a list": (
        written("labels.json", "[]"),
        "expected an object with",
    ),
    "labels of another kind": (
        written("labels.json", '{"classes": []}'),
        "expected an object with thing_classes or stuff_classes",
    ),
    "no labels": (written("labels.json", "{}"), "has 0 thing_classes"),
    "an id twice": (relabeled(id=1), "two thing_classes have the same id"),
    "an id that is none": (relabeled(id=True), "number 1 of thing_classes is .*expected an object"),
    "a color of two": (relabeled(color=[1, 2]), "expected an object with a name, an integer id"),
    "a color beyond 255": (relabeled(color=[1, 2, 256]), "expected an object with a name"),
    "a field more": (relabeled(x=1), "expected an object with a name"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_line_that_names_the_fault(damage: str, model: Path) -> None:
    change, message = DAMAGES[damage]
    change(model)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        Predictor.from_pretrained(model)
    assert str(model) in str(error.value)
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)


def test_labels_may_be_renamed(model: Path) -> None:
    relabeled(name="Schachtel")(model)
    assert Predictor.from_pretrained(model).metadata.thing_classes[1] == "Schachtel"


def test_a_name_that_is_no_folder_and_no_repository_is_one_error(model: Path) -> None:
    for name in ("./none", "/none", "none", "a/b/c", "a/../b", "", model / "none"):
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            Predictor.from_pretrained(name)
    with pytest.raises(ValueError, match="is a file, expected a folder or a repository"):
        Predictor.from_pretrained(model / "labels.json")
    with pytest.raises(ValueError, match=r"revision 'main': .* is a folder"):
        Predictor.from_pretrained(model, revision="main")
    assert is_repository("user/model-1.0_x")


# The commands


def test_predict_and_evaluate_take_a_folder_or_a_repository_in_place_of_config_and_weights(
    saved: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["pointrend"])
    dataset = write_coco(tmp_path / "data")
    test = ["--register-coco", "tiny", *map(str, dataset)]
    opts = ["DATASETS.TEST", "('tiny',)", "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu"]
    config = ["--config-file", str(saved / "config.yaml")]
    weights = ["MODEL.WEIGHTS", str(saved / "model.safetensors")]
    pictures = [
        "--input",
        dataset.image_root,
        "--formats",
        "coco",
        "--confidence-threshold",
        "0.01",
    ]
    found = []
    for number, (model, own) in enumerate(
        ((["--model", str(saved)], []), (["--model", "me/model"], []), (config, weights))
    ):
        out = [str(tmp_path / name / str(number)) for name in ("predictions", "evaluation")]
        run_command("predict", [*model, *pictures, "--output", out[0], "--opts", *own])
        words = [*model, *test, *opts, "OUTPUT_DIR", out[1], *own]
        results = run.run(*setup.setup(evaluate.build_parser().parse_args(words)))
        predictions = json.loads(Path(out[0], "instances.json").read_text())
        found.append((predictions, json.dumps(results)))
    assert found[0] == found[1] == found[2]
    assert found[0][0]
    assert sorted(hub.downloaded) == sorted(FILES)


def test_export_saves_the_folder_that_the_predictor_saves(
    saved: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["pointrend"])
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps(METRICS))
    words = ["--config-file", str(saved / "config.yaml"), "--format", "folder", "--license", "mit"]
    words += ["--metrics", str(metrics), "--output", str(tmp_path / "model")]
    weights = ["--opts", "MODEL.WEIGHTS", str(saved / "model.safetensors")]
    run_command("export", [*words, *weights])
    assert contents(tmp_path / "model") == contents(saved)
    with pytest.raises(SystemExit):
        run_command("export", [*words, *weights])
    assert "--overwrite on the command line" in capsys.readouterr().err
    run_command("export", [*words, "--overwrite", *weights])
    assert contents(tmp_path / "model") == contents(saved)


def test_what_a_folder_has_is_not_given_again(saved: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["pointrend"])
    model = ["--model", str(saved)]
    for command, words, message in (
        ("evaluate", [*model, "MODEL.WEIGHTS", "m.pth"], "has weights of its own: leave MODEL.WEI"),
        ("evaluate", [*model, "--resume"], "has config and weights: leave --resume out"),
        ("evaluate", [*model, "--backend", "openvino"], "expected --model FILE"),
        ("predict", ["--model", "./none", "--input", str(saved)], "there is no folder ./none"),
        ("evaluate", ["--model", "none"], "there is no folder none"),
    ):
        with pytest.raises(SystemExit) as end:
            run_command(command, words)
        assert end.value.code == 2
        assert message in capsys.readouterr().err


# The hub


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what HF_ENDPOINT sets when the package is imported."""
    files = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: Path) -> Iterator[Hub]:
    """Start a hub that has `me/model`, with a stranger's files beside those of the model."""
    hub = Hub()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    point_to(hub.url, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    contents = {name: (saved / name).read_bytes() for name in FILES}
    others = {"setup.py": b"raise SystemExit", "pytorch_model.bin": b"x", "docs/README.md": b"x"}
    hub.repositories["me/model"] = contents | others
    yield hub
    hub.close()


def test_a_model_of_the_hub_is_that_of_its_folder_and_nothing_else_is_fetched(
    hub: Hub, saved: Path
) -> None:
    ours = Predictor.from_pretrained("me/model", opts=["TEST.DETECTIONS_PER_IMAGE", "7"])
    assert sorted(hub.downloaded) == sorted(FILES)
    assert ours.cfg.TEST.DETECTIONS_PER_IMAGE == 7
    assert_same_results(
        Predictor.from_pretrained("me/model", revision=COMMIT), Predictor.from_pretrained(saved)
    )
    assert len(hub.downloaded) == len(FILES)  # the second time they come from the cache


@pytest.mark.usefixtures("hub")
def test_without_a_network_the_cache_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    Predictor.from_pretrained("me/model")
    point_to("http://127.0.0.1:9", monkeypatch)
    assert Predictor.from_pretrained("me/model").metadata.thing_classes == list(KINDS)
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:9/me/other cannot be reached: "):
        Predictor.from_pretrained("me/other")


def test_a_private_model_needs_a_token(hub: Hub) -> None:
    hub.private.add("me/model")
    with pytest.raises(OSError, match=r"me/model: there is no such model, or it is private: pass"):
        Predictor.from_pretrained("me/model")
    with pytest.raises(OSError, match="there is no such model, or it is private"):
        Predictor.from_pretrained("me/other", token=TOKEN)
    assert Predictor.from_pretrained("me/model", token=TOKEN).metadata.thing_classes == list(KINDS)


def test_what_the_hub_refuses_is_one_line(hub: Hub) -> None:
    with pytest.raises(OSError, match="me/model has no revision v2"):
        Predictor.from_pretrained("me/model", revision="v2")
    hub.gated.add("me/gated")
    with pytest.raises(OSError, match="me/gated is only for users to whom its owner has given"):
        Predictor.from_pretrained("me/gated")
    hub.sizes["model.safetensors"] = 1 << 40
    with pytest.raises(ValueError, match=r"safetensors has 1099511627776 bytes, .*_DOWNLOAD_LIMIT"):
        Predictor.from_pretrained("me/model")
    hub.sizes = {"README.md": 1 << 30}
    with pytest.raises(ValueError, match=r"README\.md has 1073741824 bytes, expected 1000000 at"):
        Predictor.from_pretrained("me/model")
    del hub.repositories["me/model"]["labels.json"]
    with pytest.raises(ValueError, match=r"me/model lacks labels\.json: expected a model of"):
        Predictor.from_pretrained("me/model")
    assert hub.downloaded == []


def test_other_parameters_than_those_of_the_card_are_refused(hub: Hub) -> None:
    content = hub.repositories["me/model"]["model.safetensors"]
    hub.repositories["me/model"]["model.safetensors"] = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(ValueError, match="is not the file of the card"):
        Predictor.from_pretrained("me/model")


def test_a_pushed_model_can_be_fetched(hub: Hub, saved: Path) -> None:
    predictor = Predictor.from_pretrained(saved)
    url = predictor.push_to_hub("me/new", private=True, token=TOKEN, license="mit", metrics=METRICS)
    assert url == f"{hub.url}/me/new/commit/{COMMIT}"
    (created,) = hub.created
    assert created["name"] == "new"
    assert created.get("visibility", "private") == "private"
    assert hub.repositories["me/new"].keys() == set(FILES)
    card = hub.repositories["me/new"]["README.md"].decode()
    assert 'Predictor.from_pretrained("me/new")' in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    assert_same_results(Predictor.from_pretrained("me/new"), predictor)


@pytest.mark.usefixtures("hub")
def test_a_push_that_fails_is_one_line(saved: Path, monkeypatch) -> None:
    predictor = Predictor.from_pretrained(saved)
    with pytest.raises(ValueError, match="'a/b/c' is no name of a repository"):
        predictor.push_to_hub("a/b/c")
    point_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:9/me/new cannot be reached: "):
        predictor.push_to_hub("me/new")


def test_without_the_package_the_command_that_installs_it_is_named(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.from_pretrained(saved)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (
        lambda: Predictor.from_pretrained("me/model"),
        lambda: predictor.push_to_hub("me/model"),
    ):
        with pytest.raises(ValueError, match=r'huggingface_hub is not .*"point_rend\[hub\]"'):
            call()


def test_the_reader_gives_the_paths_and_texts_of_a_folder(saved: Path) -> None:
    found = read_model_folder(saved)
    assert found.weights == str(saved / "model.safetensors")
    assert found.config == (saved / "config.yaml").read_text()
    assert found.classes["thing_dataset_id_to_contiguous_id"] == {1: 0, 2: 1, 3: 2}
