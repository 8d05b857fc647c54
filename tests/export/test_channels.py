"""Graphs of models of gray and of n channels, and their descriptions."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from point_rend.export.build import build_graph
from point_rend.export.describing import check_exportable, describe
from point_rend.inference.classes import build_metadata
from point_rend.runtime.description import Description
from point_rend.runtime.run_config import build_run_config
from tests.synthetic_semantic import tiny_model_config

KINDS = {"gray": ("L", -1, 8, 1), "gray of 12 bits": ("L", -1, 12, 1), "four": ("RGB", 4, 16, 4)}


def config(kind: str, weights: str) -> CfgNode:
    """Return the config of a small model for images of a kind."""
    order, channels, bits, count = KINDS[kind]
    cfg = tiny_model_config("PointRendSemanticSegmentor")
    cfg.INPUT.FORMAT, cfg.INPUT.CHANNELS, cfg.INPUT.BITS = order, channels, bits
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [99.0] * count, [1e6] * count
    cfg.MODEL.WEIGHTS = weights
    return cfg


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_has_the_channels_of_its_model_and_the_file_describes_them(kind, tmp_path) -> None:
    (tmp_path / "model.pth").write_bytes(b"hashed only")
    cfg = config(kind, str(tmp_path / "model.pth"))
    check_exportable(cfg)
    order, _, bits, count = KINDS[kind]
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    graph = build_graph(model)
    images, sizes = graph.example()
    assert images.shape[1] == count
    with torch.no_grad():
        logits, _ = graph(images, sizes)
        pairs = zip(images, sizes.tolist(), strict=True)
        inputs = [{"image": image[:, :h, :w]} for image, (h, w) in pairs]
        for found, one in zip(logits, model(inputs), strict=True):
            expected = one["sem_seg"]
            torch.testing.assert_close(found[:, : expected.shape[1], : expected.shape[2]], expected)
    described = describe(graph, cfg, build_metadata(cfg, {}), "1.0")
    assert (described.image_format, described.channels, described.bits) == (order, count, bits)
    assert Description.from_json(described.to_json(), "x.onnx") == described
    assert bits == build_run_config(described, "x.onnx").INPUT.BITS
    with pytest.raises(ValueError, match=r"INPUT\.BITS is part of x\.onnx, which was exported"):
        build_run_config(described, "x.onnx", ["INPUT.BITS", "14"])
