#!/usr/bin/env python
"""Train and evaluate PointRend, and the baseline that it is compared with.

    configs=configs/InstanceSegmentation
    python train_net.py --config-file $configs/pointrend_rcnn_R_50_FPN_1x_coco.yaml

Without a GPU add `MODEL.DEVICE cpu`. A data set of one's own in COCO format needs no code:
`--register-coco NAME JSON IMAGE_ROOT` makes it known under a name for DATASETS.TRAIN and
DATASETS.TEST, and the class count follows from the file. `--register-sem-seg NAME IMAGES LABELS
CLASSES` does so for images and label maps of semantic segmentation.

Several processes share a run if `--num-gpus` and `--num-machines` ask for them, or if torchrun,
srun or another launcher has started them; with `MODEL.DEVICE cpu` they are processes without a GPU.
"""

import argparse
import contextlib
import functools
import logging
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.solver import LRScheduler
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from point_rend.checkpoint import SafeDetectionCheckpointer, without_query
from point_rend.config import (
    INHERIT,
    add_pointrend_config,
    check_config,
    load_config,
    merge_from_file_safely,
    value_of,
)
from point_rend.data.checks import check_datasets, leave_out_impossible_annotations
from point_rend.data.coco import class_metadata, class_names, describe, register_coco
from point_rend.data.cocofied_lvis import register_cocofied_lvis
from point_rend.data.mapper import NamingDatasetMapper
from point_rend.data.semantic import SEMANTIC_MODELS, check_semantic_datasets, register_sem_seg
from point_rend.engine.loading import (
    EvaluationLoader,
    TrainLoader,
    build_test_loader,
    build_train_loader,
)
from point_rend.engine.processes import (
    AUTO,
    distribute,
    join,
    launch,
    leave,
    place_by_launcher,
)
from point_rend.engine.step import NonFiniteError, build_step
from point_rend.engine.stopping import USER_ERROR, TrainingStop
from point_rend.engine.trainer import ResumableTrainer
from point_rend.evaluation.build import (
    INSTANCES,
    PANOPTIC,
    SEM_SEG,
    build_evaluator,
    check_evaluators,
)
from point_rend.evaluation.passes import evaluate_together
from point_rend.evaluation.test_time import (
    InMixedPrecision,
    build_test_time_augmentation,
    check_test_time_augmentation,
)
from point_rend.solver import build_lr_scheduler
from point_rend.visualize import written_whole

DIVERGED = 3  # exit code of a training that ends at a loss or a gradient that is not finite
UNSAID = -1

PANOPTIC_MODELS = ("PanopticFPN", "PointRendPanopticFPN")  # names in the registry

logger = logging.getLogger("point_rend.train_net")


# Of options of Detectron2's parser that do more here, or could be misunderstood.
HELP = {
    "num_gpus": "number of processes on each machine, one per GPU; with MODEL.DEVICE cpu that many "
    "processes without a GPU. 0 means 1. Leave it out under torchrun and srun, which start the "
    "processes",
    "num_machines": "number of machines; start the same command on each, with its --machine-rank",
    "dist_url": "where the processes meet: tcp://<address of machine 0>:<a free port there>; "
    "needed for several machines only",
}


def number_of_processes(text: str) -> int:
    """Read ``--num-gpus``; 0 means 1, the process that is there, as with Detectron2."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number, 0 or more, got {text}")
    return max(1, int(text))


def build_parser() -> argparse.ArgumentParser:
    """Extend Detectron2's parser by our own options."""
    parser = default_argument_parser()
    parser.set_defaults(dist_url=AUTO)
    for action in parser._actions:
        action.help = HELP.get(action.dest, action.help)
        if action.dest == "num_gpus":
            action.type = number_of_processes
    parser.add_argument(
        "--register-coco",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGE_ROOT"),
        help="register a data set in COCO format under NAME; may be repeated",
    )
    parser.add_argument(
        "--register-sem-seg",
        nargs=4,
        action="append",
        default=[],
        metavar=("NAME", "IMAGES", "LABELS", "CLASSES"),
        help="register a folder of images and one of label maps (greyscale PNG files of the same "
        "names; 255 does not count) under NAME; CLASSES is a file with one class name per line, or "
        "the names with commas between them; may be repeated",
    )
    parser.add_argument(
        "--allow-unsafe-checkpoint",
        action="store_true",
        help="load a checkpoint even if that runs code out of the file; only for files you trust",
    )
    return parser


