"""Layers, imports, config access, writers of files and public names of the package."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import point_rend
from tests.conftest import REPOSITORY

PACKAGE = Path(point_rend.__file__).parent
STOCK = "detectron2.projects.point_rend"

# What each room (a folder or a module at the top of the package) may import of the others.
LOW = {"config", "checkpoint", "utils"}
METHOD = {"rendering", "ground_truth"}
HEAD_PARTS = {*METHOD, *LOW, "point_features", "point_head", "coarse_mask_head"}
HEADS = {"mask_head", "semantic_seg", "roi_heads", "meta_arch"}
DATA = {*METHOD, *LOW, "color_augmentation", "visualization"}
EVALUATION = {*DATA, "data"}
RUNTIME = {*EVALUATION, "evaluation"}
ENGINE = {*RUNTIME, "runtime", "solver", "acceleration"}
INFERENCE = {*ENGINE, "engine", "tiling"}
PREDICTORS = {*INFERENCE, "inference"}
EXPORT = {*PREDICTORS, *HEAD_PARTS, *HEADS}
USES = {"integrations", "refinement", "batch_inference", "playground"}
EXPERIMENTS = {*EXPORT, *USES, "export", "registration", "inspection"}
MAY_IMPORT: dict[str, set[str]] = {
    "utils": set(),
    "config": {"utils"},
    "checkpoint": {"utils"},
    "rendering": set(),
    "ground_truth": {"rendering"},
    "color_augmentation": set(),
    "solver": {"config", "utils"},
    "visualization": {"rendering", "utils"},
    "point_features": METHOD,
    "point_head": {*METHOD, *LOW, "point_features"},
    "coarse_mask_head": LOW,
    **dict.fromkeys(HEADS, HEAD_PARTS),
    "registration": {*HEADS, "backbones", "config"},
    "backbones": LOW,
    "data": DATA,
    "evaluation": EVALUATION,
    "acceleration": {"rendering"},
    "runtime": RUNTIME,
    "engine": ENGINE,
    "inspection": RUNTIME,
    "tiling": {*EVALUATION, "evaluation"},
    "inference": INFERENCE,
    **dict.fromkeys(USES, PREDICTORS),
    "integrations": {*PREDICTORS, "refinement"},
    "export": EXPORT,
    "experiments": EXPERIMENTS,
    "cli": {*EXPERIMENTS, "experiments"},
    "__main__": {"cli"},
}
# Rooms that may import public names from the package itself.
ABOVE_THE_HEADS = {"experiments", "cli"}

FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def module_name(name: str) -> str:
    """Dotted name of a file of the package."""
    return ".".join(["point_rend", *name.removesuffix(".py").split("/")]).removesuffix(".__init__")


MODULES = {module_name(name): name for name in FILES}


@cache
def imports(name: str) -> frozenset[str]:
    """Dotted names of all modules that a file imports, at its top or within functions."""
    package = module_name(name).split(".")
    if not name.endswith("__init__.py"):
        package = package[:-1]
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                found.add(inner if inner in MODULES else module)
    return frozenset(found)


def own_imports(name: str) -> set[str]:
    return {module for module in imports(name) if module.split(".")[0] == "point_rend"}


def outer_imports(name: str) -> set[str]:
    return {module for module in imports(name) if module.split(".")[0] != "point_rend"}


def room(name: str) -> str:
    """Room of a file."""
    return name.split("/")[0].removesuffix(".py")


def files_of(*rooms: str) -> list[str]:
    return [name for name in FILES if room(name) in rooms]


def called_names(tree: ast.AST) -> set[str]:
    """Last parts of the names of everything that is called."""
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in functions}


# --- rooms and directions -------------------------------------------------------------------------


def test_every_module_has_a_room_and_every_room_exists():
    assert {room(name) for name in FILES} - {"__init__"} == set(MAY_IMPORT)
    mentioned = set().union(*MAY_IMPORT.values())
    assert mentioned <= set(MAY_IMPORT)


@pytest.mark.parametrize("place", sorted(MAY_IMPORT))
def test_a_room_imports_rooms_below_only(place: str):
    for name in files_of(place):
        for module in own_imports(name):
            if module == "point_rend":
                assert place in ABOVE_THE_HEADS or name == "cli/__init__.py", name
                continue
            assert module in MODULES, f"{name} imports {module}, which does not exist"
            other = module.split(".")[1]
            allowed = other == place or other in MAY_IMPORT[place]
            assert allowed, f"{name} imports {module}"


def test_the_package_imports_neither_tools_nor_the_training_script():
    for name in FILES:
        first = {module.split(".")[0] for module in imports(name)}
        assert not first & {"tools", "train_net", "tests"}, name


def test_no_import_cycle_among_modules():
    ahead = {
        module: own_imports(name) - {module}
        for module, name in MODULES.items()
        if name != "__init__.py"  # its imports wait until a name is used
    }
    while ahead:
        free = [module for module, needed in ahead.items() if not needed & ahead.keys()]
        assert free, f"a cycle within {sorted(ahead)}"
        for module in free:
            del ahead[module]


def test_only_the_twin_commands_share_code_of_each_other():
    twins = {"evaluate.py": {"train"}, "demo_semantic.py": {"demo"}}
    for name in files_of("cli"):
        commands = {m.split(".")[2] for m in own_imports(name) if m.startswith("point_rend.cli.")}
        assert commands <= twins.get(name.split("/")[-1], set()), name


# --- tools ----------------------------------------------------------------------------------------

SCRIPTS = [*sorted((REPOSITORY / "tools").rglob("*.py")), REPOSITORY / "train_net.py"]


def test_no_tool_imports_another_nor_the_training_script():
    own = {script.stem for script in SCRIPTS} | {"tools", "dev"}
    for script in SCRIPTS:
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, script
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & own, script


def test_nobody_touches_the_import_path():
    for path in [*FILES.values(), *SCRIPTS]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_path = isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"
            assert not is_path, path


# --- what the layers need -------------------------------------------------------------------------

LOWEST = [
    f"rendering/{name}.py"
    for name in (
        *("coordinates", "uncertainty", "dynamic_mlp"),
        *("sampling", "projected_sampling", "subdivision"),
    )
]
WITH_MODULES = {"rendering/bound_head.py", "rendering/recording.py"}
FUNCTIONS_ONLY = [
    name
    for name in files_of("rendering", "ground_truth", "point_features")
    if not name.endswith("__init__.py") and name not in WITH_MODULES
]


@pytest.mark.parametrize("name", LOWEST)
def test_the_lowest_layers_need_torch_only(name: str):
    outer = {module.split(".")[0] for module in outer_imports(name)}
    assert outer - sys.stdlib_module_names == {"torch"}


@pytest.mark.parametrize("name", [*files_of("rendering", "ground_truth"), "point_features.py"])
def test_rendering_and_ground_truth_add_structures_and_layers_of_detectron2(name: str):
    of_detectron2 = {module for module in outer_imports(name) if module.startswith("detectron2")}
    assert of_detectron2 <= {"detectron2.structures", "detectron2.layers"}


@pytest.mark.parametrize("name", FUNCTIONS_ONLY)
def test_below_the_point_heads_there_are_functions_only(name: str):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ClassDef):
            assert "Module" not in " ".join(map(ast.unparse, node.bases)), node.name
    assert not called_names(TREES[name]) & {"get_event_storage", "put_scalar"}
    attributes = {n.attr for n in ast.walk(TREES[name]) if isinstance(n, ast.Attribute)}
    assert "training" not in attributes


def functions_that_name(tree: ast.AST, wanted: str) -> set[str]:
    """Names of the functions in which a variable or argument of a name appears."""
    found = set()

    def visit(node: ast.AST, function: str) -> None:
        for child in ast.iter_child_nodes(node):
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            inner = child.name if is_function else function
            named = isinstance(child, ast.Name) and child.id == wanted
            if named or (isinstance(child, ast.arg) and child.arg == wanted):
                found.add(inner)
            visit(child, inner)

    visit(tree, "")
    return found


def test_a_config_is_read_in_config_from_config_and_builders_only():
    """Also where a run is made from a config; above the engine every program starts from one."""
    runs = {"engine/setup.py", "engine/run.py", "engine/trainer.py"}
    more = {
        "roi_heads.py": {"_init_mask_head"},  # the hook by which ROI heads build mask heads
        # The numbers of classes and keypoints in a config follow the data sets.
        "data/datasets/classes.py": {"fill_class_count", "training_class_metadata"},
        "data/datasets/keypoints.py": {"fill_keypoints"},
    }
    for name, tree in TREES.items():
        if room(name) in {"config", "inference", "export", "experiments", "cli"} or name in runs:
            continue
        for function in functions_that_name(tree, "cfg"):
            allowed = function == "from_config" or function in more.get(name, set())
            allowed |= function.lstrip("_").startswith(("build_", "check_"))
            assert allowed, f"{name}: {function or 'the module itself'} uses cfg"


def test_exit_codes_have_names():
    """Those of utils/errors.py; 0 is success."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                function = ast.unparse(node.func).split(".")[-1]
                if function in {"SystemExit", "exit", "_exit"}:
                    assert node.args[0].value == 0, f"{name}:{node.lineno}"


