"""Every call that could execute a file, or write by a name from a file, has a known reason.

The installed Detectron2 and what it reads files with, and this package, are searched for calls that
unpickle, evaluate, import by name, start programs or download, and for calls that write. Each one
found has an entry here with the reason why no file of a stranger reaches it. A call without an
entry fails the test: it comes with another version, or is new.
"""

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import point_rend

OURS = Path(point_rend.__file__).parent
THIRD_PARTIES = (
    *("detectron2", "fvcore", "iopath", "yacs"),
    *("pycocotools", "faster_coco_eval", "lvis", "cityscapesscripts", "panopticapi"),
)
EXECUTES = re.compile(
    r"(^|\.)(eval|exec|__import__|import_module|load_source|spec_from_file_location|run_path"
    r"|SourceFileLoader|locate|unsafe_load|full_load|load_all|unsafe_load_all|Unpickler"
    r"|FileStorage|urlretrieve|urlopen|load_url|load_state_dict_from_url|system|popen|Popen"
    r"|subprocess\.check_output|subprocess\.check_call|subprocess\.getoutput|extractall|unpack_archive|CDLL|LoadLibrary)$"
    r"|^(pickle|cPickle|cloudpickle|dill|marshal|joblib|torch|torch\.jit|torch\.hub|np|numpy"
    r"|yaml|shelve|tarfile|zipfile|requests|subprocess|LazyConfig|request|pydoc|pd|pandas)"
    r"\.(loads?|open|run|call|get|post|locate|read_pickle|urlopen)$"
)
WRITES = re.compile(
    r"(^|\.)(imwrite|save|savefig|tofile|copyfile|copytree|symlink|makedirs|mkdirs|urlretrieve"
    r"|write_text|write_bytes|VideoWriter)$|^(shutil|os)\.(move|copy|rename|replace)$"
)
# A file that has none of these words has no such call.
WORDS = re.compile(
    r"eval|exec|import|load|locate|Unpickler|Storage|url|system|open|subprocess|extract|unpack"
    r"|CDLL|requests|\.get\(|write|save|copy|link|mkdirs|makedirs|move|rename|replace|tofile"
)

DOWNLOADS = "point_rend.utils.downloads replaces its handler, in our path managers and commands"
NOT_CALLED = "nothing of this package calls it, see test_nothing_calls_what_executes"
OWN_PROCESSES = "reads what another process of the same run has just pickled"
FROM_ENVIRONMENT = "the name comes from an environment variable of the user, not from a file"
OWN_NAMES = "the names stand in this package"

