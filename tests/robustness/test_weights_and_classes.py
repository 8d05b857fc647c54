"""Checkpoints of other classes, models and projects, damaged values, and files of class names."""

import functools
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch
from detectron2.modeling import build_model

from point_rend import load_config
from tests.cli.test_predict import SEMANTIC, TINY_SEMANTIC
from tests.robustness.harness import Row, run_row, table
from tests.tiny_datasets import KINDS, POINTREND, TINY_MODEL, scene, write_coco
from tests.tiny_semantic import write_sem_seg

THREE = ("MODEL.ROI_HEADS.NUM_CLASSES", "3")
State = dict[str, torch.Tensor]
Words = list[str]


@functools.cache
def tiny_state(config: str = POINTREND, opts: tuple[str, ...] = THREE) -> State:
    """Parameters of an untrained model."""
    torch.manual_seed(0)
    return build_model(load_config(config, [*TINY_MODEL, *opts])).state_dict()


def save(path: Path, state: dict[str, Any], **metadata: Any) -> Words:
    """Write a checkpoint; return the option that names it."""
    more = {"metadata": metadata} if metadata else {}
    torch.save({"model": state, **more}, path)
    return ["MODEL.WEIGHTS", path.name]


def run_on_coco(folder: Path, words: Sequence[str], *opts: str, train: bool = False) -> Words:
    """Words of a command that evaluates, or trains, on a tiny set in a folder."""
    written = write_coco(folder / "tiny", images=1)
    flags = [*words, "--config-file", POINTREND, "--register-coco", "tiny", *written]
    sets = ["DATASETS.TRAIN", "('tiny',)" if train else "()"]
    sets += ["DATASETS.TEST", "()" if train else "('tiny',)"]
    return [*flags, *TINY_MODEL, *sets, "OUTPUT_DIR", "output", *opts]


def evaluation(*flags: str, **metadata: Any) -> Callable[[Path], Words]:
    """Prepare an evaluation of a sound model of discs, boxes and triangles by its metadata."""

    def prepare(folder: Path) -> Words:
        weights = save(folder / "m.pth", tiny_state(), **metadata)
        return run_on_coco(folder, ["evaluate", *flags], *weights)

    return prepare


def weights_of(
    change: Callable[[State], dict[str, Any]], command: str = "evaluate", *opts: str
) -> Callable[[Path], Words]:
    """Prepare a command on a checkpoint that is made of a sound one."""

    def prepare(folder: Path) -> Words:
        weights = save(folder / "m.pth", change(dict(tiny_state())))
        if command == "predict":
            return predict(folder, *weights, *opts)
        if command == "ablate":
            words = ["ablate", "subdivision", "--output", "out", "--sides", "14"]
            return [*words, "--", *run_on_coco(folder, [], *weights, *opts)]
        return run_on_coco(folder, [command], *weights, *opts, train=command == "train")

    return prepare


def predict(folder: Path, *opts: str, flags: Sequence[str] = ()) -> Words:
    """Words of a prediction of one picture."""
    cv2.imwrite(str(folder / "a.png"), scene(0)[0])
    words = ["predict", "--config-file", POINTREND, "--input", "a.png", "--output", "out", *flags]
    return [*words, "--opts", *TINY_MODEL, *THREE, *opts]


def classes_of_prediction(names: str, **metadata: Any) -> Callable[[Path], Words]:
    def prepare(folder: Path) -> Words:
        weights = save(folder / "m.pth", tiny_state(), **metadata)
        return predict(folder, *weights, flags=["--classes", names])

    return prepare


def class_file(content: bytes, name: str = "classes.txt") -> Callable[[Path], Words]:
    """Prepare a training on label maps with a file of class names."""

    def prepare(folder: Path) -> Words:
        written = write_sem_seg(folder / "set")
        (folder / name).write_bytes(content)
        roots = [written.image_root, written.label_root]
        return ["train", "--config-file", SEMANTIC, "--register-sem-seg", "tiny", *roots, name]

    return prepare


def file_as_weights(content: bytes, name: str) -> Callable[[Path], Words]:
    def prepare(folder: Path) -> Words:
        (folder / name).write_bytes(content)
        return run_on_coco(folder, ["evaluate"], "MODEL.WEIGHTS", name)

    return prepare


def foreign(*keys: str, name: str = "model") -> Callable[[Path], Words]:
    """Prepare a training that starts from parameters with such names."""

    def prepare(folder: Path) -> Words:
        torch.save({name: {key: torch.ones(2, 2) for key in keys}}, folder / "m.pth")
        return run_on_coco(folder, ["train"], "MODEL.WEIGHTS", "m.pth", train=True)

    return prepare