def test_the_stock_project_is_named_in_registration_only():
    naming = {name for name, path in FILES.items() if STOCK in path.read_text(encoding="utf-8")}
    assert naming == {"registration.py"}


# The best anchors, as in Detectron2's RPN.
OTHER_USES = {("topk", "export/instance_graph.py"), ("topk", "acceleration/proposals.py")}


@pytest.mark.parametrize(
    ("call", "home"),
    [
        ("grid_sample", "rendering/sampling.py"),
        ("topk", "rendering/sampling.py"),
        ("scatter_", "rendering/subdivision.py"),
        ("embedding_bag", "rendering/bilinear_gather.py"),  # the weighted gather of four cells
        ("interpolate", "rendering/subdivision.py"),
        ("binary_cross_entropy_with_logits", "ground_truth/losses.py"),
        ("cross_entropy", "ground_truth/losses.py"),
        ("erode", "evaluation/boundary_iou.py"),
        ("inference_on_dataset", "evaluation/shared_inference.py"),
        ("drawContours", "visualization/drawing.py"),  # the outline of a painted mask
    ],
)
def test_there_is_one_copy_of_the_loop_the_sampling_and_the_losses(call: str, home: str):
    """Experiments and demos also interpolate their inputs and the methods they compare with."""
    method = [name for name in FILES if room(name) not in {"experiments", "cli"}]
    callers = [name for name in method if call in called_names(TREES[name])]
    assert [name for name in callers if (call, name) not in OTHER_USES] == [home]