class Run(NamedTuple):
    """All that a process needs to take part in a run."""

    args: argparse.Namespace
    cfg: CfgNode
    unclean_datasets: tuple[str, ...]


def setup(args: argparse.Namespace) -> Run:
    """Build the config and refuse whatever would stop the run later.

    Args:
        args: The parsed command line.

    Returns:
        The run, ready to be launched.

    Raises:
        FileNotFoundError: If a file or a folder is missing.
        ValueError: If options, config, machine or data do not fit together.
    """
    cfg = read_config(args)
    register_datasets(args)
    training = not args.eval_only
    train, test = cfg.DATASETS.TRAIN if training else (), cfg.DATASETS.TEST
    if not (train if training else test):
        raise ValueError(f"DATASETS.{'TRAIN' if training else 'TEST'} is empty")

    outputs = model_outputs(cfg)
    filled = []
    for count in CLASS_COUNTS:
        if count.output in outputs and fill_class_count(
            cfg, count, [*train, *test], args.config_file, args.opts
        ):
            filled.append(count.key)
    check_config(cfg, training=training)
    check_test_time_augmentation(cfg)
    check_machine(cfg, args.num_gpus)
    has_weights = check_weights(cfg, args)
    if training:
        check_shares(cfg, max(comm.get_world_size(), args.num_gpus * args.num_machines))
    check_evaluators(train, test, outputs=outputs)
    check_output_dir(cfg.OUTPUT_DIR)
    cfg.freeze()

    set_up_logger(cfg)
    for key in filled:
        logger.info("%s is %d, as the data sets have", key, value_of(cfg, key))
    if args.eval_only and not has_weights:
        logger.warning("MODEL.WEIGHTS is empty: what is evaluated is a model of random weights")
    unclean: tuple[str, ...] = ()
    skips = cfg.DATALOADER.ON_CORRUPT_IMAGE == "skip"
    if "instances" in outputs:
        masks = cfg.MODEL.MASK_ON
        unclean = check_datasets(train, test, masks=masks, skip_broken_images=skips)
    if "sem_seg" in outputs:
        ignore_value = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        check_semantic_datasets(train, test, ignore_value=ignore_value, skip_broken_images=skips)
    return Run(args, cfg, unclean)


def read_config(args: argparse.Namespace) -> CfgNode:
    """Read the config file and the options that overrule it.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If none is named, or one does not fit.
    """
    if not args.config_file:
        raise ValueError("--config-file is missing; the published configs are below configs/")
    return load_config(args.config_file, args.opts)


def register_datasets(args: argparse.Namespace) -> None:
    """Make the data sets of the command line known, and the built-in one that Detectron2 lacks."""
    register_cocofied_lvis()
    for dataset in args.register_coco:
        register_coco(*dataset)
    for dataset in args.register_sem_seg:
        register_sem_seg(*dataset)


class ClassCount(NamedTuple):
    """Where a number of classes stands.

    Attributes:
        output: Field of a model's results to which the classes belong.
        kind: Of the classes, as the fields of a data set's metadata begin.
        key: Config key of their number.
    """

    output: str
    kind: str
    key: str

    @property
    def names(self) -> str:
        """Field of a data set's metadata that names the classes."""
        return f"{self.kind}_classes"


CLASS_COUNTS = (
    ClassCount("instances", "thing", "MODEL.ROI_HEADS.NUM_CLASSES"),
    ClassCount("sem_seg", "stuff", "MODEL.SEM_SEG_HEAD.NUM_CLASSES"),
)