def resumption(
    change: Callable[[State], State] = dict, trainer: Any = None, **metadata: Any
) -> Callable[[Path], Words]:
    """Prepare the resumption of a training from a last checkpoint."""

    def prepare(folder: Path) -> Words:
        output = folder / "output"
        output.mkdir()
        content = {"model": change(dict(tiny_state())), "trainer": trainer, "metadata": metadata}
        torch.save(content | {"iteration": 0}, output / "model_0000000.pth")
        (output / "last_checkpoint").write_text("model_0000000.pth")
        return run_on_coco(folder, ["train", "--resume"], train=True)

    return prepare


def semantic_evaluation(names: Sequence[str]) -> Callable[[Path], Words]:
    def prepare(folder: Path) -> Words:
        written = write_sem_seg(folder / "set", scales=(1,))
        state = tiny_state(SEMANTIC, tuple(TINY_SEMANTIC))
        weights = save(folder / "m.pth", state, stuff_classes=list(names))
        flags = ["--config-file", SEMANTIC, "--register-sem-seg", "tiny", *written]
        sets = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "('tiny',)", "OUTPUT_DIR", "output"]
        return ["evaluate", *flags, *TINY_MODEL, *TINY_SEMANTIC, *sets, *weights]

    return prepare


def with_nan(state: State) -> State:
    key = "backbone.bottom_up.res3.0.conv1.weight"
    state[key] = state[key].clone()
    state[key][0] = float("nan")
    return state


def with_prefix(state: State) -> State:
    return {f"model.{key}": value for key, value in state.items()}


def integers(state: State) -> State:
    return {key: value.to(torch.int8) for key, value in state.items()}


def with_negative_variance(state: State) -> State:
    key = "backbone.bottom_up.res3.0.conv1.norm.running_var"
    return state | {key: -state[key]}


def a_folder(folder: Path) -> Words:
    (folder / "names.txt").mkdir()
    return classes_of_prediction("names.txt")(folder)


def a_pipe(folder: Path) -> Words:
    os.mkfifo(folder / "names.txt")
    return classes_of_prediction("names.txt")(folder)


MOMENTUM = {
    "iteration": 0,
    "_trainer": {
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.tensor([float("inf")])}},
            "param_groups": [],
        }
    },
}


def two_orders(folder: Path) -> Words:
    """Prepare a training whose test set has the classes in another order."""
    other = write_coco(folder / "other", images=1)
    content = other.read()
    for category, name in zip(content["categories"], reversed(KINDS), strict=True):
        category["name"] = name
    other.rewrite(content)
    words = run_on_coco(folder, ["train", "--register-coco", "other", *other], train=True)
    return [*words, "DATASETS.TEST", "('other',)"]


OTHERS = ["bus", "car", "tram"]

CLASSES = [
    Row(
        "another order",
        evaluation(thing_classes=["box", "triangle", "disc"]),
        r"m\.pth has 3 \(box, triangle, disc\), DATASETS\.TEST tiny has 3 .* matched by name",
        exit_code=0,
    ),
    Row(
        "other names", evaluation(thing_classes=OTHERS), r"3 \(bus, car, tram\).*3 \(disc, box, tr"
    ),
    Row(
        "other names with the same spelling in another order",
        evaluation(thing_classes=["Box", "Triangle ", "disc"]),
        r"but for case, spaces, hyphens and underscores 'Box' is 'box', 'Triangle ' is 'triangle'",
    ),
    Row(
        "other spelling in the same order",
        evaluation(thing_classes=["Disc", "box ", "tri_angle"]),
        "taken by their position",
        exit_code=0,
    ),
    Row(
        "other names that are ignored",
        evaluation("--ignore-class-names", thing_classes=OTHERS),
        "taken by their position",
        exit_code=0,
    ),
    Row("more classes", evaluation(thing_classes=[*KINDS, "star"]), "only the former has star"),
    Row("fewer classes", evaluation(thing_classes=["disc"]), "only the latter has box, triangle"),
    Row(
        "one name twice",
        evaluation(thing_classes=["disc", "disc", "box"]),
        "only the latter has triangle; disc occurs more than once",
    ),
    Row(
        "names that are numbers", evaluation(thing_classes=[1, 2, 3]), "thing_classes .* not sound"
    ),
    Row(
        "other semantic classes",
        semantic_evaluation(["sky", "road", "tree", "car"]),
        r"the semantic classes differ: m\.pth has 4 \(sky, road",
    ),
    Row(
        "semantic classes in another order",
        semantic_evaluation([*KINDS, "ground"]),
        "matched by name",
        exit_code=0,
    ),
    Row(
        "resuming with another order",
        resumption(thing_classes=["box", "disc", "triangle"]),
        "a training resumes with the same classes in the same order",
    ),
    Row(
        "training and test sets in another order",
        two_orders,
        r"same order, but the instance classes differ: tiny .* 3 \(disc, box, .*only the order",
    ),
    Row(
        "names of other classes in a prediction",
        classes_of_prediction("box,star,disc", thing_classes=list(KINDS)),
        "only the former has triangle; only the latter has star: .* --ignore-class-names",
    ),
    Row(
        "names in another order in a prediction",
        classes_of_prediction("box,triangle,disc", thing_classes=list(KINDS)),
        "matched by name",
        exit_code=0,
    ),
    Row(
        "other names in a prediction",
        classes_of_prediction("x,y,z", thing_classes=list(KINDS)),
        "renamed by their position",
        exit_code=0,
    ),
]


