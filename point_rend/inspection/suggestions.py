"""Settings that fit the data better, each with its reason and the keys to paste."""

import math
from typing import NamedTuple

import numpy as np

from point_rend.inspection.anchors import AnchorReport
from point_rend.inspection.classes import ClassReport, repeat_factors
from point_rend.inspection.images import Objectness, trained_images
from point_rend.inspection.records import Objects
from point_rend.inspection.semantic import SemanticReport
from point_rend.inspection.settings import Settings
from point_rend.inspection.sizes import PERCENTILES, Sizes

# Two published schedules of instances: 12 epochs of COCO's 117,266 images (90,000 iterations of
# 16), 65 of the 2975 of Cityscapes (24,000 of 8): the epochs grow with the root of the ratio.
COCO_IMAGES, COCO_EPOCHS, MOST_EPOCHS = 117_266, 12, 100
# Of label maps: 127 epochs of the 20,210 of ADE20K (160,000 of 16), 215 to 700 of Cityscapes.
ADE_IMAGES, ADE_EPOCHS, MOST_SEMANTIC_EPOCHS = 20_210, 127, 300
FACTOR = 2.0  # from which a setting is too far from another
REFERENCE_BATCH = 16
FEW_IMAGES = 100  # with a class: LVIS's bound of frequent classes
LVIS_THRESHOLD, LARGEST_THRESHOLD = 0.001, 0.1
UNEQUAL = 10  # images with the most frequent class per image with the rarest
MOST_REPEATED = 10.0  # times that an image is shown in an epoch
FEW_OBJECTS = 50  # of a class, too few for a mask of its own
MANY = 0.1  # share of objects or images that is worth a setting
SMALL_ANCHOR = 32.0  # pixels, where there are no anchors
LARGEST_SIDE = 1600  # of a suggested short side
TILE = 1024
FAR_FROM_ANCHORS = 0.25  # share of objects
SMALLEST_FACTOR = 1.2  # of a larger input that is worth it


STEPWISE = "WarmupMultiStepLR"  # the schedule that reads SOLVER.STEPS
ENLARGED = 2.5  # scale from which images are enlarged for nothing
USUAL_SCALE = 1.6  # of COCO's images in Detectron2's recipes


class Suggestion(NamedTuple):
    """A setting that fits the data better.

    Attributes:
        title: The subject.
        reason: One sentence.
        options: Keys and values to paste after `pointrend train …`; may be empty.
    """

    title: str
    reason: str
    options: str


class Advice(NamedTuple):
    """Suggestions, and what was examined and fits.

    Attributes:
        suggestions: To change.
        fitting: One sentence each.
    """

    suggestions: list[Suggestion]
    fitting: list[str]


def suggest(
    settings: Settings,
    *,
    images: int,
    objects: Objects | None = None,
    classes: ClassReport | None = None,
    in_train: Objectness | None = None,
    in_test: Objectness | None = None,
    sizes: Sizes | None = None,
    scale: float = math.nan,
    anchors: AnchorReport | None = None,
    semantic: SemanticReport | None = None,
) -> Advice:
    """Compare the settings with the data.

    Args:
        settings: Those of the config.
        images: Number of images that are trained on.
        objects: The annotations of training.
        classes: Classes of instances.
        in_train: Objects of the images of training.
        in_test: Those of the images of evaluation.
        sizes: Sizes of the objects of training, resized as in tests.
        scale: Median scale of the resizing in tests.
        anchors: The anchors against the objects of training.
        semantic: Label maps.
    """
    advice = Advice([], [])
    if images:
        _iterations(advice, settings, images)
        _learning_rate(advice, settings)
    if objects is not None and classes is not None and in_train is not None:
        _repeats(advice, settings, objects, classes)
        _empty_images(advice, settings, in_train, len(objects.files))
        _masks(advice, settings, classes)
    if settings.instances:
        _detections(advice, settings, in_train, in_test)
    if sizes is not None and (sizes.below_anchor or 0.0) >= MANY:
        _small_objects(advice, settings, sizes, scale)
    else:
        _enlarged_images(advice, settings, sizes, scale)
    if anchors is not None:
        _anchors(advice, anchors)
    if semantic is not None and semantic.train is not None:
        _crops(advice, settings, semantic)
    return advice


