"""The training cases of tools/benchmark.py: labels alone, ROI heads, and a whole model.

A step is the losses and their gradients; the optimizer's update, the same for both sides, is left
out, so that the weights stay equal. Every step draws from the same seed. Both sides are given
ground truth as Detectron2 gives it, one bitmask an object, and the same proposals instead of those
of the untrained proposal network: enough of them overlap objects for a full share of foreground.

Shapes: N foreground regions, P points, S side of the coarse labels.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from point_rend import point_features as our_points
from point_rend import stock_heads
from point_rend.experiments.benchmark import instance_cases as cases
from point_rend.experiments.benchmark import model_cases, random_inputs
from point_rend.experiments.benchmark.case import Agreement, Case, Contest, Settings
from point_rend.ground_truth import point_labels
from point_rend.registration import stock_module

IMAGE = (800, 1333)  # height and width
NUM_IMAGES = 2
NUM_OBJECTS = 20  # an image
NUM_PROPOSALS = 1000  # an image, of which the ROI heads sample 512
OVERLAPPING = 0.3  # share of the proposals that are jittered boxes of objects

# The name that both projects have for the ROI heads of a PointRend model.
ROI_HEADS = ("MODEL.ROI_HEADS.NAME", "PointRendROIHeads")

LabelSampler = Callable[[list[Instances], Tensor], Tensor]


def targets(num_classes: int, generator: torch.Generator) -> list[Instances]:
    """Make up the ground truth of the images: an ellipse in each object's box."""
    height, width = IMAGE
    rows = torch.arange(height)[:, None] + 0.5
    columns = torch.arange(width) + 0.5
    found = []
    for _ in range(NUM_IMAGES):
        boxes = random_inputs.random_boxes(NUM_OBJECTS, IMAGE, generator)
        x0, y0, x1, y1 = boxes[:, :, None, None].unbind(1)  # (objects, 1, 1) each
        across = (2 * columns - x0 - x1) / (x1 - x0)
        down = (2 * rows - y0 - y1) / (y1 - y0)
        image = Instances(IMAGE)
        image.gt_boxes = Boxes(boxes)
        image.gt_classes = torch.randint(num_classes, (NUM_OBJECTS,), generator=generator)
        image.gt_masks = BitMasks(across**2 + down**2 < 1)
        found.append(image)
    return found