# --- files ----------------------------------------------------------------------------------------

FORMS = {"atomic_file", "atomic_path"}
METHODS = {"write_text", "write_bytes", "imwrite", "savefig", "save", "savez", "tofile"}
METHODS |= {"mkstemp", "NamedTemporaryFile", "TemporaryFile", "VideoWriter"}
FUNCTIONS = {"os.replace", "os.rename", "shutil.move", "json.dump", "pickle.dump", "yaml.dump"}
# Methods called save that call the atomic forms or Detectron2.
SAVERS = {"super().save", "self.checkpointer.save", "self.coco.save"}
# What creates files without the atomic forms, and why.
OTHER_WRITERS = {
    "data/shapes/cityscapes.py",  # in a folder of atomic_folder
    "data/shapes/coco.py",
    "data/shapes/manifest.py",
    "checkpoint/sealed_file.py",  # into the open file that the checkpointer gives
    "experiments/benchmark/memory.py",  # resets a counter of the kernel
    "cli/install_detectron2.py",  # prepares a folder of site-packages, renamed at the end
}


def opens_for_writing(call: ast.Call) -> bool:
    modes = [*call.args[:2], *[keyword.value for keyword in call.keywords]]
    texts = [x.value for x in modes if isinstance(x, ast.Constant) and isinstance(x.value, str)]
    return any(set(text) & set("wax+") and set(text) <= set("rwaxbt+") for text in texts)


def writes(tree: ast.AST, *, within_form: bool = False) -> Iterator[str]:
    """Find the calls that write files, except inside the atomic forms and into a `buffer`."""
    for node in ast.iter_child_nodes(tree):
        inside = within_form
        if isinstance(node, ast.With):
            inside |= bool(FORMS & set().union(*map(called_names, node.items)))
        if isinstance(node, ast.FunctionDef):
            inside |= "enter_context(atomic_path" in ast.unparse(node)
        if isinstance(node, ast.Call) and not inside:
            function = ast.unparse(node.func)
            _, dot, last = function.rpartition(".")
            into_memory = bool(node.args) and ast.unparse(node.args[0]) == "buffer"
            is_method = dot and last in METHODS and function not in SAVERS and not into_memory
            if is_method or function in FUNCTIONS or (last == "open" and opens_for_writing(node)):
                yield function
        yield from writes(node, within_form=inside)


def test_one_module_writes_files():
    found = {name: sorted(set(writes(TREES[name]))) for name in FILES if name != "utils/files.py"}
    others = {name: calls for name, calls in found.items() if calls}
    assert set(others) == OTHER_WRITERS, others


READERS = {"imread", "imdecode", "read_image", "convert_PIL_to_numpy", "Image.open"}
READERS |= {"np.load", "np.fromfile", "rasterio.open"}


# Depth, colors, alpha and EXIF follow the rule of the first; the other reads further formats, and
# parts of a TIFF.
READING = {
    "utils/pictures.py": {"Image.open"},
    "utils/bands.py": {"cv2.imread", "np.fromfile", "rasterio.open"},
}