def suggested_epochs(images: int, *, semantic: bool) -> float:
    """Return the number of epochs for a number of training images."""
    if semantic:
        return min(MOST_SEMANTIC_EPOCHS, ADE_EPOCHS * math.sqrt(ADE_IMAGES / images))
    return min(MOST_EPOCHS, max(COCO_EPOCHS, COCO_EPOCHS * math.sqrt(COCO_IMAGES / images)))


def _iterations(advice: Advice, settings: Settings, images: int) -> None:
    schedule = settings.schedule
    semantic = not settings.instances
    epochs = suggested_epochs(images, semantic=semantic)
    own = schedule.updates * schedule.images_per_update / images
    text = (
        f"{schedule.updates} iterations of {schedule.images_per_update} images are {_epochs(own)} "
        f"epochs of {images} images"
    )
    if epochs / FACTOR <= own <= 3 * FACTOR * epochs and not (
        own > FACTOR * epochs and epochs in (MOST_EPOCHS, MOST_SEMANTIC_EPOCHS)
    ):
        advice.fitting.append(f"Iterations: {text}; about {epochs:.0f} are usual.")
        return
    updates = round_up(epochs * images / schedule.images_per_update)
    options = [f"SOLVER.MAX_ITER {updates}"]
    if schedule.scheduler == STEPWISE and schedule.steps and schedule.updates:
        scaled = [round(updates * step / schedule.updates) for step in schedule.steps]
        options.append(f'SOLVER.STEPS "({",".join(map(str, scaled))},)"')
    if schedule.warmup > updates // 10:
        options.append(f"SOLVER.WARMUP_ITERS {updates // 10}")
    source = (
        "ADE20K's recipe takes 127 epochs of 20,210 images, those of Cityscapes 215 to 700 of 2975"
        if semantic
        else "published recipes take 12 epochs of COCO's 117,266 images and 65 of Cityscapes' 2975"
    )
    advice.suggestions.append(
        Suggestion(
            "Iterations",
            f"{text}, but about {epochs:.0f} are usual for so many: {source}.",
            " ".join(options),
        )
    )