def part_of(state: State) -> State:
    return {key: value for key, value in state.items() if "backbone" in key}


def deeper(state: State) -> State:
    """Add a block to a stage, as the weights of ResNet-101 have it in a model of ResNet-50."""
    return state | {k.replace("res4.5", "res4.6"): v for k, v in state.items() if "res4.5" in k}


def class_agnostic(state: State) -> State:
    return {k: v[:49] if "coarse_head.prediction" in k else v for k, v in state.items()}


EVALUATIONS = ("evaluate", "evaluate-with-stock", "ablate", "predict")
WEIGHTS = [
    *(
        Row(
            f"one unrelated parameter: {command}",
            weights_of(lambda _: {"foo": torch.ones(1)}, command),
            r"m\.pth has none of the \d+ parameters of the model, .* 1 others \(foo\)",
        )
        for command in (*EVALUATIONS, "train")
    ),
    *(
        Row(
            f"a part of the parameters: {command}",
            weights_of(part_of, command),
            r"m\.pth lacks \d+ \(proposal_generator.* expected weights of this model; look at",
        )
        for command in ("evaluate", "predict")
    ),
    *(
        Row(
            f"a deeper backbone: {command}",
            weights_of(deeper, command),
            r"m\.pth has \d+ parameters \(backbone\.bottom_up\.res4\.6.* MODEL\.RESNETS\.DEPTH",
        )
        for command in ("evaluate", "predict")
    ),
    *(
        Row(
            f"NaN: {command}",
            weights_of(with_nan, command),
            r"1 of the \d+ tensors .*res3\.0\.conv1\.weight with \d+ of \d+ values NaN or inf",
        )
        for command in (*EVALUATIONS, "train")
    ),
    Row("integers", weights_of(integers), r"the first is backbone.* with values of type int8"),
    Row(
        "a negative variance",
        weights_of(with_negative_variance),
        r"norm\.running_var with \d+ of \d+ variances below 0",
    ),
    Row(
        "NaN in a resumed model",
        resumption(with_nan),
        r"model_0000000\.pth: 1 of the \d+ tensors .* NaN or infinite",
    ),
    Row(
        "a resumed model that lacks parameters",
        resumption(part_of),
        r"model_0000000\.pth lacks \d+ .* expected weights of this model",
    ),
    Row(
        "infinite momentum",
        resumption(trainer=MOMENTUM),
        r"cannot be resumed: 1 of the 1 tensors of the optimizer .*momentum_buffer",
    ),
    Row(
        "the config of another training",
        evaluation(thing_classes=list(KINDS), config="INPUT: {FORMAT: RGB}"),
        r"m\.pth was trained with another config, .*INPUT\.FORMAT RGB \(now BGR\)",
        exit_code=0,
    ),
    Row(
        "another number of classes",
        weights_of(lambda _: tiny_state(opts=("MODEL.ROI_HEADS.NUM_CLASSES", "5"))),
        r"do not fit the configured model, look at MODEL\.ROI_HEADS\.NUM_CLASSES",
    ),
    Row(
        "class-agnostic masks",
        weights_of(class_agnostic),
        r"do not fit .*MODEL\.ROI_MASK_HEAD\.CLS_AGNOSTIC_MASK: .*coarse_head\.prediction",
    ),
    Row(
        "another width",
        weights_of(lambda _: tiny_state(opts=(*THREE, "MODEL.ROI_BOX_HEAD.FC_DIM", "8"))),
        r"do not fit .*MODEL\.ROI_BOX_HEAD\.FC_DIM.*box_head\.fc1\.weight: \(8,",
    ),
    Row(
        "a semantic model",
        weights_of(lambda _: tiny_state(SEMANTIC, tuple(TINY_SEMANTIC))),
        "look like the weights of a semantic model of PointRend",
    ),
    Row("YOLO", foreign("model.0.conv.weight", "model.22.cv2.0.0.conv.weight"), "Ultralytics YOLO"),
    Row(
        "mmdetection",
        foreign("backbone.layer1.0.conv1.weight", "rpn_head.rpn_conv.weight", name="state_dict"),
        "under 'state_dict': expected them under 'model', .* the weights of mmdetection",
    ),
    Row(
        "parameters under another name",
        foreign("image_encoder.pos_embed", "mask_decoder.iou_token.weight", name="my_net"),
        r"under 'my_net': expected them under 'model', .* \(SAM\)",
    ),
    Row(
        "a .pkl without its author",
        file_as_weights(pickle.dumps({"model": {"roi_heads.a": [1.0]}}), "m.pkl"),
        "under 'model': expected them under 'model' at the top, in a .pkl next to '__author__'",
    ),
    Row("a name that is no text", foreign("a.\ud800"), r"the model's 'a\.\\ud800' is no name"),
    Row("SAM", foreign("image_encoder.pos_embed", "mask_decoder.iou_token.weight"), r"\(SAM\)"),
    Row("Mask2Former", foreign("sem_seg_head.predictor.query_feat.weight"), "of Mask2Former"),
    Row(
        "torchvision", foreign("layer1.0.conv1.weight", "layer4.2.bn3.bias"), "torchvision's ResNet"
    ),
    Row("a prefix", weights_of(with_prefix, "train"), r"without the prefix 'model\.' some of them"),
    Row(
        "safetensors",
        file_as_weights(b"\x40" + bytes(7) + b'{"a": {"dtype": "F32"}}', "m.safetensors"),
        r"m\.safetensors cannot be read, .*its header is longer than the file",
    ),
    Row("a web page", file_as_weights(b"<!DOCTYPE html><html>", "m.pkl"), "like a web page"),
    Row("Git LFS", file_as_weights(b"version https://git-lfs.github.com/", "m.pth"), "of Git LFS"),
    Row("ONNX", file_as_weights(b"\x08\x08\x12\x07pytorch\x1a\x05", "m.onnx"), "an ONNX model"),
    Row("an empty file", file_as_weights(b"", "m.pth"), r"m\.pth cannot be read, .*an empty file"),
]

