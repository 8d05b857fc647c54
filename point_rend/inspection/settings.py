"""The part of a config that a data report compares the data with."""

from typing import NamedTuple

from detectron2.config import CfgNode

from point_rend.config.backbones import feature_strides
from point_rend.config.defaults import pixel_format
from point_rend.config.tasks import SEM_SEG, meta_architecture, model_outputs
from point_rend.data.datasets.classes import class_names
from point_rend.utils.pixel_format import PixelFormat

SGD = "SGD"


class Crop(NamedTuple):
    """A random crop: INPUT.CROP.TYPE and SIZE (height, width)."""

    kind: str
    size: tuple[float, float]


class Jitter(NamedTuple):
    """Large-scale jitter: smallest and largest multiple of SIZE (height, width)."""

    low: float
    high: float
    size: tuple[int, int]


class Resizing(NamedTuple):
    """The resizing of images.

    Attributes:
        short_sides: Lengths of the short side in pixels, drawn with equal chances.
        is_range: Whether any length between the first and the last is drawn.
        longest: Limit of the long side in pixels.
        crop_before: The crop before the resizing, if any.
        jitter: Large-scale jitter in place of all others, if any.
    """

    short_sides: tuple[int, ...]
    is_range: bool
    longest: int
    crop_before: Crop | None = None
    jitter: Jitter | None = None


class Anchors(NamedTuple):
    """The anchors of the region proposal network.

    Attributes:
        sizes: Square roots of the areas in pixels, by level.
        ratios: Height / width, by level.
        background: IoU below which an anchor is background.
        foreground: IoU from which an anchor is an object.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[tuple[float, ...], ...]
    background: float
    foreground: float


class Schedule(NamedTuple):
    """The schedule of a training.

    Attributes:
        updates: SOLVER.MAX_ITER.
        images_per_update: Those of all batches whose gradients make one update.
        steps: SOLVER.STEPS.
        warmup: SOLVER.WARMUP_ITERS.
        scheduler: SOLVER.LR_SCHEDULER_NAME.
        learning_rate: SOLVER.BASE_LR.
        reference_rate: Rate of 16 images for this kind of model, None if there is none.
    """

    updates: int
    images_per_update: int
    steps: tuple[int, ...]
    warmup: int
    scheduler: str
    learning_rate: float
    reference_rate: float | None


class Settings(NamedTuple):
    """The part of a config that a data report compares the data with.

    Attributes:
        train: Names of the training sets.
        test: Names of the sets that are evaluated.
        instances: Whether the model segments instances.
        semantic: Whether it segments label maps.
        masks: Whether instances have masks.
        points: Whether those of training have annotated points in place of masks.
        things: Classes of instances.
        stuff: Classes of label maps.
        ignore_value: Value of ignored pixels of label maps.
        pixel_format: Pixels that the model expects.
        training: Resizing in training.
        testing: Resizing in tests.
        crop_after: The crop after the resizing in training, if any.
        single_category_max_area: Largest share of a crop that one category may fill.
        anchors: None without a region proposal network.
        stride: Pixels between the features of the finest map, None if unknown.
        proposals: Proposals of an image in tests, None without a region proposal network.
        detections: TEST.DETECTIONS_PER_IMAGE.
        max_dets: TEST.MAX_DETS_PER_IMAGE.
        filters_empty: Whether the training leaves out images without objects.
        sampler: DATALOADER.SAMPLER_TRAIN.
        repeat_threshold: DATALOADER.REPEAT_THRESHOLD.
        class_agnostic: Keys of masks that are class-agnostic, and whether they are set.
        schedule: The schedule.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    instances: bool
    semantic: bool
    masks: bool
    points: bool
    things: tuple[str, ...]
    stuff: tuple[str, ...]
    ignore_value: int
    pixel_format: PixelFormat
    training: Resizing
    testing: Resizing
    crop_after: Crop | None
    single_category_max_area: float
    anchors: Anchors | None
    stride: int | None
    proposals: int | None
    detections: int
    max_dets: int
    filters_empty: bool
    sampler: str
    repeat_threshold: float
    class_agnostic: dict[str, bool]
    schedule: Schedule


