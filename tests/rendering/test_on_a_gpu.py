"""Rendering on pretended CUDA: launches, waits and copies; the Triton kernel in its interpreter."""

import os
import subprocess
import sys

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch.utils._python_dispatch import TorchDispatchMode

from point_rend import subdivide, top2_margin_uncertainty
from point_rend.rendering.box_masks import BoxMasks
from point_rend.rendering.coordinates import cell_centers, regular_grid
from point_rend.rendering.dynamic_mlp import fourier_features
from point_rend.rendering.sampling import most_uncertain_cells
from tests.conftest import REPOSITORY
from tests.pretended_cuda import Record
from tests.synthetic import IMAGE_SIZE, random_boxes, random_features, random_mask_head

BOTH = pytest.mark.parametrize("implicit", [False, True], ids=["standard", "implicit"])
BOXES = pytest.mark.parametrize("num_boxes", [1, 20, 100])


def inputs_of(num_boxes: int) -> tuple[dict[str, torch.Tensor], Instances]:
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(80, (num_boxes,), generator=generator)
    boxes = random_boxes(num_boxes, generator)
    return random_features(1), Instances(IMAGE_SIZE, pred_boxes=boxes, pred_classes=classes)


def masks_of(head, features, detections) -> torch.Tensor:
    with torch.no_grad():
        return head(features, [detections])[0].pred_masks


def to_gpu(head, features, detections):
    return head.to("cuda"), {n: x.to("cuda") for n, x in features.items()}, detections.to("cuda")


@BOTH
@BOXES
def test_an_image_takes_160_launches_without_a_wait_or_a_copy(implicit, num_boxes, cuda: Record):
    head = random_mask_head(num_classes=80, implicit=implicit).eval()
    inputs = inputs_of(num_boxes)
    expected = masks_of(head, *inputs)
    on_gpu = to_gpu(head, *inputs)
    masks_of(*on_gpu)  # makes the constants
    cuda.clear()
    masks = masks_of(*on_gpu)
    assert cuda.num_operations <= 160, cuda
    assert cuda.num_waits == 0, cuda
    assert not cuda.copies, cuda.copies
    assert ((masks.cpu() > 0.5) != (expected > 0.5)).float().mean() <= 1e-4


def test_masks_of_boxes_are_computed_on_the_device_and_read_where_they_are_wanted(cuda: Record):
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(20, generator).tensor
    on_cpu = BoxMasks(torch.rand(20, 28, 28, generator=generator), boxes, IMAGE_SIZE)
    masks = BoxMasks(on_cpu.probabilities.to("cuda"), boxes.to("cuda"), IMAGE_SIZE)
    assert masks[0].device.type == "cuda"
    cuda.clear()
    assert list(masks.to("cpu").rles()) == list(on_cpu.rles())
    assert cuda.num_waits <= len(boxes) + 2, cuda  # a window each, all corners, a check
    assert torch.equal(masks.to("cpu")[torch.tensor([3, 5])][1], on_cpu[5])
    assert torch.equal(masks.to("cpu").tensor(), on_cpu.tensor())


@BOTH
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_renders_nearly_the_same_masks_in_float32(implicit, dtype):
    head = random_mask_head(num_classes=80, implicit=implicit).eval()
    inputs = inputs_of(6)
    expected = masks_of(head, *inputs)
    with torch.autocast("cuda", dtype):
        masks = masks_of(*to_gpu(head, *inputs))
    assert masks.dtype == torch.float32
    assert ((masks.cpu() > 0.5) != (expected > 0.5)).float().mean() <= 0.05


@pytest.mark.parametrize("num_boxes", [0, 6])
def test_boxes_of_other_steps_wait_once_and_empty_groups_cost_nothing(num_boxes, cuda: Record):
    key = "MODEL.POINT_HEAD.SUBDIVISION_CELLS_PER_PIXEL"
    head = random_mask_head(key, 1.0, num_classes=80).eval()
    on_gpu = to_gpu(head, *inputs_of(num_boxes))
    masks_of(*on_gpu)
    cuda.clear()
    masks_of(*on_gpu)
    assert cuda.num_waits == 1, cuda
    if not num_boxes:
        assert cuda.num_operations <= 39, cuda


@BOTH
@pytest.mark.parametrize("cells_per_pixel", [0.0, 1.0])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_the_mask_of_a_box_that_is_not_finite_is_empty(implicit, cells_per_pixel, bad):
    key = "MODEL.POINT_HEAD.SUBDIVISION_CELLS_PER_PIXEL"
    head = random_mask_head(key, cells_per_pixel, num_classes=80, implicit=implicit).eval()
    features, detections = inputs_of(5)
    detections.pred_boxes.tensor[2, 1] = bad
    masks = masks_of(head, features, detections)
    assert (masks[2] == 0).all()
    assert masks.isfinite().all()


@pytest.mark.parametrize("channels", [1, 2, 150])
def test_the_margin_takes_four_launches_for_any_number_of_classes(channels, cuda: Record):
    logits = torch.randn(2, channels, 6, 7)
    logits[0, :, 0] = 3.0  # all equally likely
    logits[1, 0, 0] = torch.nan
    expected = top2_margin_uncertainty(logits)
    on_gpu = logits.to("cuda")
    cuda.clear()
    margin = top2_margin_uncertainty(on_gpu)
    assert cuda.num_operations <= 4, cuda
    torch.testing.assert_close(margin.cpu(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (6, 9), (300, 300)])
