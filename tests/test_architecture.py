"""The picture of the package kept true: layers, where a config may be read, public names."""

import ast
from pathlib import Path

import pytest

import point_rend

PACKAGE = Path(point_rend.__file__).parent
STOCK = "detectron2.projects.point_rend"

LAYERS = [
    {"coordinates", "uncertainty", "dynamic_mlp"},
    {"sampling", "point_linear", "subdivision"},
    {"point_features", "masks", "targets", "losses"},
    {"coarse_mask_head", "bound_head", "point_head"},
    {"mask_head", "semantic_seg", "roi_heads", "meta_arch", "tracing"},
]
LAYER_OF = {module: level for level, modules in enumerate(LAYERS) for module in modules}
# Beside the layers: modules (L3) and registered heads (L4) may read these, which read no layer.
BESIDE = {"config", "checkpoint"}
# Above all layers; nothing but the package itself imports it.
TOP = {"registration"}
# Rooms and modules of their own: they read neither modules nor registered heads.
ROOMS = {"data", "engine", "evaluation", "export", "solver", "visualize"}

FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
LAYERED = [name for name in FILES if name.removesuffix(".py") in LAYER_OF]


def imports(name: str) -> set[str]:
    """Absolute dotted names of all modules that a file imports, at its top or within."""
    package = ["point_rend", *name.split("/")[:-1]]
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.add(module)
            if module == "point_rend":  # from . import name
                found |= {f"point_rend.{alias.name}" for alias in node.names}
    return found


def inner_imports(name: str) -> set[str]:
    """First names, below the package, of the modules of ours that a file imports."""
    dotted = [module.split(".") for module in imports(name)]
    return {parts[1] for parts in dotted if parts[0] == "point_rend" and len(parts) > 1}


def outer_imports(name: str) -> set[str]:
    return {module for module in imports(name) if module.split(".")[0] != "point_rend"}


def called_names(name: str) -> set[str]:
    """Last parts of the names of everything that a file calls."""
    functions = [node.func for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)]
    return {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in functions}


def test_every_module_has_its_place():
    known = set(LAYER_OF) | BESIDE | TOP | ROOMS | {"__init__"}
    first_names = {name.split("/")[0].removesuffix(".py") for name in FILES}
    assert first_names <= known
    assert len(LAYERED) >= 12


@pytest.mark.parametrize("name", LAYERED)
def test_imports_go_downward_only(name):
    level = LAYER_OF[name.removesuffix(".py")]
    for module in inner_imports(name):
        if module in BESIDE:
            assert level >= 3, f"{name} imports {module}"
        else:
            assert module in LAYER_OF, f"{name} imports {module}"
            assert LAYER_OF[module] <= level, f"{name} imports {module}"


def test_no_import_goes_in_a_circle():
    ahead = {name.removesuffix(".py"): inner_imports(name) for name in LAYERED}
    while ahead:
        free = [module for module, needed in ahead.items() if not needed & ahead.keys()]
        assert free, f"a circle within {sorted(ahead)}"
        for module in free:
            del ahead[module]


@pytest.mark.parametrize("module", sorted(BESIDE))
def test_what_lies_beside_the_layers_reads_none_of_them(module):
    assert inner_imports(f"{module}.py") <= BESIDE


def test_rooms_of_their_own_read_no_modules_and_no_heads():
    for name in FILES:
        if name.split("/")[0].removesuffix(".py") in ROOMS:
            high = {m for m in inner_imports(name) if LAYER_OF.get(m, 0) >= 3 or m in TOP}
            assert not high, name


@pytest.mark.parametrize("name", [n for n in LAYERED if LAYER_OF[n.removesuffix(".py")] <= 1])
def test_the_two_lowest_layers_need_torch_only(name):
    standard = {"math", "dataclasses", "functools", "itertools", "typing", "collections.abc"}
    outer = outer_imports(name) - standard
    assert {module.split(".")[0] for module in outer} == {"torch"}, name


@pytest.mark.parametrize("name", [n for n in LAYERED if LAYER_OF[n.removesuffix(".py")] == 2])
def test_layer_two_adds_structures_and_layers_of_detectron2(name):
    of_detectron2 = {module for module in outer_imports(name) if module.startswith("detectron2")}
    assert of_detectron2 <= {"detectron2.structures", "detectron2.layers"}


@pytest.mark.parametrize("name", [n for n in LAYERED if LAYER_OF[n.removesuffix(".py")] <= 2])
def test_below_layer_three_there_are_functions_only(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ClassDef):
            assert "Module" not in " ".join(map(ast.unparse, node.bases)), node.name
    assert not called_names(name) & {"get_event_storage", "put_scalar"}
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
    """Also in checks that builders call, and in the hook by which ROI heads build mask heads."""
    for name, tree in TREES.items():
        if name == "config.py":
            continue
        for function in functions_that_name(tree, "cfg"):
            allowed = function in {"from_config", "_init_mask_head"}
            allowed |= function.lstrip("_").startswith(("build_", "check_"))
            assert allowed, f"{name}: {function or 'the module itself'} uses cfg"


def test_the_stock_project_is_named_in_registration_only():
    naming = {name for name, path in FILES.items() if STOCK in path.read_text(encoding="utf-8")}
    assert naming == {"registration.py"}
    assert not any(m.startswith("detectron2.projects") for name in FILES for m in imports(name))


@pytest.mark.parametrize(
    ("call", "homes"),
    [
        ("grid_sample", ["sampling.py"]),
        ("topk", ["sampling.py"]),
        ("scatter_", ["subdivision.py"]),
        ("embedding_bag", ["point_linear.py"]),  # the weighted gather of four cells
        ("interpolate", ["subdivision.py"]),
        ("binary_cross_entropy_with_logits", ["losses.py"]),
        ("cross_entropy", ["losses.py"]),
        ("erode", ["evaluation/boundaries.py"]),
        ("inference_on_dataset", ["evaluation/passes.py"]),
    ],
)
def test_there_is_one_copy_of_the_loop_the_sampling_and_the_losses(call, homes):
    assert [name for name in FILES if call in called_names(name)] == homes


PUBLIC = [
    "POINT_HEAD_REGISTRY",
    "BoundPointHead",
    "CoarseSemSegHead",
    "ColorAugSSD",
    "ColorAugSSDTransform",
    "FineGrainedFeatures",
    "ImplicitPointHead",
    "ImplicitPointRendMaskHead",
    "PointPredictor",
    "PointRendMaskHead",
    "PointRendPanopticFPN",
    "PointRendROIHeads",
    "PointRendSemSegHead",
    "PointRendSemanticSegmentor",
    "PointSampler",
    "SafeDetectionCheckpointer",
    "StandardPointHead",
    "SubdivisionPlan",
    "Uncertainty",
    "add_pointrend_config",
    "bind_point_head",
    "build_point_head",
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
def test_a_public_name_stays(name):
    assert name in point_rend.__all__
    assert getattr(point_rend, name) is not None


def test_every_public_name_is_there_once():
    assert len(set(point_rend.__all__)) == len(point_rend.__all__)
    for name in point_rend.__all__:
        assert hasattr(point_rend, name), name


def test_the_version_is_a_version():
    assert all(part.isdigit() for part in point_rend.__version__.split("."))