def build_settings(cfg: CfgNode) -> Settings:
    """Read the settings from a checked config with registered data sets.

    Raises:
        ValueError: If a data set is not registered, or if two have different classes.
    """
    outputs = model_outputs(cfg)
    instances, semantic = "instances" in outputs, "sem_seg" in outputs
    train, test = tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST)
    names = list(dict.fromkeys([*train, *test]))
    source = cfg.INPUT
    crop = Crop(source.CROP.TYPE, tuple(source.CROP.SIZE)) if source.CROP.ENABLED else None
    only_semantic = outputs == SEM_SEG
    jitter = source.get("LSJ")
    strides = feature_strides(cfg)
    in_features = (cfg.MODEL.ROI_HEADS if instances else cfg.MODEL.SEM_SEG_HEAD).IN_FEATURES
    used = [strides[name] for name in in_features if strides and name in strides]
    with_rpn = meta_architecture(cfg).has_roi_heads and cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RPN"
    mask_keys = (
        {
            f"MODEL.{section}.CLS_AGNOSTIC_MASK": cfg.MODEL[section].CLS_AGNOSTIC_MASK
            for section in ("ROI_MASK_HEAD", "POINT_HEAD")
            if section == "ROI_MASK_HEAD"
            or cfg.MODEL.ROI_MASK_HEAD.NAME.endswith("PointRendMaskHead")
        }
        if instances and cfg.MODEL.MASK_ON
        else {}
    )
    return Settings(
        train=train,
        test=test,
        instances=instances,
        semantic=semantic,
        masks=instances and cfg.MODEL.MASK_ON,
        points=instances and source.get("POINT_SUP", False),
        things=tuple(class_names(names, "thing_classes") or ()) if instances else (),
        stuff=tuple(class_names(names, "stuff_classes") or ()) if semantic else (),
        ignore_value=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        pixel_format=pixel_format(cfg),
        training=Resizing(
            tuple(source.MIN_SIZE_TRAIN),
            source.MIN_SIZE_TRAIN_SAMPLING == "range",
            source.MAX_SIZE_TRAIN,
            None if only_semantic else crop,
            Jitter(jitter.MIN_SCALE, jitter.MAX_SCALE, tuple(jitter.SIZE))
            if jitter is not None and jitter.ENABLED
            else None,
        ),
        testing=Resizing((source.MIN_SIZE_TEST,), False, source.MAX_SIZE_TEST),
        crop_after=crop if only_semantic else None,
        single_category_max_area=source.CROP.SINGLE_CATEGORY_MAX_AREA,
        anchors=_build_anchors(cfg) if with_rpn else None,
        stride=min(used, default=None),
        proposals=cfg.MODEL.RPN.POST_NMS_TOPK_TEST if with_rpn else None,
        detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        max_dets=cfg.TEST.MAX_DETS_PER_IMAGE,
        filters_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        sampler=cfg.DATALOADER.SAMPLER_TRAIN,
        repeat_threshold=cfg.DATALOADER.REPEAT_THRESHOLD,
        class_agnostic=mask_keys,
        schedule=_build_schedule(cfg, semantic=only_semantic),
    )


def _build_anchors(cfg: CfgNode) -> Anchors | None:
    """Read the anchors; None for other generators than Detectron2's default one."""
    generator, rpn = cfg.MODEL.ANCHOR_GENERATOR, cfg.MODEL.RPN
    if generator.NAME != "DefaultAnchorGenerator":
        return None
    levels = len(rpn.IN_FEATURES)

    def by_level(values: list[list[float]]) -> tuple[tuple[float, ...], ...]:
        given = [tuple(map(float, x)) for x in values]
        return tuple(given * levels if len(given) == 1 else given)

    return Anchors(
        by_level(generator.SIZES), by_level(generator.ASPECT_RATIOS), *rpn.IOU_THRESHOLDS
    )


def _build_schedule(cfg: CfgNode, *, semantic: bool) -> Schedule:
    solver = cfg.SOLVER
    # Frozen statistics of a pretrained backbone: the situation of the published rates.
    as_published = cfg.MODEL.WEIGHTS and (semantic or cfg.MODEL.RESNETS.NORM == "FrozenBN")
    uses_sgd = solver.get("OPTIMIZER", SGD) == SGD
    rate = None
    if as_published and uses_sgd:
        rate = 0.01 if semantic else 0.02
    return Schedule(
        solver.MAX_ITER,
        solver.IMS_PER_BATCH * solver.get("ACCUMULATION_STEPS", 1),
        tuple(solver.STEPS),
        solver.WARMUP_ITERS,
        solver.LR_SCHEDULER_NAME,
        solver.BASE_LR,
        rate,
    )