def test_centers_and_choice_of_cells_are_those_of_the_cpu(height, width, cuda: Record):
    scores = torch.rand(3, 1, height, width)
    on_gpu = scores.to("cuda")
    for expected, got in zip(
        most_uncertain_cells(scores, 50), most_uncertain_cells(on_gpu, 50), strict=True
    ):
        assert torch.equal(got.cpu(), expected)
    assert torch.equal(regular_grid(2, 9, "cuda").cpu(), regular_grid(2, 9))
    cells = torch.arange(20)
    assert torch.equal(cell_centers(cells.to("cuda"), 5, 4).cpu(), cell_centers(cells, 5, 4))
    cuda.clear()
    regular_grid(4, 9, "cuda")
    assert cuda.num_operations == 0, cuda


def test_the_loop_of_a_semantic_rendering_never_waits(cuda: Record):
    logits = torch.randn(1, 150, 8, 8).to("cuda")
    cuda.clear()
    subdivide(
        logits,
        lambda x: x.new_zeros(1, 150, 20),
        top2_margin_uncertainty,
        steps=2,
        points_per_step=20,
    )
    assert cuda.num_waits == 0, cuda
    assert not cuda.copies
    assert cuda.num_operations <= 40, cuda


class TF32Products(TorchDispatchMode):
    """Rounds the factors of matrix products to 10 bits, as TF32 does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.partition("::")[2] in {"mm", "bmm", "addmm", "baddbmm"}:
            args = [(x.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32) for x in args]
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("cuda")
def test_phases_of_positions_stay_exact_under_tf32():
    coords, frequencies = torch.rand(3, 50, 2), 3 * torch.randn(2, 16)
    expected, product = fourier_features(coords, frequencies), coords @ frequencies
    coords, frequencies = coords.to("cuda"), frequencies.to("cuda")
    with TF32Products():
        assert (coords @ frequencies).cpu().sub(product).abs().max() > 1e-4
        features = fourier_features(coords, frequencies)
    torch.testing.assert_close(features.cpu(), expected, rtol=0, atol=1e-5)


INTERPRETED = """
import math, torch
from point_rend.rendering.bilinear_gather import CornerCells
from point_rend.rendering.triton_gather import gather_bilinear
draw = torch.Generator().manual_seed(0)
for maps, height, width, columns, points, ring in (
    (3, 7, 9, 40, 50, 1), (1, 20, 30, 16, 80, 0), (2, 7, 7, 1, 33, 1), (2, 3, 4, 300, 9, 1),
    (0, 3, 4, 3, 9, 1), (2, 3, 4, 3, 0, 0),
):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        cells = maps * (height + 2 * ring) * (width + 2 * ring)
        table = torch.randn(cells, columns, generator=draw).to(dtype)
        coords = torch.rand(maps, points, 2, generator=draw) * 1.4 - 0.2
        coords[:1, 3:6] = torch.tensor([[math.nan, 0.5], [math.inf, 0.5], [0.5, -1e9]])[:points]
        expected = CornerCells(height, width, ring=ring).gather(coords)(table.float())
        rows = gather_bilinear(table, coords, height, width, ring)
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows, expected, rtol=0, atol=2e-6, equal_nan=True)
"""


def test_the_triton_kernel_sums_what_the_operations_sum():
    pytest.importorskip("triton")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRETED],
        cwd=REPOSITORY,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        check=True,
        timeout=200,
    )


def test_where_triton_cannot_compile_a_warning_says_so_and_operations_do_it(monkeypatch):
    from point_rend.rendering import bilinear_gather

    monkeypatch.setattr(bilinear_gather, "_triton_compiles", True)
    table, coords = torch.randn(2 * 12, 5), torch.rand(2, 9, 2)
    expected = bilinear_gather.gather_bilinear(table, coords, 3, 4, 0)
    with pytest.warns(UserWarning, match="Triton cannot compile.*slower"):
        rows = bilinear_gather._gather_by_triton(table, coords, 3, 4, 0)  # of a CPU tensor
    assert torch.equal(rows, expected)
    assert not bilinear_gather._triton_compiles


@BOTH
def test_the_whole_head_compiles_for_one_size_after_another(implicit):
    steps = ("MODEL.POINT_HEAD.SUBDIVISION_STEPS", 2)
    head = random_mask_head(*steps, implicit=implicit).eval()

    def render(p2, p3, boxes, classes):
        detected = Instances(IMAGE_SIZE, pred_boxes=Boxes(boxes), pred_classes=classes)
        return head({"p2": p2, "p3": p3}, [detected])[0].pred_masks

    compiled = torch.compile(render, backend="eager", fullgraph=True)
    for number, (height, width) in ((4, (16, 24)), (7, (16, 24)), (3, (20, 32))):
        generator = torch.Generator().manual_seed(number)
        p2, p3 = (torch.randn(1, 16, height // s, width // s, generator=generator) for s in (1, 2))
        classes = torch.randint(5, (number,), generator=generator)
        inputs = p2, p3, random_boxes(number, generator).tensor, classes
        with torch.no_grad():
            torch.testing.assert_close(compiled(*inputs), render(*inputs), rtol=0, atol=1e-5)