def model_outputs(cfg: CfgNode) -> frozenset[str]:
    """Tell which fields the results of a model have."""
    if cfg.MODEL.META_ARCHITECTURE in SEMANTIC_MODELS:
        return SEM_SEG
    return PANOPTIC if cfg.MODEL.META_ARCHITECTURE in PANOPTIC_MODELS else INSTANCES


def says(config_file: str, opts: Sequence[str], key: str) -> bool:
    """Tell whether a count is given under a key, even if by its default value."""
    probe = get_cfg()
    add_pointrend_config(probe)
    probe.merge_from_list([key, UNSAID])
    merge_from_file_safely(probe, config_file)
    probe.merge_from_list(list(opts))
    return value_of(probe, key) != UNSAID


def fill_class_count(
    cfg: CfgNode,
    count: ClassCount,
    datasets: Sequence[str],
    config_file: str,
    opts: Sequence[str],
) -> bool:
    """Take a class count over from the data sets, or check that the given one is theirs.

    Args:
        cfg: The config; the value under `count.key` may be changed.
        count: Which classes.
        datasets: Names of the registered data sets of the run.
        config_file: YAML file of the config.
        opts: Keys and values that overrule it.

    Returns:
        Whether the count was taken over.

    Raises:
        ValueError: If the data sets have different classes, or if a count in the config is not
            theirs.
    """
    classes = class_names(datasets, count.names)
    if classes is None:
        return False
    is_said = says(config_file, opts, count.key)
    keys = [count.key] if is_said else []
    semantic = count.output == "sem_seg"
    own_point_head = semantic and cfg.MODEL.SEM_SEG_HEAD.POINT_HEAD.NAME
    point_head = f"MODEL.{'SEM_SEG_HEAD.' if own_point_head else ''}POINT_HEAD.NUM_CLASSES"
    if value_of(cfg, point_head) != INHERIT:
        keys.append(point_head)
    for key in keys:
        if value_of(cfg, key) != len(classes):
            advice = f"leave the key out and it follows the data, or pass {key} {len(classes)}"
            if says(config_file, (), key):
                advice = (
                    f"{config_file} or its base sets it; to overrule it pass {key} {len(classes)}"
                )
            raise ValueError(
                f"{key} is {value_of(cfg, key)}, but the number of classes is {len(classes)} in "
                f"{', '.join(map(describe, dict.fromkeys(datasets)))}; {advice}"
            )
    cfg.merge_from_list([count.key, len(classes)])
    return not is_said


def known_of_classes(cfg: CfgNode) -> dict[str, Any]:
    """Collect what the training sets tell of the model's classes, if they are as many as its."""
    outputs = model_outputs(cfg)
    known: dict[str, Any] = {}
    for count in CLASS_COUNTS:
        metadata = class_metadata(cfg.DATASETS.TRAIN, count.kind)
        if count.output in outputs and len(metadata.get(count.names, ())) == value_of(
            cfg, count.key
        ):
            known |= metadata
    return known


def check_machine(cfg: CfgNode, num_gpus: int) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: If MODEL.DEVICE or the number of GPUs does not fit this machine.
    """
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}: expected cpu, cuda or cuda:N"
        ) from error
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    available = torch.cuda.device_count()
    if on_gpu and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but there is no CUDA device on this machine; "
            "to run on the CPU pass: MODEL.DEVICE cpu"
        )
    if on_gpu and num_gpus > available:
        raise ValueError(f"--num-gpus is {num_gpus}, but this machine has {available} CUDA devices")


def check_weights(cfg: CfgNode, args: argparse.Namespace) -> bool:
    """Refuse weights that are not there.

    Returns:
        Whether there are any: a model starts from them, or from the checkpoint that is resumed.

    Raises:
        FileNotFoundError: If MODEL.WEIGHTS names a file that does not exist.
    """
    if args.resume and os.path.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        return True
    weights = cfg.MODEL.WEIGHTS
    if weights and "://" not in weights and not os.path.isfile(without_query(weights)):
        raise FileNotFoundError(f"MODEL.WEIGHTS: there is no checkpoint {weights}")
    return bool(weights)


def check_shares(cfg: CfgNode, num_processes: int) -> None:
    """Refuse a training that cannot be shared out to its processes.

    Raises:
        ValueError: If the batch cannot be divided, or layers of the model talk over GPUs alone.
    """
    images, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    if images % (reference or num_processes):
        source = "SOLVER.REFERENCE_WORLD_SIZE" if reference else "the number of processes"
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {images}: expected a multiple of {source}, which is "
            f"{reference or num_processes}"
        )
    synchronised = [key for key, norm in norms(cfg.MODEL, "MODEL") if norm in GPU_NORMS]
    if synchronised and num_processes > 1 and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise ValueError(
            f"SyncBN works on GPUs only, but MODEL.DEVICE is {cfg.MODEL.DEVICE}: set "
            f"{', '.join(synchronised)} to naiveSyncBN, which does the same on any device"
        )


GPU_NORMS = ("SyncBN", "nnSyncBN")


def norms(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """List all keys NORM below a node of the config with their values."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from norms(value, f"{path}.{name}")
        elif name == "NORM":
            yield f"{path}.{name}", value


