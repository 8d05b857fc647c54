"""Tiny models of each kind, bad values for every key that they read, and a run with one of them."""

import contextlib
import math
import pickle
import resource
import signal
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage

from point_rend.config.checks import check_config, check_test_time_augmentation
from point_rend.config.defaults import value_of
from point_rend.config.loading import load_config
from point_rend.config.trial import check_model
from point_rend.data.datasets.coco import register_coco
from point_rend.data.datasets.label_maps import register_sem_seg
from point_rend.data.loader.loaders import build_test_loader, build_train_loader
from point_rend.data.mapper import NamingDatasetMapper
from point_rend.engine.train_step import NonFiniteError, build_train_step
from point_rend.evaluation.tta import build_test_time_augmentation
from point_rend.solver import build_lr_scheduler
from point_rend.utils.errors import TrainingStop
from tests.engine.killing import SERVER
from tests.tiny_datasets import TINY_MODEL, write_coco
from tests.tiny_semantic import write_sem_seg

INSTANCES, LABELS = "bad_values_instances", "bad_values_labels"
COMMON = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "SEED", "1", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)"),
    *("SOLVER.BASE_LR", "0.0005", "MODEL.RESNETS.NORM", "BN"),
]
THINGS = [
    *(*TINY_MODEL, *COMMON, "DATASETS.TRAIN", f"('{INSTANCES}',)"),
    *("DATASETS.TEST", f"('{INSTANCES}',)", "MODEL.ROI_HEADS.NUM_CLASSES", "3"),
    *("MODEL.POINT_HEAD.TRAIN_NUM_POINTS", "16", "INPUT.CROP.ENABLED", "True"),
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.ROI_HEADS.IN_FEATURES", "('p2', 'p3', 'p4', 'p5')"),
    *("MODEL.RPN.IN_FEATURES", "('p2', 'p3', 'p4', 'p5', 'p6')"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [24], [32], [64]]"),
    *("MODEL.POINT_HEAD.SUBDIVISION_STEPS", "2"),
    *("MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", "64"),
]
STUFF = [
    *(*COMMON, "DATASETS.TRAIN", f"('{LABELS}',)", "DATASETS.TEST", f"('{LABELS}',)"),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"),
    *("MODEL.POINT_HEAD.FC_DIM", "16", "MODEL.POINT_HEAD.TRAIN_NUM_POINTS", "16"),
    *("MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", "64", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "[64, 96]"),
    *("INPUT.COLOR_AUG_SSD", "True", "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", "0.9"),
]
DEEPLAB = [
    *(*STUFF, "MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.SEM_SEG_HEAD.NORM", "BN"),
    *("MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "16", "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", "[8]"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "16"),
]
# Switches of further keys.
AUGMENTED = [
    *("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.MAX_SIZE", "96"),
    *("SOLVER.CLIP_GRADIENTS.ENABLED", "True"),
]
CONFIGS = {
    "instances": (
        "InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco",
        [*THINGS, *AUGMENTED, "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"],
    ),
    "implicit": ("InstanceSegmentation/implicit_pointrend_R_50_FPN_1x_coco", THINGS),
    "semantic": (
        "SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes",
        [
            *(*STUFF, *AUGMENTED, "MODEL.RESNETS.DEPTH", "18", "MODEL.FPN.OUT_CHANNELS", "16"),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"),
        ],
    ),
    "deeplab": ("SemanticSegmentation/pointrend_deeplab_v3_R_103_os16_90k_cityscapes", DEEPLAB),
    "deeplab plus": (
        "SemanticSegmentation/pointrend_deeplab_v3_plus_R_103_os16_90k_cityscapes",
        [
            *(*DEEPLAB, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
            *("MODEL.POINT_HEAD.SUBDIVISION_STEPS", "2"),
        ],
    ),
}
# Parts of Detectron2 with keys of their own, which take longer and are tried with the slow tests.
MASK_RCNN = "InstanceSegmentation/mask_rcnn_R_50_FPN_1x_coco"
CONFIGS_OF_DETECTRON2 = {
    "cascade": (
        MASK_RCNN,
        [
            *(*THINGS, "MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
            *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
            *("MODEL.ROI_MASK_HEAD.NUM_CONV", "1"),
        ],
    ),
    "retinanet": (
        MASK_RCNN,
        [
            *(*THINGS, "MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.MASK_ON", "False"),
            *("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"),
            *("MODEL.RESNETS.OUT_FEATURES", "['res3', 'res4', 'res5']"),
            *("MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']"),
            *("MODEL.RETINANET.NUM_CLASSES", "3", "MODEL.RETINANET.NUM_CONVS", "1"),
        ],
    ),
    "c4": (
        MASK_RCNN,
        [
            *(*THINGS, "MODEL.MASK_ON", "False", "MODEL.BACKBONE.NAME", "build_resnet_backbone"),
            *("MODEL.RESNETS.OUT_FEATURES", "['res4']", "MODEL.ROI_HEADS.NAME", "Res5ROIHeads"),
            *("MODEL.ROI_HEADS.IN_FEATURES", "['res4']", "MODEL.RPN.IN_FEATURES", "['res4']"),
            *("MODEL.ANCHOR_GENERATOR.SIZES", "[[16, 32]]"),
            *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "14"),
        ],
    ),
}
# Names of files, data sets and machines are checked elsewhere.
OTHERS = {"DATASETS.TRAIN", "DATASETS.TEST", "MODEL.WEIGHTS", "MODEL.DEVICE", "OUTPUT_DIR"}
OTHERS |= {"VERSION"}
HUGE = 10**9


def register(folder: Path) -> None:
    """Make two data sets of two images known."""
    instances = write_coco(folder / "coco", suffix=".jpg")
    register_coco(INSTANCES, instances.json_file, instances.image_root)
    register_sem_seg(LABELS, *write_sem_seg(folder / "labels", scales=(1, 1)))


def build_config(name: str) -> CfgNode:
    """Return the tiny config of a kind."""
    return load_config(*(CONFIGS | CONFIGS_OF_DETECTRON2)[name])


def check(cfg: CfgNode) -> None:
    """Check a config as a training does."""
    check_config(cfg, training=True)
    check_test_time_augmentation(cfg)
    check_model(cfg, training=True)


def run(cfg: CfgNode) -> None:
    """Check a config, train its model for two steps, and apply it to an image."""
    check(cfg)
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    loader = build_train_loader(cfg, NamingDatasetMapper(cfg, is_train=True))
    step = build_train_step(cfg, model, loader, optimizer)
    scheduler = build_lr_scheduler(cfg, optimizer)
    step.start_iter, step.max_iter = 0, cfg.SOLVER.MAX_ITER
    with EventStorage(0) as step.storage:
        for iteration in range(min(2, step.max_iter)):
            step.iter = iteration
            step.run_step()
            scheduler.step()
    model.eval()
    test = build_test_loader(cfg, cfg.DATASETS.TEST[0], NamingDatasetMapper(cfg, is_train=False))
    applied = build_test_time_augmentation(cfg, model) if cfg.TEST.AUG.ENABLED else model
    with torch.no_grad():
        applied(next(iter(test)))


@contextlib.contextmanager
def keys_read(cfg: CfgNode) -> Iterator[set[str]]:
    """Collect the keys of a config that are read from it or its clones."""
    keys: set[str] = set()
    plain = CfgNode.__getattr__

    def mark(node: CfgNode, prefix: str) -> None:
        node.__dict__["_prefix"] = prefix
        for name, value in node.items():
            if isinstance(value, CfgNode):
                mark(value, f"{prefix}{name}.")

    def collecting(node: CfgNode, name: str) -> Any:
        value = plain(node, name)
        if "_prefix" in node.__dict__ and not isinstance(value, CfgNode):
            keys.add(node.__dict__["_prefix"] + name)
        return value

    mark(cfg, "")
    CfgNode.__getattr__ = collecting
    try:
        yield keys
    finally:
        CfgNode.__getattr__ = plain


def bad_values(value: Any) -> list[Any]:
    """Return no value, and values of the type that are extreme or of another length."""
    if isinstance(value, bool):
        return [None]
    if isinstance(value, int):
        return [None, -2, -1, 0, 1, 3, HUGE, 2**62]
    if isinstance(value, float):
        return [None, math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-300, 2.0, 1e9, 1e300]
    if isinstance(value, str):
        return [None, "", "nonsense"]
    if value is None:
        return [-1, 0, HUGE, math.nan, -1.0, "nonsense", [], True]
    items = [None, math.nan, math.inf, -1, 0, 1, 0.5, HUGE, 1e300, "nonsense", "", True, [], [[]]]
    lists = [[item] * max(len(value), 1) for item in items]
    lists += [[], [*value, *value[-1:]], [*value[:-1]], [*value, *value, *value]]
    if value and isinstance(value[0], (list, tuple)):
        lists += [[[item] * len(value[0])] * len(value) for item in items]
        lists += [[part[:-1] for part in value], [[*part, *part] for part in value], [*value[0]]]
    kind = type(value)
    return [None, *(kind(x) for x in lists if kind(x) != value)]


def pairs(cfg: CfgNode) -> list[tuple[str, Any]]:
    """Return the keys that a run of a config reads, each with the bad values."""
    with keys_read(cfg) as read:
        run(cfg)
    return [(key, bad) for key in sorted(read - OTHERS) for bad in bad_values(value_of(cfg, key))]


class Outcome(NamedTuple):
    """The end of a run: "runs", "refused", "stopped", "diverged", or "fault"; and its message."""

    kind: str
    message: str = ""


def outcome(cfg: CfgNode, key: str, value: Any) -> Outcome:
    """Run a config with another value of a key."""
    cfg = with_value(cfg, key, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(cfg)
    except (NonFiniteError, TrainingStop) as stop:
        return Outcome("stopped", str(stop).splitlines()[0])
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})"
        ours = isinstance(error, ValueError) and "/point_rend/" in frame.filename
        return Outcome("refused", str(error)) if ours else Outcome("fault", where)
    return Outcome("runs")


def with_value(cfg: CfgNode, key: str, value: Any) -> CfgNode:
    """Return a copy of a config with another value of a key, as a file or an option would set it.

    That a value has another type than the default is noticed when it is read.
    """
    changed = cfg.clone()
    *sections, name = key.split(".")
    node = value_of(changed, ".".join(sections)) if sections else changed
    node[name] = value
    return changed


def outcome_in_a_process(cfg: CfgNode, key: str, value: Any, seconds: int = 10) -> Outcome:
    """As :func:`outcome`, in a process with limits of its time and its memory."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "outcome")
        process = SERVER.Process(target=_write_outcome, args=(cfg, key, value, seconds, file))
        process.start()
        process.join()
        if not file.exists():
            return Outcome("fault", f"exit code {process.exitcode}")
        return Outcome(*pickle.loads(file.read_bytes()))


def _write_outcome(cfg: CfgNode, key: str, value: Any, seconds: int, file: Path) -> None:
    signal.setitimer(signal.ITIMER_REAL, 12 * seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
    torch.set_num_threads(1)
    register(file.parent)
    file.write_bytes(pickle.dumps(tuple(outcome(cfg, key, value))))