def test_two_modules_read_pictures():
    for name, tree in TREES.items():
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        calls = [ast.unparse(node.func) for node in nodes if not opens_for_writing(node)]
        named = {call for call in calls if call in READERS or call.split(".")[-1] in READERS}
        assert named == READING.get(name, set()), name
    notebooks = (REPOSITORY / "notebooks").glob("*.ipynb")
    for notebook in notebooks:
        text = notebook.read_text(encoding="utf-8")
        assert not any(f"{reader}(" in text for reader in READERS), notebook


# --- importing ------------------------------------------------------------------------------------

PUBLIC = [
    "POINT_HEAD_REGISTRY",
    "BoundPointHead",
    "CoarseSemSegHead",
    "ColorAugSSD",
    "ColorAugSSDTransform",
    "FineGrainedFeatures",
    "ImplicitPointHead",
    "ImplicitPointRendMaskHead",
    "NamingDatasetMapper",
    "PointPredictor",
    "PointRendCascadeROIHeads",
    "PointRendMaskHead",
    "PointRendPanopticFPN",
    "PointRendROIHeads",
    "PointRendSemSegHead",
    "PointRendSemanticSegmentor",
    "PointSampler",
    "Predictor",
    "ResidualPointHead",
    "SafeDetectionCheckpointer",
    "StandardPointHead",
    "SubdivisionPlan",
    "Trainer",
    "Uncertainty",
    "add_pointrend_config",
    "bind_point_head",
    "build_augmentations",
    "build_point_head",
    "build_test_loader",
    "build_train_loader",
    "check_config",
    "foreground_uncertainty",
    "get_config_file",
    "load_config",
    "point_sample",
    "stock_heads",
    "subdivide",
    "top2_margin_uncertainty",
]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_stays(name: str):
    assert name in point_rend.__all__
    assert getattr(point_rend, name) is not None


def test_the_three_lists_of_public_names_agree():
    """`__all__`, the table of lazy imports, and the imports that type checkers read."""
    table = {name: module for module, names in point_rend._NAMES.items() for name in names}
    assert len(set(point_rend.__all__)) == len(point_rend.__all__)
    assert sorted(table) == sorted(point_rend.__all__)
    assert sum(map(len, point_rend._NAMES.values())) == len(table)
    read_by_type_checkers = {
        alias.name: (node.module or "").removeprefix("point_rend.")
        for branch in TREES["__init__.py"].body
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert read_by_type_checkers == table
    for name, module in table.items():
        defined = sys.modules.get(f"point_rend.{module}")
        assert defined is None or getattr(defined, name) is getattr(point_rend, name)


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        point_rend.Nonsense  # noqa: B018
    assert set(point_rend.__all__) <= set(dir(point_rend))


def test_the_version_is_a_version():
    assert all(part.isdigit() for part in point_rend.__version__.split("."))


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_or_its_command_imports_neither_torch_nor_detectron2():
    code = "import sys, point_rend, point_rend.cli\nprint(*{m.split('.')[0] for m in sys.modules})"
    assert not {"torch", "detectron2", "numpy", "cv2"} & set(run_python(code).split())


ORDERS = [
    "import point_rend; import detectron2.modeling",
    "import detectron2.modeling; import point_rend",
    f"import point_rend; import {STOCK}",
    f"import {STOCK}; import point_rend",
    "import point_rend; import detectron2.projects.deeplab",
    "from point_rend.mask_head import PointRendMaskHead",
    "from point_rend import PointRendSemSegHead",
    "import point_rend.engine.trainer",
    "import point_rend; import detectron2.engine",
    "import detectron2.engine; import point_rend.semantic_seg",
    "from point_rend import stock_heads\nwith stock_heads(): pass",
    "import point_rend.registration",
    "import sys, point_rend.engine.run\nassert 'matplotlib' not in sys.modules",
    f"import point_rend; from {STOCK}.mask_head import PointRendMaskHead as stock\n"
    f"assert stock.__module__ == '{STOCK}.mask_head'",
]
IN_EVERY_ORDER = """
import os, sys, traceback
import cv2, fvcore.nn, omegaconf, PIL.Image, pycocotools.mask  # all but Detectron2
import torch, torch.utils.data, torch.utils.tensorboard, torchvision, yaml
assert not any(name.startswith(("detectron2", "point_rend")) for name in sys.modules)
for order in sys.argv[1:]:
    if not os.fork():
        try:
            exec(order, {})
            import detectron2.modeling
            import point_rend
            for registry, ours in point_rend.registration._OURS:
                assert registry.get(ours.__name__) is ours, registry.get(ours.__name__)
            assert point_rend.registration._stock, "the stock project is not registered"
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def test_the_heads_are_registered_in_every_order_and_training_imports_no_matplotlib():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IN_EVERY_ORDER, *ORDERS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    codes = dict(zip(ORDERS, done.stdout.split(), strict=False))
    assert codes == dict.fromkeys(ORDERS, "0"), done.stderr
