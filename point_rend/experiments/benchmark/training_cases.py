"""Benchmark cases of training: mask labels alone, the ROI heads, and a whole model.

A step computes the losses and their gradients; the optimizer's update, which is the same for both
sides, is left out, so that the weights stay equal. Every step draws from the same seed. Both sides
get ground truth as Detectron2 provides it, one bitmask per object, and the same proposals in place
of those of the untrained proposal network: enough of them overlap objects for a full share of
foreground.

Shapes: N foreground regions, P points, S side of the coarse labels.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_roi_heads
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from point_rend import stock_heads
from point_rend.experiments.benchmark.case import Agreement, Case, Comparison
from point_rend.experiments.benchmark.instance_cases import POINTREND, instance_configs
from point_rend.experiments.benchmark.measuring import autocast
from point_rend.experiments.benchmark.model_cases import model_pair
from point_rend.experiments.benchmark.random_inputs import (
    PYRAMID,
    pyramid_shapes,
    random_boxes,
    random_image,
    random_pyramid,
    randomize,
    share_weights,
)
from point_rend.experiments.benchmark.settings import Settings, Sizes
from point_rend.ground_truth.point_labels import sample_point_labels
from point_rend.point_features import get_point_coords_wrt_image
from point_rend.registration import stock_module

OVERLAPPING = 0.3  # share of the proposals that are jittered boxes of objects
# The name that both projects have for the ROI heads of a PointRend model.
ROI_HEADS = ("MODEL.ROI_HEADS.NAME", "PointRendROIHeads")

LabelSampler = Callable[[list[Instances], Tensor], Tensor]


def train_cases(settings: Settings) -> list[Case]:
    """Return the cases of mask labels, a step of the ROI heads and a step of the R50-FPN model."""
    return [
        make(num_classes, settings.sizes)
        for num_classes in settings.classes or (80,)
        for make in (_labels_case, _roi_heads_case, _model_case)
    ]


def _case(
    name: str, num_classes: int, sizes: Sizes, build: Callable[[Settings], Comparison]
) -> Case:
    height, width = sizes.training_image
    images, objects = sizes.training_images, sizes.objects
    return Case(
        name=f"{name}, {images} images {height}×{width}, {objects} objects each",
        parameters={"images": images, "objects": objects, "classes": num_classes},
        baseline="stock",
        build=build,
    )


def random_ground_truth(
    num_classes: int, sizes: Sizes, generator: torch.Generator
) -> list[Instances]:
    """Draw the ground truth of the images: an ellipse in each object's box."""
    height, width = sizes.training_image
    rows = torch.arange(height)[:, None] + 0.5
    columns = torch.arange(width) + 0.5
    ground_truth = []
    for _ in range(sizes.training_images):
        boxes = random_boxes(sizes.objects, sizes.training_image, generator)
        x0, y0, x1, y1 = boxes[:, :, None, None].unbind(1)  # (objects, 1, 1) each
        across = (2 * columns - x0 - x1) / (x1 - x0)
        down = (2 * rows - y0 - y1) / (y1 - y0)
        image = Instances(sizes.training_image)
        image.gt_boxes = Boxes(boxes)
        image.gt_classes = torch.randint(num_classes, (sizes.objects,), generator=generator)
        image.gt_masks = BitMasks(across**2 + down**2 < 1)
        ground_truth.append(image)
    return ground_truth