# "file: call" -> the reason why no file of a stranger reaches it.
EXECUTING = {
    "detectron2/checkpoint/detection_checkpoint.py: pickle.load": "replaced by formats.read_pickle",
    "detectron2/checkpoint/detection_checkpoint.py: torch.load": "replaced by read_pycls_file",
    "detectron2/config/instantiate.py: locate": NOT_CALLED,
    "detectron2/config/lazy.py: LazyConfig.load": NOT_CALLED,
    "detectron2/config/lazy.py: exec": NOT_CALLED,
    "detectron2/config/lazy.py: yaml.unsafe_load": NOT_CALLED,
    "detectron2/data/build.py: pickle.load": "replaced by load_proposals where loaders are built",
    "detectron2/data/common.py: pickle.loads": "records that the same object has pickled",
    "detectron2/export/caffe2_modeling.py: torch.load": NOT_CALLED,
    "detectron2/export/flatten.py: locate": NOT_CALLED,
    "detectron2/model_zoo/model_zoo.py: LazyConfig.load": NOT_CALLED,
    "detectron2/projects/__init__.py: importlib.util.spec_from_file_location": "its own projects",
    "detectron2/utils/collect_env.py: subprocess.check_output": FROM_ENVIRONMENT,
    "detectron2/utils/env.py: importlib.import_module": FROM_ENVIRONMENT,
    "detectron2/utils/env.py: importlib.util.spec_from_file_location": FROM_ENVIRONMENT,
    "detectron2/utils/registry.py: locate": NOT_CALLED,
    "detectron2/utils/registry.py: pydoc.locate": NOT_CALLED,
    "detectron2/utils/testing.py: LazyConfig.load": NOT_CALLED,
    "detectron2/utils/testing.py: torch.jit.load": NOT_CALLED,
    "detectron2/utils/tracing.py: eval": "asserts about the code that calls it, while tracing",
    "fvcore/common/checkpoint.py: torch.load": "replaced by SafeDetectionCheckpointer._torch_load",
    "fvcore/common/config.py: yaml.unsafe_load": NOT_CALLED,
    "iopath/common/download.py: request.urlretrieve": DOWNLOADS,
    "yacs/config.py: imp.load_source": NOT_CALLED,
    "yacs/config.py: importlib.util.spec_from_file_location": NOT_CALLED,
    "pycocotools/coco.py: urlretrieve": NOT_CALLED,
    "faster_coco_eval/utils/pytorch/coco_eval.py: pickle.loads": NOT_CALLED,
    "lvis/lvis.py: urlretrieve": NOT_CALLED,
    "cityscapesscripts/evaluation/evalPixelLevelSemanticLabeling.py: platform.system": "a constant",
    "point_rend/__init__.py: importlib.import_module": OWN_NAMES,
    "point_rend/batch_inference/ray_actors.py: pickle.loads": OWN_PROCESSES,
    "point_rend/batch_inference/ray_cluster.py: subprocess.run": "Python, with code of its own",
    "point_rend/checkpoint/__init__.py: importlib.import_module": OWN_NAMES,
    "point_rend/checkpoint/formats.py: pickle.load": "only with allow_unsafe=True",
    "point_rend/checkpoint/sealed_file.py: torch.load": "weights_only, after check_torch_file",
    "point_rend/cli/__init__.py: importlib.import_module": OWN_NAMES,
    "point_rend/cli/install_detectron2.py: archive.extractall": "a wheel of a known SHA-256",
    "point_rend/cli/install_detectron2.py: subprocess.run": "pip, with requirements of the user",
    "point_rend/config/__init__.py: importlib.import_module": OWN_NAMES,
    "point_rend/data/datasets/packed.py: pickle.loads": "records that the same object has pickled",
    "point_rend/data/loader/transport.py: pickle.loads": OWN_PROCESSES,
    "point_rend/experiments/benchmark/load.py: subprocess.Popen": "Python, with code of its own",
    "point_rend/experiments/benchmark/memory.py: ctypes.CDLL": "the C library",
    "point_rend/runtime/sessions.py: torch.jit.load": "only with allow_unsafe=True",
    "point_rend/registration.py: importlib.import_module": OWN_NAMES,
    "point_rend/utils/children.py: subprocess.Popen": "this program, or Python; no shell",
    "point_rend/utils/downloads.py: importlib.import_module": OWN_NAMES,
    "point_rend/utils/package_alias.py: importlib.import_module": "named by an import statement",
    "point_rend/utils/signals.py: ctypes.CDLL": "the C library",
}

INTO_OUTPUT = "constant names in OUTPUT_DIR, or a folder of it by the name of a registered data set"
BASENAME = "the last part of an image's name, in a temporary folder; it has no separator"
GIVEN = "writes to the path that its caller gives"

