"""Exported files: foreign, damaged and hostile ones, and options that contradict them."""

import dataclasses
import json
import math
import shutil
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx

from tests.cli.test_predict import write_pictures
from tests.robustness.harness import Row, run_row, table
from tests.runtime.planted import description, planted, redescribed

Make = Callable[[Path], object]


def predict(*words: str, make: Make, name: str = "model.onnx") -> Callable[[Path], Sequence[str]]:
    """Prepare a picture and a file; return the words of `pointrend predict`."""

    def prepare(folder: Path) -> list[str]:
        write_pictures(folder / "in", [1])
        make(folder / name)
        return ["predict", "--model", name, "--input", "in", "--output", "out", *words]

    return prepare


def evaluate(*words: str) -> Callable[[Path], Sequence[str]]:
    def prepare(folder: Path) -> list[str]:
        shutil.copy(planted(), folder / "model.onnx")
        return ["evaluate", "--model", "model.onnx", *words]

    return prepare


def copied(path: Path) -> None:
    shutil.copy(planted(), path)


def described(**fields: object) -> Make:
    """Make a file with other fields in its description."""
    return lambda path: redescribed(path, planted(), dataclasses.replace(description(), **fields))


def with_json(change: Callable[[dict], object]) -> Make:
    """Make a file whose description no version of this package writes."""

    def make(path: Path) -> None:
        fields = json.loads(description().to_json())
        change(fields)
        model = onnx.load(planted())
        del model.metadata_props[:]
        model.metadata_props.add(key="point_rend", value=json.dumps(fields))
        onnx.save(model, path)

    return make


def with_config(text: str) -> Make:
    return described(config=text)


def another_program(path: Path) -> None:
    redescribed(path, planted(), None)


def cut_off(path: Path) -> None:
    content = planted().read_bytes()
    path.write_bytes(content[: len(content) // 2])


def unknown_operator(path: Path) -> None:
    model = onnx.load(planted())
    model.graph.node[0].op_type = "Poetry"
    onnx.save(model, path)


def external_weights(path: Path) -> None:
    """Let a constant of the graph be read from another file of the machine."""
    model = onnx.load(planted())
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, location="../../../../etc/hostname")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    onnx.save(model, path)


def with_augmentation(path: Path) -> None:
    redescribed(path, planted(), description("instances", "TEST.AUG.ENABLED", "True"))


def constant(task: str = "instances", **outputs: object) -> Make:
    """Make a file whose graph gives the same outputs for each image."""
    values = {
        "instances": {
            "boxes": np.array([[0, 0, 20, 20]], np.float32),
            "scores": np.array([0.9], np.float32),
            "classes": np.array([0]),
            "image": np.array([0]),
            "masks": np.full((1, 1, 8, 8), 0.9, np.float32),
        },
        "sem_seg": {"logits": None, "labels": np.zeros((1, 64, 96), np.int64)},
    }[task]

    def make(path: Path) -> None:
        nodes, results = [], []
        for name, value in (values | outputs).items():
            array = np.array(value)
            array = array.astype(np.float32) if array.dtype == np.float64 else array
            tensor = onnx.numpy_helper.from_array(array, name)
            nodes.append(onnx.helper.make_node("Constant", [], [name], value=tensor))
            results.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, array.shape))
        model = onnx.load(planted())
        del model.graph.node[:], model.graph.output[:], model.graph.value_info[:]
        del model.graph.initializer[:]
        model.graph.node.extend(nodes)
        model.graph.output.extend(results)
        del model.metadata_props[:]
        model.metadata_props.add(key="point_rend", value=description(task).to_json())
        onnx.save(model, path)

    return make