def random_proposals(
    ground_truth: Sequence[Instances], sizes: Sizes, generator: torch.Generator
) -> list[Instances]:
    """Draw the proposals of the images, some of them near objects."""
    image_size = sizes.training_image
    proposals = []
    for image in ground_truth:
        near = round(sizes.proposals * OVERLAPPING)
        boxes = image.gt_boxes.tensor.repeat(-(-near // sizes.objects), 1)[:near]
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        boxes = boxes + 0.05 * sides * torch.randn(boxes.shape, generator=generator)
        elsewhere = random_boxes(sizes.proposals - near, image_size, generator)
        both = Boxes(torch.cat((boxes, elsewhere)))
        both.clip(image_size)
        logits = torch.randn(sizes.proposals, generator=generator)
        proposals.append(Instances(image_size, proposal_boxes=both, objectness_logits=logits))
    return proposals


def _random_targets(
    num_classes: int, settings: Settings, generator: torch.Generator
) -> tuple[list[Instances], list[Instances]]:
    """Draw ground truth and proposals on the device of the settings."""
    ground_truth = random_ground_truth(num_classes, settings.sizes, generator)
    proposals = random_proposals(ground_truth, settings.sizes, generator)
    device = settings.device
    return [x.to(device) for x in ground_truth], [x.to(device) for x in proposals]


def _configs(num_classes: int, settings: Settings) -> tuple[CfgNode, CfgNode]:
    return instance_configs(POINTREND, num_classes, settings, ROI_HEADS)


def _roi_heads_pair(cfgs: tuple[CfgNode, CfgNode], settings: Settings) -> tuple[Any, Any]:
    """Build our ROI heads and the stock project's, in training, with the same random weights."""
    shapes = pyramid_shapes(settings)
    ours = build_roi_heads(cfgs[0], shapes)
    with stock_heads():
        stock = build_roi_heads(cfgs[1], shapes)
    randomize(ours.mask_head, torch.Generator().manual_seed(settings.seed))
    ours.to(settings.device)
    share_weights(ours, stock)
    return ours, stock.to(settings.device)


def training_labels(
    roi_heads: Any,
    proposals: list[Instances],
    ground_truth: list[Instances],
    sample_labels: LabelSampler,
    cfg: CfgNode,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Sample proposals and label coarse cells and points, as a training step does.

    Returns:
        Labels of the coarse masks (N, S, S) and of random points (N, P).
    """
    torch.manual_seed(seed)
    with EventStorage(), torch.no_grad():
        sampled = roi_heads.label_and_sample_proposals(proposals, ground_truth)
        foreground, _ = select_foreground_proposals(sampled, roi_heads.num_classes)
        boxes = [x.proposal_boxes.tensor for x in foreground]
        side = cfg.MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION
        crops = [
            x.gt_masks.crop_and_resize(image_boxes, side)
            for x, image_boxes in zip(foreground, boxes, strict=True)
        ]
        all_boxes = torch.cat(boxes)
        num_points = cfg.MODEL.POINT_HEAD.TRAIN_NUM_POINTS
        coords_box = torch.rand(len(all_boxes), num_points, 2, device=all_boxes.device)
        coords_img = get_point_coords_wrt_image(all_boxes, coords_box)
        return torch.cat(crops), sample_labels(foreground, coords_img)


def training_label_agreement(
    ours: tuple[Tensor, Tensor], baseline: tuple[Tensor, Tensor]
) -> Agreement:
    """Compare labels of cells and points together; each is decided at 0.5."""
    our_labels, baseline_labels = (
        torch.cat([x.float().flatten() for x in side]) for side in (ours, baseline)
    )
    return Agreement(
        differing=((our_labels > 0.5) != (baseline_labels > 0.5)).double().mean().item(),
        largest=(our_labels - baseline_labels).abs().max().item(),
    )


def _labels_case(num_classes: int, sizes: Sizes) -> Case:
    def build(settings: Settings) -> Comparison:
        generator = torch.Generator().manual_seed(settings.seed)
        cfgs = _configs(num_classes, settings)
        heads = _roi_heads_pair(cfgs, settings)
        ground_truth, proposals = _random_targets(num_classes, settings, generator)
        stock_points = stock_module("point_features")

        def run(side: int, sample_labels: LabelSampler) -> tuple[Tensor, Tensor]:
            return training_labels(
                heads[side], proposals, ground_truth, sample_labels, cfgs[side], settings.seed
            )

        return Comparison(
            lambda: run(0, sample_point_labels),
            lambda: run(1, stock_points.sample_point_labels),
            training_label_agreement,
        )

    return _case("labels", num_classes, sizes, build)


def training_step(
    module: nn.Module,
    losses: Callable[[], Mapping[str, Tensor]],
    inputs: Sequence[Tensor],
    settings: Settings,
) -> dict[str, Tensor]:
    """Compute losses and their gradients; the gradients count as memory and are dropped at the end.

    Args:
        module: Module with parameters.
        losses: Returns losses by name.
        inputs: Tensors that get gradients, too.
        settings: Settings with the seed and the precision.

    Returns:
        The losses, and the norm of each parameter's gradient.
    """
    torch.manual_seed(settings.seed)
    try:
        with EventStorage(), autocast(settings):
            computed = losses()
        sum(computed.values(), torch.zeros(())).backward()
        values = {name: loss.detach() for name, loss in computed.items()}
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                values[f"gradient of {name}"] = parameter.grad.norm()
        return values
    finally:  # also before the next, smaller batch
        for tensor in (*module.parameters(), *inputs):
            tensor.grad = None


def step_agreement(ours: Mapping[str, Tensor], baseline: Mapping[str, Tensor]) -> Agreement:
    """Return the largest relative difference of a loss or of the norm of a gradient.

    Raises:
        ValueError: If the sides have different losses or gradients.
    """
    if ours.keys() != baseline.keys():
        raise ValueError(
            f"the sides differ in {sorted(ours.keys() ^ baseline.keys())}: expected the same "
            "losses and gradients"
        )
    differences = [
        ((ours[name] - value).abs() / value.abs().clamp(min=1e-12)).item()
        for name, value in baseline.items()
    ]
    return Agreement(largest=max(differences))


def _roi_heads_case(num_classes: int, sizes: Sizes) -> Case:
    def build(settings: Settings) -> Comparison:
        generator = torch.Generator().manual_seed(settings.seed)
        ours, stock = _roi_heads_pair(_configs(num_classes, settings), settings)
        ground_truth, proposals = _random_targets(num_classes, settings, generator)
        image_size, num_images = sizes.training_image, sizes.training_images
        coarsest = max(PYRAMID.values())
        height, width = (-(-side // coarsest) * coarsest for side in image_size)
        features = random_pyramid((height, width), num_images, generator, settings)
        for level in features.values():
            level.requires_grad_()
        images = ImageList(torch.empty(0), [image_size] * num_images)

        def step(roi_heads: nn.Module) -> dict[str, Tensor]:
            def losses() -> dict[str, Tensor]:
                return roi_heads(images, features, proposals, ground_truth)[1]

            return training_step(roi_heads, losses, list(features.values()), settings)

        return Comparison(lambda: step(ours), lambda: step(stock), step_agreement, training=True)

    return _case("step of the ROI heads", num_classes, sizes, build)


def _model_case(num_classes: int, sizes: Sizes) -> Case:
    def build(settings: Settings) -> Comparison:
        generator = torch.Generator().manual_seed(settings.seed)
        num_images = sizes.training_images
        cfgs = _configs(num_classes, settings)
        size = sizes.training_image
        images = [random_image(size, generator, cfgs[0]) for _ in range(num_images)]
        ours, stock = model_pair(*cfgs, "roi_heads.mask_head", images[0], settings)
        ground_truth, proposals = _random_targets(num_classes, settings, generator)
        samples = [
            {"image": image, "instances": instances}
            for image, instances in zip(images, ground_truth, strict=True)
        ]

        def replace_proposals(_: nn.Module, inputs: tuple) -> tuple:
            padded_images, features, _, labels = inputs
            return padded_images, features, _repeated(proposals, len(padded_images)), labels

        def step(model: nn.Module, count: int = num_images) -> dict[str, Tensor]:
            batch = _repeated(samples, count)
            return training_step(model, lambda: model(batch), [], settings)

        for model in (ours, stock):
            model.train()
            model.roi_heads.register_forward_pre_hook(replace_proposals)
        return Comparison(
            lambda: step(ours),
            lambda: step(stock),
            step_agreement,
            training=True,
            batch_steps=(partial(step, ours), partial(step, stock)),
        )

    return _case("step of the R50-FPN model", num_classes, sizes, build)


def _repeated(items: Sequence[Any], count: int) -> list[Any]:
    """Return that many items, starting again from the first after the last."""
    return list(islice(cycle(items), count))