# The same for writing; those of this package are in test_architecture.py.
WRITING = {
    "detectron2/config/lazy.py: PathManager.open": NOT_CALLED,
    "detectron2/data/datasets/cityscapes.py: os.makedirs": NOT_CALLED,
    "detectron2/data/datasets/cityscapes.py: vis.save": NOT_CALLED,
    "detectron2/data/datasets/coco.py: PathManager.mkdirs": INTO_OUTPUT,
    "detectron2/data/datasets/coco.py: PathManager.open": INTO_OUTPUT,
    "detectron2/data/datasets/coco.py: os.makedirs": NOT_CALLED,
    "detectron2/data/datasets/coco.py: shutil.move": INTO_OUTPUT,
    "detectron2/data/datasets/coco.py: vis.save": NOT_CALLED,
    "detectron2/data/datasets/coco_panoptic.py: os.makedirs": NOT_CALLED,
    "detectron2/data/datasets/coco_panoptic.py: vis.save": NOT_CALLED,
    "detectron2/data/datasets/lvis.py: os.makedirs": NOT_CALLED,
    "detectron2/data/datasets/lvis.py: vis.save": NOT_CALLED,
    "detectron2/engine/defaults.py: LazyConfig.save": NOT_CALLED,
    "detectron2/engine/defaults.py: PathManager.mkdirs": INTO_OUTPUT,
    "detectron2/engine/defaults.py: PathManager.open": INTO_OUTPUT,
    "detectron2/engine/hooks.py: PathManager.mkdirs": INTO_OUTPUT,
    "detectron2/engine/hooks.py: PathManager.open": INTO_OUTPUT,
    "detectron2/engine/hooks.py: self._checkpointer.save": INTO_OUTPUT,
    "detectron2/evaluation/cityscapes_evaluation.py: Image.fromarray(mask * 255).save": BASENAME,
    "detectron2/evaluation/cityscapes_evaluation.py: Image.fromarray(pred).save": BASENAME,
    "detectron2/evaluation/cityscapes_evaluation.py: open": BASENAME,
    "detectron2/evaluation/coco_evaluation.py: PathManager.mkdirs": INTO_OUTPUT,
    "detectron2/evaluation/coco_evaluation.py: PathManager.open": INTO_OUTPUT,
    "detectron2/evaluation/coco_evaluation.py: torch.save": INTO_OUTPUT,
    "detectron2/evaluation/lvis_evaluation.py: PathManager.mkdirs": INTO_OUTPUT,
    "detectron2/evaluation/lvis_evaluation.py: PathManager.open": INTO_OUTPUT,
    "detectron2/evaluation/lvis_evaluation.py: torch.save": INTO_OUTPUT,
    "detectron2/evaluation/panoptic_evaluation.py: PathManager.mkdirs": INTO_OUTPUT,
    "detectron2/evaluation/panoptic_evaluation.py: PathManager.open": INTO_OUTPUT,
    "detectron2/evaluation/panoptic_evaluation.py: open": BASENAME,
    "detectron2/evaluation/panoptic_evaluation.py: Image.fromarray(id2rgb(panoptic_img)).save": (
        "into memory"
    ),
    "detectron2/evaluation/pascal_voc_evaluation.py: open": NOT_CALLED,
    "detectron2/evaluation/rotated_coco_evaluation.py: PathManager.open": INTO_OUTPUT,
    "detectron2/evaluation/sem_seg_evaluation.py: PathManager.mkdirs": INTO_OUTPUT,
    "detectron2/evaluation/sem_seg_evaluation.py: PathManager.open": INTO_OUTPUT,
    "detectron2/evaluation/sem_seg_evaluation.py: torch.save": INTO_OUTPUT,
    "detectron2/export/": NOT_CALLED,
    "detectron2/utils/events.py: PathManager.open": INTO_OUTPUT,
    "detectron2/utils/logger.py: PathManager.mkdirs": INTO_OUTPUT,
    "detectron2/utils/logger.py: PathManager.open": INTO_OUTPUT,
    "detectron2/utils/testing.py: LazyConfig.save": NOT_CALLED,
    "detectron2/utils/testing.py: torch.jit.save": NOT_CALLED,
    "detectron2/utils/visualizer.py: self.fig.savefig": NOT_CALLED,
    "fvcore/common/checkpoint.py: self.checkpointer.save": "replaced by SafeDetectionCheckpointer",
    "fvcore/common/checkpoint.py: self.path_manager.open": "replaced by SafeDetectionCheckpointer",
    "fvcore/common/checkpoint.py: torch.save": "replaced by SafeDetectionCheckpointer",
    "fvcore/common/file_io.py: PathManager.mkdirs": NOT_CALLED,
    "fvcore/": NOT_CALLED,
    "iopath/common/download.py: os.makedirs": DOWNLOADS,
    "iopath/common/download.py: request.urlretrieve": DOWNLOADS,
    "iopath/common/download.py: shutil.move": DOWNLOADS,
    "iopath/": GIVEN,
    "pycocotools/coco.py: os.makedirs": NOT_CALLED,
    "pycocotools/coco.py: urlretrieve": NOT_CALLED,
    "lvis/lvis.py: os.makedirs": NOT_CALLED,
    "lvis/lvis.py: urlretrieve": NOT_CALLED,
    "faster_coco_eval/": NOT_CALLED,
    "cityscapesscripts/": "Detectron2 sets the options that write to off, and evaluates in a "
    "temporary folder",
    "yacs/": NOT_CALLED,
}