def bomb(path: Path) -> None:
    """Write an archive whose extra file unpacks to far more than the archive has."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/extra/point_rend", b" " * (1 << 27))


def torch_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/extra/point_rend", description().to_json())


def without(package: str) -> Callable[[], None]:
    def first() -> None:
        sys.modules[package] = None  # type: ignore[assignment]

    return first


def huge_fields(fields: dict) -> None:
    fields["max_side"] = 10**30


NOT_OURS = r"is not a model written by `pointrend export`"
ROWS = [
    Row("none", predict(make=lambda _: None), r"model does not exist: 'model\.onnx'"),
    Row("folder", predict(make=lambda path: path.mkdir()), r"model\.onnx: a folder, expected a f"),
    Row("checkpoint", predict(make=lambda x: x.touch(), name="a.pth"), r"a\.pth is no exported mo"),
    Row("empty", predict(make=lambda path: path.touch()), NOT_OURS),
    Row("text", predict(make=lambda path: path.write_text("text" * 999)), NOT_OURS),
    Row("of another program", predict(make=another_program), NOT_OURS),
    Row("cut off", predict(make=cut_off), NOT_OURS),
    Row("bomb", predict(make=bomb, name="model.pt2"), NOT_OURS, gibibytes=0.1),
    Row("unknown operator", predict(make=unknown_operator), r"model\.onnx cannot be loaded by onn"),
    Row("reads another file", predict(make=external_weights), r"cannot be loaded by onnxruntime"),
    Row(
        "reads another file, OpenVINO",
        predict("--backend", "openvino", make=external_weights),
        r"cannot be loaded by openvino",
    ),
    Row("mask head", predict(make=described(task="mask_head")), r"is a mask head without its mod"),
    Row("later format", predict(make=described(format=2)), r"has format 2 of version 1"),
    Row("huge number", predict(make=with_json(huge_fields)), r"damaged description \(its max_si"),
    Row(
        "no classes field", predict(make=with_json(lambda x: x.pop("classes"))), r"damaged .*class"
    ),
    Row("config executes", predict(make=with_config("A: !!python/name:os.abort ''")), r"python/na"),
    Row("config is no YAML", predict(make=with_config("{[")), r"the config in model\.onnx"),
    Row("unknown key", predict(make=with_config("NONSENSE: 1")), r"unknown config key NONSENSE"),
    Row("no config", predict(make=with_config("")), r"the config in model\.onnx: expected config"),
    Row("config for GPUs", predict(make=with_config("SEED: 1")), r"MODEL\.DEVICE is cuda"),
    Row(
        "image beyond the limits",
        predict(make=described(max_side=64)),
        r"model\.onnx was exported for images of up to 64 pixels a side, got 64 x 85",
    ),
    Row(
        "other outputs",
        predict(make=lambda path: redescribed(path, planted(), description("sem_seg"))),
        r"model\.onnx failed in onnxruntime",
    ),
    Row("huge divisor", predict(make=with_json(lambda x: x.update(divisor=1 << 14))), r"its divis"),
    Row("class names a text", predict(make=with_json(lambda x: x.update(classes="abc"))), r"'abc'"),
    Row(
        "config of another graph",
        predict(make=with_config(description("sem_seg").config)),
        r"not that of its graph: outputs sem_seg, expected instances",
    ),
    Row(
        "config with augmentation", predict(make=with_augmentation), r"TEST\.AUG\.ENABLED True, exp"
    ),
    *(
        Row(f"outputs with {name}", predict(make=constant(**{x: value})), r"model\.onnx is damaged")
        for name, x, value in [
            ("no box", "boxes", [[math.nan, 0, 20, 20]]),
            ("endless boxes", "boxes", [[-math.inf, 0, math.inf, 20]]),
            ("half classes", "classes", [0.5]),
            ("masks of no pixel", "masks", np.zeros((1, 1, 0, 0), np.float32)),
            ("masks of bits", "masks", np.ones((1, 1, 8, 8), bool)),
        ]
    ),
    Row(
        "small logits",
        predict("--formats", "labels", make=constant("sem_seg", logits=np.zeros((1, 4, 8, 8)))),
        r"model\.onnx is damaged: its logits have shape \(1, 4, 8, 8\)",
    ),
    Row(
        "logits of other classes",
        predict("--formats", "labels", make=constant("sem_seg", logits=np.zeros((1, 9, 64, 96)))),
        r"model\.onnx is damaged: its logits have shape \(1, 9, 64, 96\)",
    ),
    Row("executed", predict(make=torch_archive, name="a.pt2"), r"a\.pt2 is refused: PyTorch"),
    Row(
        "executed and damaged",
        predict("--allow-unsafe-checkpoint", make=torch_archive, name="model.ts"),
        r"model\.ts cannot be loaded by PyTorch",
    ),
    Row(
        "no runtime",
        predict(make=copied),
        r'onnxruntime is not installed; install it with: pip install "point_rend\[onnx\]"',
        first=without("onnxruntime"),
    ),
    Row(
        "no OpenVINO",
        predict("--backend", "openvino", make=copied),
        r'openvino is not installed; install it with: pip install "point_rend\[openvino\]"',
        first=without("openvino"),
    ),
    Row(
        "with a config",
        predict("--config-file", "config.yaml", make=copied),
        r"argument --config-file: not allowed with argument --model",
    ),
    Row(
        "with weights",
        predict("--opts", "MODEL.WEIGHTS", "a.pth", make=copied),
        r"MODEL\.WEIGHTS is a\.pth, but model\.onnx has weights of its own",
    ),
    Row(
        "on a GPU",
        predict("--opts", "MODEL.DEVICE", "cuda", make=copied),
        r"MODEL\.DEVICE is cuda, but model\.onnx runs on the CPU only",
    ),
    Row(
        "test-time augmentation",
        predict("--opts", "TEST.AUG.ENABLED", "True", make=copied),
        r"TEST\.AUG\.ENABLED is part of model\.onnx",
    ),
    Row("labels", predict("--formats", "labels", make=copied), r"--formats labels needs sem_seg"),
    Row(
        "evaluate with a config",
        evaluate("--config-file", "a.yaml"),
        r"--model model\.onnx has config and weights: leave --config-file out",
    ),
    Row("evaluate, resumed", evaluate("--resume"), r"has config and weights: leave --resume out"),
    Row("evaluate with weights", evaluate("MODEL.WEIGHTS", "a.pth"), r"leave MODEL\.WEIGHTS or -"),
    Row(
        "backend alone",
        lambda _: ["evaluate", "--backend", "openvino", "--config-file", "a.yaml"],
        r"--backend openvino runs the ONNX files of `pointrend export`: expected --model FILE",
    ),
]


@table(ROWS)
def test_a_bad_file_in_place_of_a_model_is_refused(row: Row, tmp_path: Path):
    run_row(row, tmp_path)
