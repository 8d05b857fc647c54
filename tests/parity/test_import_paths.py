"""Names that other projects import from the stock project, at the same paths of this package."""

import importlib
import inspect
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from detectron2.layers import ShapeSpec

from point_rend import mask_head, semantic_seg
from tests.conftest import REPOSITORY
from tests.synthetic import randomize, small_head_config

STOCK = "detectron2.projects.point_rend"
PATHS = {
    "": {
        "ColorAugSSDTransform",
        "ImplicitPointRendMaskHead",
        "PointRendMaskHead",
        "PointRendSemSegHead",
        "add_pointrend_config",
    },
    "color_augmentation": {"ColorAugSSDTransform"},
    "config": {"add_pointrend_config"},
    "mask_head": {
        "ConvFCHead",
        "ImplicitPointRendMaskHead",
        "PointRendMaskHead",
        "calculate_uncertainty",
    },
    "point_features": {
        "generate_regular_grid_point_coords",
        "get_point_coords_wrt_image",
        "get_uncertain_point_coords_on_grid",
        "get_uncertain_point_coords_with_randomness",
        "point_sample",
        "point_sample_fine_grained_features",
        "sample_point_labels",
    },
    "point_head": {
        "POINT_HEAD_REGISTRY",
        "ImplicitPointHead",
        "StandardPointHead",
        "build_point_head",
        "roi_mask_point_loss",
    },
    "roi_heads": {"PointRendROIHeads"},
    "semantic_seg": {"PointRendSemSegHead", "calculate_uncertainty"},
}
NAMES = [(path, name) for path, names in PATHS.items() for name in sorted(names)]


def module(package: str, path: str) -> ModuleType:
    return importlib.import_module(f"{package}.{path}".rstrip("."))


def stock_module(path: str) -> ModuleType:
    pytest.importorskip(STOCK)
    return module(STOCK, path)


@pytest.mark.parametrize(("path", "name"), NAMES)
def test_a_name_of_the_stock_project_is_importable_from_the_same_path(path, name):
    ours = getattr(module("point_rend", path), name)
    stock = getattr(stock_module(path), name)
    assert type(ours) is type(stock)
    if inspect.isfunction(stock):
        parameters = inspect.signature(stock).parameters.values()
        arguments = [x for x in parameters if x.kind is not x.VAR_KEYWORD]
        inspect.signature(ours).bind(*arguments)  # it takes as many


@pytest.mark.parametrize("path", PATHS)
def test_the_list_holds_all_names_that_a_stock_module_defines(path):
    stock = stock_module(path)
    defined = {
        name
        for name, value in vars(stock).items()
        if getattr(value, "__module__", "").startswith(f"{STOCK}.{path}")
    }
    assert defined <= PATHS[path]


def test_the_first_version_kept_the_coarse_head_in_a_module_of_its_own():
    path = importlib.import_module("point_rend.coarse_mask_head")
    assert path.CoarseMaskHead is mask_head.ConvFCHead


def test_the_coarse_head_under_its_stock_name_is_built_from_a_config_as_there():
    stock = stock_module("mask_head").ConvFCHead
    shape = ShapeSpec(channels=16, height=14, width=14)
    cfg = small_head_config()
    head, expected = mask_head.ConvFCHead(cfg, shape), stock(cfg, shape)
    randomize(head)
    expected.load_state_dict(head.state_dict(), strict=True)
    pooled = torch.randn(3, 16, 14, 14, generator=torch.Generator().manual_seed(0))
    assert head(pooled).shape == (3, 5, 7, 7)
    assert torch.equal(head(pooled), expected(pooled))
    other = mask_head.ConvFCHead(shape, conv_dim=8, fc_dims=[4], output_shape=(3, 2))
    assert other(pooled).shape == (3, 3, 2)


@pytest.mark.parametrize("channels", [1, 2, 80])
def test_the_uncertainty_of_a_mask_is_equal(channels):
    logits = torch.randn(4, channels, 9, generator=torch.Generator().manual_seed(0))
    classes = torch.randint(channels, (4,), generator=torch.Generator().manual_seed(1))
    expected = stock_module("mask_head").calculate_uncertainty(logits, classes)
    assert torch.equal(mask_head.calculate_uncertainty(logits, classes), expected)


@pytest.mark.parametrize("channels", [2, 19])
def test_the_uncertainty_of_a_label_map_is_equal(channels):
    logits = torch.randn(2, channels, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = stock_module("semantic_seg").calculate_uncertainty(logits)
    assert torch.equal(semantic_seg.calculate_uncertainty(logits), expected)


def test_the_table_of_models_imports_neither_torch_nor_detectron2():
    code = """
import sys
import point_rend.config.tasks
print(sorted({"torch", "detectron2"} & sys.modules.keys()))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