def check_output_dir(output_dir: str) -> None:
    """Create the output directory and make sure that files can be written there.

    Raises:
        ValueError: If they cannot.
    """
    try:
        os.makedirs(output_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise ValueError(f"OUTPUT_DIR {output_dir!r} cannot be written: {error}") from error


def set_up_logger(cfg: CfgNode) -> None:
    """Let this package's messages take the way of Detectron2's: console and log file."""
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="point_rend")


class Trainer(ResumableTrainer):
    """Our trainer with our step, checkpointer, mapper and evaluators."""

    def __init__(self, cfg: CfgNode, *, allow_unsafe_checkpoint: bool = False) -> None:
        # DefaultTrainer.__init__ names the classes of its parts outright, and wants several
        # processes to have GPUs; its own parent has no such wishes.
        super(DefaultTrainer, self).__init__()
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self._trainer = build_step(cfg, distribute(model), loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeDetectionCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            trainer=weakref.proxy(self),
            allow_unsafe=allow_unsafe_checkpoint,
            strict_shapes=False,  # a training may start from a model of other classes
            metadata=known_of_classes(cfg),
        )
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def run_step(self) -> None:
        """Take one step; a loss or gradient that is not finite ends the training before it."""
        try:
            super().run_step()
        except NonFiniteError as error:
            self.data_loader.batches -= 1  # the step has not been taken
            logger.error("%s", error)
            message = (
                f"{str(error).splitlines()[0]}; the losses and images are in the log; unless their "
                "cause is gone, a resumed training meets it again, at the same SOLVER.BASE_LR: for "
                "a smaller one start anew, in another OUTPUT_DIR, with MODEL.WEIGHTS a checkpoint"
            )
            raise TrainingStop(message, exit_code=DIVERGED, together=True) from error

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """Build our loader with our mapper."""
        return build_train_loader(cfg, NamingDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> EvaluationLoader:
        """Build our loader with our mapper."""
        return build_test_loader(cfg, dataset_name, NamingDatasetMapper(cfg, is_train=False))

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """Build the schedule of the learning rate, DeepLab's and mmsegmentation's included."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Build the evaluator of a data set."""
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
        """Evaluate a model, with the variants of each image if TEST.AUG.ENABLED asks for them.

        TEST.MIXED_PRECISION computes in a shorter type. Data sets that share their images share the
        inference.
        """
        if cfg.TEST.AUG.ENABLED:
            model = build_test_time_augmentation(cfg, model)
        if cfg.TEST.MIXED_PRECISION:
            model = InMixedPrecision(model, getattr(torch, cfg.SOLVER.AMP.DTYPE))
        names = cfg.DATASETS.TEST
        if evaluators is not None or len(names) < 2 or cfg.MODEL.LOAD_PROPOSALS:
            return super().test(cfg, model, evaluators)
        build_loader = functools.partial(cls.build_test_loader, cfg)
        return evaluate_together(
            model, names, build_loader, functools.partial(cls.build_evaluator, cfg)
        )


def run(args: argparse.Namespace, cfg: CfgNode, unclean_datasets: Sequence[str]) -> Any:
    """Train or evaluate; every process of a run executes this.

    Args:
        args: The parsed command line.
        cfg: The finished config, frozen.
        unclean_datasets: Training sets with annotations that have to be left out.

    Returns:
        The results of the evaluation by data set, or of the only one; after a training None.
    """
    register_datasets(args)
    for name in unclean_datasets:
        leave_out_impossible_annotations(name, masks=cfg.MODEL.MASK_ON)
    if args.eval_only:
        with config_of_training_kept(cfg.OUTPUT_DIR, always=True), user_errors():
            default_setup(cfg, args)
            set_up_logger(cfg)
            model = Trainer.build_model(cfg)
            checkpointer: DetectionCheckpointer = SafeDetectionCheckpointer(
                model, cfg.OUTPUT_DIR, allow_unsafe=args.allow_unsafe_checkpoint
            )
            checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    with config_of_training_kept(cfg.OUTPUT_DIR, always=False), user_errors():
        default_setup(cfg, args)
        set_up_logger(cfg)
        trainer = Trainer(cfg, allow_unsafe_checkpoint=args.allow_unsafe_checkpoint)
        trainer.resume_or_load(resume=args.resume)
    return trainer.train()


@contextlib.contextmanager
def config_of_training_kept(output_dir: str, *, always: bool) -> Iterator[None]:
    """Put back the ``config.yaml`` of a training over which Detectron2 writes that of any command.

    Args:
        output_dir: OUTPUT_DIR.
        always: Whether to put it back even if what follows does not fail.
    """
    path = Path(output_dir, "config.yaml")
    kept = path.read_bytes() if comm.is_main_process() and path.is_file() else None
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        if kept is not None and (always or not succeeded):
            with written_whole(path) as unfinished:
                unfinished.write_bytes(kept)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors that the user can put right into one line; bugs keep their traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        say_error(error)
        raise SystemExit(USER_ERROR) from error


def say_error(error: object) -> None:
    """Print one line that says why the program ends."""
    message = " ".join(str(error).split())
    print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr, flush=True)