def proposals(truth: Sequence[Instances], generator: torch.Generator) -> list[Instances]:
    """Make up the proposals of the images, some of them near objects."""
    proposed = []
    for image in truth:
        near = round(NUM_PROPOSALS * OVERLAPPING)
        boxes = image.gt_boxes.tensor.repeat(-(-near // NUM_OBJECTS), 1)[:near]
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        boxes = boxes + 0.05 * sides * torch.randn(boxes.shape, generator=generator)
        elsewhere = random_inputs.random_boxes(NUM_PROPOSALS - near, IMAGE, generator)
        both = Boxes(torch.cat((boxes, elsewhere)))
        both.clip(IMAGE)
        logits = torch.randn(NUM_PROPOSALS, generator=generator)
        proposed.append(Instances(IMAGE, proposal_boxes=both, objectness_logits=logits))
    return proposed


def repeated(items: Sequence[Any], count: int) -> list[Any]:
    """Return that many items, from the first again after the last."""
    return list(islice(cycle(items), count))


def to_device(instances: Sequence[Instances], settings: Settings) -> list[Instances]:
    """Move the instances of all images."""
    return [x.to(settings.device) for x in instances]


def _configs(num_classes: int, settings: Settings) -> tuple[CfgNode, CfgNode]:
    file = cases.POINTREND
    return (
        cases.instance_config(file, num_classes, [*ROI_HEADS, *settings.opts]),
        cases.instance_config(file, num_classes, ROI_HEADS),
    )


def _roi_heads_pair(cfgs: tuple[CfgNode, CfgNode], settings: Settings) -> tuple[Any, Any]:
    """Build our ROI heads and the stock project's, in training, with the same random weights."""
    shapes = {
        name: ShapeSpec(channels=random_inputs.PYRAMID_CHANNELS, stride=stride)
        for name, stride in random_inputs.PYRAMID.items()
    }
    ours = build_roi_heads(cfgs[0], shapes)
    with stock_heads():
        stock = build_roi_heads(cfgs[1], shapes)
    random_inputs.randomize(ours.mask_head, torch.Generator().manual_seed(settings.seed))
    ours.to(settings.device)
    random_inputs.share_weights(ours, stock)
    return ours, stock.to(settings.device)


# Labels


def training_labels(
    roi_heads: Any,
    proposed: list[Instances],
    truth: list[Instances],
    sample_point_labels: LabelSampler,
    cfg: CfgNode,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """Do what a training step does with masks: choose proposals, and label cells and points.

    Returns:
        Labels of the coarse masks (N, S, S) and of random points (N, P).
    """
    torch.manual_seed(settings.seed)
    with EventStorage(), torch.no_grad():
        sampled = roi_heads.label_and_sample_proposals(proposed, truth)
        foreground, _ = select_foreground_proposals(sampled, roi_heads.num_classes)
        boxes = [x.proposal_boxes.tensor for x in foreground]
        side = cfg.MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION
        crops = [
            x.gt_masks.crop_and_resize(image_boxes, side)
            for x, image_boxes in zip(foreground, boxes, strict=True)
        ]
        all_boxes = torch.cat(boxes)
        num_points = cfg.MODEL.POINT_HEAD.TRAIN_NUM_POINTS
        coords = torch.rand(len(all_boxes), num_points, 2, device=all_boxes.device)
        in_image = our_points.get_point_coords_wrt_image(all_boxes, coords)
        return torch.cat(crops), sample_point_labels(foreground, in_image)


def training_label_agreement(
    ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]
) -> Agreement:
    """Compare labels of cells and points, all in one; each is decided above 0.5."""
    all_ours, all_theirs = (
        torch.cat([x.float().flatten() for x in side]) for side in (ours, theirs)
    )
    return Agreement(
        differing=((all_ours > 0.5) != (all_theirs > 0.5)).double().mean().item(),
        largest=(all_ours - all_theirs).abs().max().item(),
    )


def _labels_case(num_classes: int) -> Case:
    def build(settings: Settings) -> Contest:
        stock_points = stock_module("point_features")
        generator = torch.Generator().manual_seed(settings.seed)
        cfgs = _configs(num_classes, settings)
        heads = _roi_heads_pair(cfgs, settings)
        truth = targets(num_classes, generator)
        proposed = to_device(proposals(truth, generator), settings)
        truth = to_device(truth, settings)

        def run(side: int, sample_point_labels: LabelSampler) -> tuple[Tensor, Tensor]:
            return training_labels(
                heads[side], proposed, truth, sample_point_labels, cfgs[side], settings
            )

        return Contest(
            lambda: run(0, point_labels.sample_point_labels),
            lambda: run(1, stock_points.sample_point_labels),
            training_label_agreement,
        )

    return _case("labels", num_classes, build)


# Steps


def training_step(
    module: nn.Module,
    losses: Callable[[], Mapping[str, Tensor]],
    inputs: Sequence[Tensor],
    settings: Settings,
) -> dict[str, Tensor]:
    """Compute losses and their gradients, and drop these at the end, so that they count as memory.

    Args:
        module: with parameters.
        losses: returns losses by name.
        inputs: tensors that get gradients, too.
        settings: with the seed and the precision.

    Returns:
        The losses, and the norm of each parameter's gradient.
    """
    torch.manual_seed(settings.seed)
    try:
        with EventStorage(), settings.autocast():
            computed = losses()
        sum(computed.values(), torch.zeros(())).backward()
        figures = {name: loss.detach() for name, loss in computed.items()}
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                figures[f"gradient of {name}"] = parameter.grad.norm()
        return figures
    finally:  # also for the next, smaller batch
        for tensor in (*module.parameters(), *inputs):
            tensor.grad = None


def step_agreement(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Agreement:
    """Return the largest relative difference of a loss or of the norm of a gradient.

    Raises:
        ValueError: if the sides have not the same losses and gradients.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(
            f"the sides differ in {sorted(ours.keys() ^ theirs.keys())}: expected the same losses "
            "and gradients"
        )
    differences = [
        ((ours[name] - value).abs() / value.abs().clamp(min=1e-12)).item()
        for name, value in theirs.items()
    ]
    return Agreement(largest=max(differences))


def _roi_heads_case(num_classes: int) -> Case:
    def build(settings: Settings) -> Contest:
        generator = torch.Generator().manual_seed(settings.seed)
        heads = _roi_heads_pair(_configs(num_classes, settings), settings)
        truth = targets(num_classes, generator)
        proposed = to_device(proposals(truth, generator), settings)
        truth = to_device(truth, settings)
        coarsest = max(random_inputs.PYRAMID.values())
        height, width = (-(-side // coarsest) * coarsest for side in IMAGE)
        features = random_inputs.pyramid((height, width), NUM_IMAGES, generator, settings)
        for level in features.values():
            level.requires_grad_()
        images = ImageList(torch.empty(0), [IMAGE] * NUM_IMAGES)

        def step(roi_heads: nn.Module) -> dict[str, Tensor]:
            def losses() -> dict[str, Tensor]:
                return roi_heads(images, features, proposed, truth)[1]

            return training_step(roi_heads, losses, list(features.values()), settings)

        ours, stock = heads
        return Contest(lambda: step(ours), lambda: step(stock), step_agreement, training=True)

    return _case("step of the ROI heads", num_classes, build)


def _model_case(num_classes: int) -> Case:
    def build(settings: Settings) -> Contest:
        generator = torch.Generator().manual_seed(settings.seed)
        images = [random_inputs.random_image(IMAGE, generator) for _ in range(NUM_IMAGES)]
        ours, stock = model_cases.model_pair(
            *_configs(num_classes, settings), "roi_heads.mask_head", images[0], settings
        )
        truth = targets(num_classes, generator)
        proposed = to_device(proposals(truth, generator), settings)
        samples = [
            {"image": image, "instances": instances}
            for image, instances in zip(images, truth, strict=True)
        ]

        def plant(_: nn.Module, inputs: tuple) -> tuple:
            padded_images, features, _, labels = inputs
            return padded_images, features, repeated(proposed, len(padded_images)), labels

        def step(model: nn.Module, num_images: int = NUM_IMAGES) -> dict[str, Tensor]:
            batch = repeated(samples, num_images)
            return training_step(model, lambda: model(batch), [], settings)

        for model in (ours, stock):
            model.train()
            model.roi_heads.register_forward_pre_hook(plant)
        return Contest(
            lambda: step(ours),
            lambda: step(stock),
            step_agreement,
            training=True,
            of_images=(partial(step, ours), partial(step, stock)),
        )

    return _case("step of the R50-FPN model", num_classes, build)


def _case(name: str, num_classes: int, build: Callable[[Settings], Contest]) -> Case:
    height, width = IMAGE
    return Case(
        name=f"{name}, {NUM_IMAGES} images {height}×{width}, {NUM_OBJECTS} objects each",
        parameters={"images": NUM_IMAGES, "objects": NUM_OBJECTS, "classes": num_classes},
        rival="stock",
        build=build,
    )


def train_cases(settings: Settings) -> list[Case]:
    """Labels of masks, a training step of the ROI heads, and one of the R50-FPN model."""
    return [
        make(num_classes)
        for num_classes in settings.classes or (80,)
        for make in (_labels_case, _roi_heads_case, _model_case)
    ]