# Functions and classes that lead to entries with NOT_CALLED.
NEVER_CALLED = {
    *("LazyConfig", "instantiate", "locate", "load_cfg", "merge_from_file", "load_yaml_with_base"),
    *("get_config", "get_checkpoint_url", "Caffe2Tracer", "TracingAdapter", "VisImage", "download"),
    *("load_url", "load_state_dict_from_url", "fvcore_cache", "showAnns", "download_images"),
}


@cache
def found(package: str) -> dict[str, frozenset[str]]:
    """Calls in a package that execute and that write, as "file: call"; empty if not installed."""
    spec = importlib.util.find_spec(package)
    executing, writing = set(), set()
    root = Path(str(spec.origin)).parent if spec is not None else Path()
    for path in sorted(root.rglob("*.py")) if spec is not None else ():
        text = path.read_text(encoding="utf-8", errors="replace")
        if not WORDS.search(text):
            continue
        name = f"{package}/{path.relative_to(root).as_posix()}"
        for call in calls(ast.parse(text)):
            function = ast.unparse(call.func)
            if EXECUTES.search(function) and not (function.endswith(".eval") and not call.args):
                executing.add(f"{name}: {function}")
            if WRITES.search(function) or (function.endswith("open") and opens_to_write(call)):
                writing.add(f"{name}: {function}")
    return {"executing": frozenset(executing), "writing": frozenset(writing)}


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def opens_to_write(call: ast.Call) -> bool:
    modes = [*call.args[1:2], *[keyword.value for keyword in call.keywords]]
    texts = [x.value for x in modes if isinstance(x, ast.Constant) and isinstance(x.value, str)]
    return any(re.fullmatch(r"[rwxabt+]*[wxa+][rwxabt+]*", text) for text in texts)


def without_entry(calls_found: frozenset[str], table: dict[str, str]) -> list[str]:
    folders = tuple(entry for entry in table if entry.endswith("/"))
    return sorted(x for x in calls_found if x not in table and not x.startswith(folders or "/"))


@pytest.mark.parametrize("package", [*THIRD_PARTIES, "point_rend"])
def test_every_call_that_executes_is_known(package: str) -> None:
    assert not without_entry(found(package)["executing"], EXECUTING)


@pytest.mark.parametrize("package", THIRD_PARTIES)
def test_every_call_that_writes_is_known(package: str) -> None:
    assert not without_entry(found(package)["writing"], WRITING)


def test_no_entry_of_this_package_is_out_of_date() -> None:
    ours = {entry for entry in EXECUTING if entry.startswith("point_rend/")}
    assert ours == found("point_rend")["executing"]


def test_nothing_calls_what_executes() -> None:
    for path in sorted(OURS.rglob("*.py")):
        for call in calls(ast.parse(path.read_text(encoding="utf-8"))):
            parts = ast.unparse(call.func).split(".")
            own = path.name == "downloads.py" and parts == ["download"]
            assert own or not NEVER_CALLED & set(parts), f"{path.name}:{call.lineno}"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("import pickle; pickle.load(file)", "executing"),
        ("x = eval(text)", "executing"),
        ("subprocess.run(name)", "executing"),
        ("yaml.unsafe_load(file)", "executing"),
        ("cv2.imwrite(record['file_name'], mask)", "writing"),
        ("PathManager.open(name, 'wb')", "writing"),
        ("path.open(mode='w')", "writing"),
    ],
)
def test_the_search_finds_such_calls(
    code: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "stranger"
    package.mkdir()
    (package / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    found.cache_clear()
    calls_found = found("stranger")
    found.cache_clear()
    other = "writing" if kind == "executing" else "executing"
    assert without_entry(calls_found[kind], {})
    assert not calls_found[other]