def set_up_together(args: argparse.Namespace) -> Run:
    """Do :func:`setup` in one process of every machine; an error there ends all processes."""
    outcome: Run | int | None = None
    if comm.get_local_rank() == 0:
        try:
            with user_errors():
                outcome = setup(args)
        except SystemExit:
            outcome = USER_ERROR
    outcomes = comm.all_gather(outcome)
    if USER_ERROR in outcomes:
        raise SystemExit(USER_ERROR)
    return outcomes[comm.get_rank() - comm.get_local_rank()]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: The arguments; those of the process if not given.

    Raises:
        SystemExit: With code 2 after an error that the user can put right, with code 3 after a
            loss or a gradient that is not finite.
    """
    args = build_parser().parse_args(argv)
    with user_errors():
        if not 0 <= args.machine_rank < args.num_machines:
            raise ValueError(
                f"--machine-rank is {args.machine_rank} and --num-machines {args.num_machines}: "
                "expected 1 machine or more, numbered from 0"
            )
        if args.num_machines > 1 and args.dist_url == AUTO:
            raise ValueError(
                f"--num-machines is {args.num_machines}: expected --dist-url "
                "tcp://<address of machine 0>:<a free port there>, the same on all machines"
            )
        asked = args.num_gpus * args.num_machines
        place = place_by_launcher(os.environ, asked=asked)
        if place is None:
            job = setup(args)
        else:
            cfg = read_config(args)
            check_machine(cfg, 1)
            join(place, cfg.MODEL.DEVICE)
    if place is not None:
        run(*set_up_together(args))
        leave()
        return
    launch(
        run,
        job,
        device=job.cfg.MODEL.DEVICE,
        num_local=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        url=args.dist_url,
    )


if __name__ == "__main__":
    main()