def _epochs(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def round_up(number: float) -> int:
    """Return the next number of two digits and zeros."""
    step = 10 ** max(0, math.floor(math.log10(max(number, 1))) - 1)
    return max(1, math.ceil(number / step) * step)


def _learning_rate(advice: Advice, settings: Settings) -> None:
    schedule = settings.schedule
    if schedule.reference_rate is None:
        return
    # Published semantic recipes differ by this factor among themselves.
    factor = FACTOR if settings.instances else 2 * FACTOR
    expected = schedule.reference_rate * schedule.images_per_update / REFERENCE_BATCH
    own = schedule.learning_rate
    text = (
        f"a rate of {own:g} for {schedule.images_per_update} images, where {REFERENCE_BATCH} "
        f"images take {schedule.reference_rate:g}"
    )
    if expected / factor <= own <= expected * factor:
        advice.fitting.append(f"Learning rate: {text}.")
        return
    advice.suggestions.append(
        Suggestion(
            "Learning rate",
            f"The config has {text}: the rate is proportional to the batch (linear scaling rule, "
            "https://arxiv.org/abs/1706.02677).",
            f"SOLVER.BASE_LR {expected:.3g}",
        )
    )


def _repeats(advice: Advice, settings: Settings, objects: Objects, classes: ClassReport) -> None:
    used = trained_images(objects, filters_empty=settings.filters_empty)
    counts = np.array(classes.train.images if classes.train else [])
    present = counts[counts > 0]
    images = int(used.sum())
    if len(present) < 2 or not images:
        return
    repeats = "RepeatFactor" in settings.sampler
    if repeats:
        factors = repeat_factors(objects, used, settings.repeat_threshold)
        text = (
            f"DATALOADER.REPEAT_THRESHOLD {settings.repeat_threshold:g} shows "
            f"{(factors > 1).sum()} of {images} images more than once in an epoch, at most "
            f"{factors.max():.1f} times, and makes an epoch {factors.mean():.2f} times as long"
        )
        if 1 < factors.max() <= MOST_REPEATED:
            advice.fitting.append(f"Repeated images: {text}.")
            return
    few = int((present <= FEW_IMAGES).sum())
    if not repeats and (present.max() < UNEQUAL * present.min() or not few):
        ratio = present.max() / present.min()
        reason = (
            f"the most frequent class is in {ratio:.1f} times as many images as the rarest"
            if ratio < UNEQUAL
            else f"every class is in more than {FEW_IMAGES} images"
        )
        advice.fitting.append(f"Sampler: images need not be repeated: {reason}.")
        return
    threshold = min(FEW_IMAGES / images, present.max() / images / UNEQUAL, LARGEST_THRESHOLD)
    threshold = float(f"{max(threshold, LVIS_THRESHOLD):.2g}")
    factors = repeat_factors(objects, used, threshold)
    if factors.max() <= 1:
        if repeats:
            advice.fitting.append(f"Repeated images: {text}.")
        return
    options = f"DATALOADER.REPEAT_THRESHOLD {threshold:g}"
    if not repeats:
        options = f"DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler {options}"
    outcome = (
        f"repeating them up to {factors.max():.1f} times, as LVIS's recipes do "
        f"(https://arxiv.org/abs/1908.03195), makes an epoch {factors.mean():.2f} times as long"
    )
    reason = (
        f"{text}"
        if repeats
        else (
            f"{few} of {len(present)} classes are in at most {FEW_IMAGES} images, the rarest in "
            f"{present.min()} and the most frequent in {present.max()}"
        )
    )
    advice.suggestions.append(Suggestion("Rare classes", f"{reason}; {outcome}.", options))


def _empty_images(advice: Advice, settings: Settings, found: Objectness, images: int) -> None:
    if settings.filters_empty and found.empty >= MANY * images:
        advice.suggestions.append(
            Suggestion(
                "Images without objects",
                f"{found.empty} of {images} training images have no annotation and are left out; "
                "if they are background that the model will meet, training on them prevents false "
                "detections.",
                "DATALOADER.FILTER_EMPTY_ANNOTATIONS False",
            )
        )


def _masks(advice: Advice, settings: Settings, classes: ClassReport) -> None:
    if len(classes.names) < 2 or classes.train is None or not settings.class_agnostic:
        return
    counts = np.array(classes.train.objects)
    few = int(((counts > 0) & (counts < FEW_OBJECTS)).sum())
    missing = [key for key, is_set in settings.class_agnostic.items() if not is_set]
    if not missing:
        advice.fitting.append("Masks: one for all classes, which all objects teach.")
    elif 2 * few > (counts > 0).sum():
        advice.suggestions.append(
            Suggestion(
                "Masks",
                f"{few} of {len(counts)} classes have fewer than {FEW_OBJECTS} objects, and a mask "
                "of a class learns from its own objects only; one mask for all classes learns from "
                f"all {counts.sum()}.",
                " ".join(f"{key} True" for key in settings.class_agnostic),
            )
        )


def _detections(
    advice: Advice, settings: Settings, in_train: Objectness | None, in_test: Objectness | None
) -> None:
    found = [x for x in (in_train, in_test) if x is not None and x.percentiles]
    most = int(max((x.percentiles[-1] for x in found), default=0))
    if not most:
        return
    options, texts = [], []
    if most > settings.detections:
        full, lost = sum(x.full for x in found), sum(x.lost for x in found)
        wanted = math.ceil(1.1 * most / 50) * 50
        texts.append(
            f"{full} images have more than TEST.DETECTIONS_PER_IMAGE {settings.detections} objects "
            f"(up to {most}), so that {lost} objects cannot be found"
        )
        options.append(f"TEST.DETECTIONS_PER_IMAGE {wanted}")
        if settings.max_dets < most and (settings.max_dets > 0 or most > 100):
            texts.append("AP counts only 100 results of an image and class in COCO's definition")
            options.append(f"TEST.MAX_DETS_PER_IMAGE {wanted}")
    if settings.proposals is not None and 2 * most > settings.proposals:
        texts.append(
            f"an image has up to {most} objects, but there are only {settings.proposals} "
            "proposals, of which several fall on each object"
        )
        options.append(f"MODEL.RPN.POST_NMS_TOPK_TEST {math.ceil(10 * most / 500) * 500}")
    if options:
        advice.suggestions.append(
            Suggestion("Objects per image", f"{_capital('; '.join(texts))}.", " ".join(options))
        )
    else:
        advice.fitting.append(
            f"Objects per image: up to {most}, TEST.DETECTIONS_PER_IMAGE is {settings.detections}."
        )


def _enlarged_images(advice: Advice, settings: Settings, sizes: Sizes | None, scale: float) -> None:
    text = f"images are scaled by {scale:.2f} in tests (median)"
    if sizes is not None and sizes.below_anchor is not None:
        text += f", and {sizes.below_anchor:.0%} of the objects are below half the smallest anchor"
    factor = (USUAL_SCALE if settings.instances else 1.0) / scale
    # The objects must stay large enough without it.
    low = sizes.percentiles[PERCENTILES.index(5)] * factor if sizes is not None else math.inf
    if not scale > ENLARGED or low < _smallest_anchor(settings) / 2:
        if math.isfinite(scale):
            advice.fitting.append(f"Size of the input: {text}.")
        return
    options = _sides(settings, factor)
    if settings.crop_after is not None and settings.crop_after.kind.startswith("absolute"):
        sides = ",".join(str(_rounded(side * factor)) for side in settings.crop_after.size)
        options.append(f'INPUT.CROP.SIZE "({sides})"')
    advice.suggestions.append(
        Suggestion(
            "Size of the input",
            f"{_capital(text)}: enlarging shows nothing more, and takes {1 / factor**2:.0f} times "
            "the time of these sizes.",
            " ".join(options),
        )
    )


def _small_objects(advice: Advice, settings: Settings, sizes: Sizes, scale: float) -> None:
    smallest = _smallest_anchor(settings)
    quarter = sizes.percentiles[PERCENTILES.index(25)]
    text = (
        f"{sizes.below_anchor or 0.0:.0%} of the objects are below {smallest / 2:g} pixels after "
        "the resize in tests"
    )
    if scale < 1 / FACTOR:
        advice.suggestions.append(
            Suggestion(
                "Small objects in large images",
                f"{text}, which reduces images to {scale:.2f} of their size: train on crops, and "
                f"predict in tiles (pointrend predict --tile {TILE}), at the full resolution.",
                "INPUT.CROP.ENABLED True INPUT.CROP.TYPE absolute INPUT.CROP.SIZE "
                f'"({TILE},{TILE})"',
            )
        )
        return
    short = settings.testing.short_sides[0]
    factor = min(smallest / 2 / max(quarter, 1e-9), LARGEST_SIDE / max(short, 1), 2.0)
    if factor < SMALLEST_FACTOR:
        advice.fitting.append(f"Size of the input: {text}; it cannot grow much.")
        return
    advice.suggestions.append(
        Suggestion(
            "Small objects",
            f"{text}: an input {factor:.1f} times as large shows them better, at {factor**2:.1f} "
            "times the time and memory.",
            " ".join(_sides(settings, factor)),
        )
    )


def _smallest_anchor(settings: Settings) -> float:
    if settings.anchors is None:
        return SMALL_ANCHOR
    return min(size for level in settings.anchors.sizes for size in level)


def _sides(settings: Settings, factor: float) -> list[str]:
    """Return the options for an input of another size."""
    training, testing = settings.training, settings.testing
    options = [
        f"INPUT.MIN_SIZE_TEST {_rounded(testing.short_sides[0] * factor)}",
        f"INPUT.MAX_SIZE_TEST {_rounded(testing.longest * factor)}",
    ]
    if training.jitter is not None:
        sides = ",".join(str(_rounded(side * factor)) for side in training.jitter.size)
        return [f'INPUT.LSJ.SIZE "({sides})"', *options]
    drawn = [_rounded(side * factor) for side in training.short_sides]
    if not training.is_range:  # which has two ends, even if they are equal
        drawn = list(dict.fromkeys(drawn))
    sides = ",".join(map(str, drawn))
    return [
        f'INPUT.MIN_SIZE_TRAIN "({sides},)"',
        f"INPUT.MAX_SIZE_TRAIN {_rounded(training.longest * factor)}",
        *options,
    ]


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _rounded(side: float) -> int:
    """Round a side to a multiple of 32, the stride of the coarsest feature map."""
    return max(1, round(side / 32)) * 32


def _anchors(advice: Advice, report: AnchorReport) -> None:
    middle = (report.anchors.background + report.anchors.foreground) / 2
    text = f"{report.fit.below_middle:.0%} of the objects have an IoU below {middle:g} with every"
    if report.better is None or report.better_fit is None:
        text += " anchor after the resize in training, and no usual change lowers that much"
        if report.fit.below_middle < FAR_FROM_ANCHORS:
            advice.fitting.append(f"Anchors: {text}.")
        else:
            reason = f"{text}: these objects are hard to propose."
            advice.suggestions.append(Suggestion("Anchors", reason, ""))
        return
    options = []
    if report.better.sizes != report.anchors.sizes:
        sizes = [[float(f"{size:.3g}") for size in level] for level in report.better.sizes]
        options.append(f'MODEL.ANCHOR_GENERATOR.SIZES "{_numbers(sizes)}"')
    if report.better.ratios != report.anchors.ratios:
        ratios = [float(f"{ratio:.3g}") for ratio in report.better.ratios[0]]
        options.append(f'MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS "{_numbers([ratios])}"')
    warning = (
        "; with another number of ratios the proposal network of a checkpoint is not loaded"
        if len(report.better.ratios[0]) != len(report.anchors.ratios[0])
        else ""
    )
    advice.suggestions.append(
        Suggestion(
            "Anchors",
            f"{text} anchor after the resize in training, {report.better_fit.below_middle:.0%} "
            f"with these{warning}.",
            " ".join(options),
        )
    )


def _numbers(levels: list[list[float]]) -> str:
    return "[" + ",".join("[" + ",".join(f"{x:g}" for x in level) + "]" for level in levels) + "]"


def _crops(advice: Advice, settings: Settings, report: SemanticReport) -> None:
    assert report.train is not None
    total = report.train.pixels.sum()
    largest = int(report.train.pixels.argmax())
    share = report.train.pixels[largest] / max(1, total)
    if settings.crop_after is None:
        return
    text = f"{report.names[largest]} covers {share:.0%} of the labeled pixels"
    if share > 0.5 and settings.single_category_max_area >= 1:
        advice.suggestions.append(
            Suggestion(
                "Crops",
                f"{text}, so that many crops have nothing else; crops with less of it are drawn "
                "again with this limit, as in the recipe of PointRend for Cityscapes.",
                "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA 0.75",
            )
        )
    else:
        advice.fitting.append(f"Crops: {text}.")