FILES = [
    Row(
        "Latin-1", class_file("ground\nröt\n".encode("latin-1")), r"classes\.txt, line 2: expected"
    ),
    Row(
        "a name twice", class_file(b"a\nb\n\na\n"), r"classes\.txt'.* a more than once \(1 and 4\)"
    ),
    Row("no name", class_file(b"\xef\xbb\xbf\r\n"), r"expected 1 to 255 different names, got 0"),
    Row("many names", class_file(b"".join(b"%d\n" % k for k in range(300))), "got 300"),
    Row("a picture", class_file(b"\x89PNG\r\n\x1a\n"), r"classes\.txt, line 1: expected text"),
    Row("YAML", class_file(b"names: [a, b]\n", "data.yaml"), r"data\.yaml: .* not \.yaml"),
    Row("a long line", class_file(b"a\n" + b"b" * 10**6), r"line 2: .* a line of 1000000 char"),
    Row("a large file", class_file(b"a\n" * 10**6), r"2000000 bytes or more, expected at most"),
    Row("a zero byte", class_file(b"a\nb\x00\n"), r"line 2: .* character that cannot be shown"),
    Row("a folder", a_folder, "a folder, expected a file"),
    Row("a pipe", a_pipe, "a pipe, expected a file"),
    Row("no file", classes_of_prediction("nowhere.txt"), r"nowhere\.txt"),
    Row("two names of three", classes_of_prediction("a,b"), "--classes has 2 names, but"),
]


@table(CLASSES)
def test_classes_that_are_not_those_of_the_data_set_are_named(row: Row, tmp_path: Path) -> None:
    run_row(row, tmp_path)


@table(WEIGHTS)
def test_weights_that_are_not_those_of_the_model_are_named(row: Row, tmp_path: Path) -> None:
    run_row(row, tmp_path)


@table(FILES)
def test_files_of_class_names_are_read_or_named(row: Row, tmp_path: Path) -> None:
    run_row(row, tmp_path)
