"""`pointrend predict --shards`: a run of many images by any number of processes, that continues.

The processes share nothing but the folder of the shards: each claims one block of images after
another (:mod:`point_rend.batch_inference.claims`) and writes its shard. If one ends, however it
ends, the others or the next run take its block. All wait for the last shard, so that a launcher
does not end those that still work.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from point_rend.batch_inference.claims import Claims
from point_rend.batch_inference.decoding import Decoded, Decoder, Unreadable
from point_rend.batch_inference.items import Item
from point_rend.batch_inference.manifest import Manifest, read_manifest
from point_rend.batch_inference.records import Record, RecordFormat, failure
from point_rend.batch_inference.shards import (
    FORMATS,
    RUN_NAME,
    Run,
    failures_path,
    finished_shards,
    shard_path,
    write_shard,
)
from point_rend.config.defaults import pixel_format
from point_rend.config.tasks import model_outputs
from point_rend.engine.launch import RankInfo, join, leave, rank_from_launcher
from point_rend.inference.predictor import Predictor
from point_rend.inference.run import (
    Outcome,
    build_predictor,
    build_tiled,
    check_tiling_options,
    decisive_settings,
    predict_batch,
)
from point_rend.inference.settings import Settings, read_settings
from point_rend.tiling.tiled import TiledPredictor
from point_rend.utils.bands import image_suffixes
from point_rend.utils.errors import FAILED
from point_rend.utils.files import LEFTOVERS, check_output, check_that_inputs_stay
from point_rend.utils.reading import open_regular_file
from point_rend.visualization.predictions import Output

SHARD_FILE = re.compile(rf"shard-\d{{6,}}\.({'|'.join(FORMATS)})|failed-\d{{6,}}\.txt")
POLL_SECONDS = 1.0  # between two looks at the shards of other processes
REFRESH_SECONDS = 2.0  # of the bar
CPU = "cpu, {} threads"
CPU_TEXT = re.compile(r"cpu, ([1-9]\d{0,3}) threads")
# Writes the shards that are missing and returns when all exist. It is given the claims of this
# process, a bar for the images that are finished, the number of this process, and that of all.
Work = Callable[[Claims, tqdm, int, int], None]
RESTARTS = "TORCHELASTIC_RESTART_COUNT"  # environment variable of torchrun
NAMED = 10  # images that are named at the end


class Engine(Protocol):
    """A way to segment the images of a run."""

    def __call__(
        self,
        args: argparse.Namespace,
        settings: Settings,
        run: Run,
        manifest: Manifest,
        stack: ExitStack,
    ) -> Work:
        """Load the model and open what the work needs until the end of `stack`."""


def build_process_work(
    args: argparse.Namespace, settings: Settings, run: Run, manifest: Manifest, stack: ExitStack
) -> Work:
    """Prepare to segment images in this process, and to decode them in others: an `Engine`."""
    decoder = stack.enter_context(Decoder(args.workers, pixel_format(settings.cfg)))
    predictor = build_predictor(args, settings, threads=torch.get_num_threads())
    record_format = RecordFormat(settings.metadata)
    return _Process(args, run, manifest, decoder, predictor, record_format).work


def run_shards(args: argparse.Namespace, engine: Engine = build_process_work) -> Outcome:
    """Segment the images of a manifest and write the shards that are missing.

    Args:
        args: The parsed command line of `pointrend predict`.
        engine: Segments the images.

    Returns:
        The end of the run of all processes.

    Raises:
        FileNotFoundError, OSError, ValueError: After an error that stops everything.
    """
    check_options(args)
    info = rank_from_launcher(os.environ)
    if info is not None:
        join(info, "cpu")
    settings = build_rank_settings(read_settings(args), info)
    check_tiling_options(args, settings)
    manifest = read_manifest(
        args.input[0],
        column=args.uri_column,
        root=args.image_root,
        output=args.output,
        suffixes=image_suffixes(pixel_format(settings.cfg)),
    )
    manifest.check_that_some_exist()
    is_first = info is None or info.rank == 0
    for note in manifest.notes if is_first else ():
        print(note, file=sys.stderr)
    # A process that torchrun has started anew continues.
    overwrite = args.overwrite and int(os.environ.get(RESTARTS) or 0) == 0
    adopt_threads(None if overwrite else args.output, is_launched=info is not None)
    run = describe_run(args, settings, manifest)
    inputs = [args.input[0], settings.cfg.MODEL.WEIGHTS, args.config_file or "", args.classes or ""]
    check_folder(args.output, run, overwrite=overwrite, inputs=inputs)
    finished = set() if overwrite else finished_shards(args.output, run)
    if finished and is_first:
        left = run.shards - len(finished)
        rest = f"{left} are left" if left else "nothing is left to do"
        print(f"{len(finished)} of {run.shards} shards are finished: {rest}", file=sys.stderr)
    with ExitStack() as stack:
        if len(finished) < run.shards:
            work = engine(args, settings, run, manifest, stack)  # before anything is written
            claims = stack.enter_context(closing(Claims(args.output)))
            _prepare_together(args.output, run, claims, info, overwrite=overwrite)
            bar = stack.enter_context(tqdm(total=run.images, unit="image", disable=not is_first))
            work(claims, bar, 0 if info is None else info.rank, info.world_size if info else 1)
        elif info is not None:
            leave()
    failed = failed_images(args.output, run)
    if not is_first:
        return Outcome([], FAILED if any(True for _ in failed) else 0)
    return Outcome(_summary(failed, run, args.output), 0)


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that do not fit --shards.

    Raises:
        ValueError: If there are any.
    """
    if args.input is None or len(args.input) != 1:
        raise ValueError(
            "--shards: expected --input with one folder, pattern in quotes, or file that lists "
            "images"
        )
    if args.output is None:
        raise ValueError("--shards: expected --output with the folder of the shards")
    if args.formats is not None or args.frames:
        raise ValueError("--shards: expected neither --formats nor --frames: shards hold records")
    for flag, number, least in (
        ("--batch-size", args.batch_size, 1),
        ("--shard-size", args.shard_size, 1),
        ("--workers", args.workers, 0),
    ):
        if number < least:
            raise ValueError(f"{flag}: expected {least} or more, got {number}")


def build_rank_settings(settings: Settings, info: RankInfo | None) -> Settings:
    """Give each process of a machine a GPU of its own, unless MODEL.DEVICE names one."""
    if info is None or settings.cfg.MODEL.DEVICE != "cuda":
        return settings
    cfg = settings.cfg.clone()
    cfg.defrost()
    # A launcher may make a single GPU visible to each process.
    cfg.MODEL.DEVICE = f"cuda:{info.local_rank % torch.cuda.device_count()}"
    cfg.freeze()
    return Settings(cfg, settings.metadata)


def describe_run(args: argparse.Namespace, settings: Settings, manifest: Manifest) -> Run:
    """Describe everything that decides the shards of a command line."""
    outputs = model_outputs(settings.cfg)
    device = settings.cfg.MODEL.DEVICE.partition(":")[0]
    if device == "cpu":
        device = CPU.format(torch.get_num_threads())
    decisive = decisive_settings(args, settings)
    decisive |= {"device": device, "batch size": str(args.batch_size), "images": manifest.digest}
    return Run(
        images=len(manifest),
        shard_size=args.shard_size,
        shard_format=args.shards,
        outputs=sorted(outputs),
        categories=RecordFormat(settings.metadata).categories(outputs),
        settings=decisive,
    )


def adopt_threads(folder: Path | None, *, is_launched: bool) -> None:
    """Compute with as many threads as all processes of a run, on which the last bits depend.

    Args:
        folder: Folder of the shards, whose first run has chosen the number; None for a new run.
        is_launched: Whether the processes of a launcher are connected; the first one chooses.
    """
    threads = [torch.get_num_threads()]
    if is_launched:
        dist.broadcast_object_list(threads)
    if folder is not None and Path(folder, RUN_NAME).is_file():
        with suppress(ValueError):  # a damaged file, which `check_folder` refuses
            chosen = CPU_TEXT.fullmatch(str(Run.read(folder).settings.get("device")))
            threads = [int(chosen[1])] if chosen else threads
    torch.set_num_threads(threads[0])


def check_folder(
    folder: Path, run: Run, *, overwrite: bool, inputs: Iterable[str | Path] = ()
) -> None:
    """Make sure that shards of a run may be written into a folder; write nothing.

    Args:
        folder: The folder, which need not exist.
        run: The run.
        overwrite: Whether shards of other runs are replaced.
        inputs: Files that may not be overwritten.

    Raises:
        ValueError: If the folder holds shards of another run and `overwrite` is not set, or if it
            cannot be written.
    """
    check_output(folder, folder=True)
    check_that_inputs_stay(inputs, [Path(folder, RUN_NAME), *_shard_files(folder)])
    for path in filter(Path.is_dir, (Path(folder, RUN_NAME), *_shard_files(folder))):
        raise ValueError(f"--output: {path} is a folder, expected a file: choose another folder")
    if overwrite:
        return
    advice = "choose another folder, or pass --overwrite to start again"
    if not os.path.lexists(Path(folder, RUN_NAME)):
        for path in _shard_files(folder):
            raise ValueError(f"--output: {path} exists, and {folder} has no {RUN_NAME}: {advice}")
        return
    try:
        earlier = Run.read(folder)
    except ValueError as error:
        raise ValueError(f"--output: {error}: {advice}") from error
    different = [name for name in run._fields[:-1] if getattr(run, name) != getattr(earlier, name)]
    names = sorted({*run.settings, *earlier.settings})
    different += [x for x in names if run.settings.get(x) != earlier.settings.get(x)]
    if different:
        raise ValueError(
            f"--output {folder} holds the shards of another run (different: "
            f"{', '.join(dict.fromkeys(different))}): {advice}"
        )


def prepare_folder(folder: Path, run: Run, claims: Claims, *, overwrite: bool) -> None:
    """Make a folder ready for the shards of a run.

    Args:
        folder: The folder.
        run: The run.
        claims: The claims of this process in it.
        overwrite: Whether shards that are there are removed.

    Raises:
        NotSavedError: If it cannot be written.
        ValueError: As :func:`check_folder`, or if another process works on shards that would be
            removed.
    """
    with claims.preparing() as is_alone:
        check_folder(folder, run, overwrite=overwrite)
        if is_alone:
            for leftover in folder.glob(LEFTOVERS):
                leftover.unlink(missing_ok=True)
        if overwrite:
            if not is_alone:
                raise ValueError(
                    f"--output: another process writes shards into {folder}: wait for its end"
                )
            for path in _shard_files(folder):
                path.unlink()
        if overwrite or not Path(folder, RUN_NAME).exists():
            run.write(folder)


def failed_images(folder: str | Path, run: Run) -> Iterator[str]:
    """Yield name and reason of each image of a run without results, in order."""
    for number in range(run.shards):
        path = failures_path(folder, number)
        if path.exists():
            with open_regular_file(path, what="list of failures") as file:
                for line in file:
                    yield line.decode("utf-8", errors="replace").rstrip("\n")


def records_of(
    items: Sequence[Item],
    images: Iterable[Decoded],
    predictor: Predictor,
    record_format: RecordFormat,
    *,
    tiled: TiledPredictor | None = None,
    batch_size: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> list[Record]:
    """Segment the images of one block.

    Args:
        items: The images.
        images: Their pixels, in order.
        predictor: The model.
        record_format: Of the results.
        tiled: Segments images in tiles, if given.
        batch_size: Largest number of images that the model sees at a time. The first batch begins
            with the first image, so that whole batches of a block have the same records alone.
        advance: Is called after each batch.

    Returns:
        A record for each image, in order.
    """
    records: list[Record] = [{} for _ in items]
    batch: list[tuple[int, np.ndarray]] = []

    def segment() -> None:
        outputs: Sequence[Output] = []
        if batch:
            outputs = predict_batch(predictor, tiled, [pixels for _, pixels in batch])
        for (position, _), output in zip(batch, outputs, strict=True):
            records[position] = record_format.of_output(items[position], output)
        batch.clear()
        advance()

    for position, (item, decoded) in enumerate(zip(items, images, strict=True)):
        if isinstance(decoded, Unreadable):
            records[position] = failure(item, decoded.reason)
        else:
            batch.append((position, decoded))
        if (position + 1) % batch_size == 0:  # whether or not all could be read
            segment()
    segment()
    return records


def _prepare_together(
    folder: Path, run: Run, claims: Claims, info: RankInfo | None, *, overwrite: bool
) -> None:
    """Prepare the folder in the first process, then let all begin."""
    fault = [""]
    if info is None or info.rank == 0:
        try:
            prepare_folder(folder, run, claims, overwrite=overwrite)
        except (OSError, ValueError) as error:
            if info is None:
                raise
            fault = [str(error)]
    if info is None:
        return
    try:
        dist.broadcast_object_list(fault)
    except RuntimeError as error:
        raise ValueError("another process of the run has ended at its start") from error
    if fault[0]:
        raise ValueError(fault[0])
    if info.rank:
        prepare_folder(folder, run, claims, overwrite=False)
    leave()  # from here on, each works for itself


def _shard_files(folder: str | Path) -> list[Path]:
    if not os.path.isdir(folder):
        return []
    return sorted(Path(folder, x) for x in os.listdir(folder) if SHARD_FILE.fullmatch(x))


def _summary(failed: Iterable[str], run: Run, folder: Path) -> list[str]:
    """Return the lines about images without results: their number, and the first ones."""
    first = list(islice(failed, NAMED))
    number = len(first) + sum(1 for _ in failed)
    if not number:
        return []
    rest = f", of which {NAMED} are named above" if number > NAMED else ""
    listed = failures_path(folder, 0).with_name("failed-*.txt")
    return [*first, f"{number} of {run.images} images have no results{rest}: see {listed}"]


class _Process:
    """One process of a run.

    Args:
        args: The parsed command line.
        run: The run.
        manifest: Its images.
        decoder: Reads them.
        predictor: The model.
        record_format: Of the results.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        run: Run,
        manifest: Manifest,
        decoder: Decoder,
        predictor: Predictor,
        record_format: RecordFormat,
    ) -> None:
        self.args = args
        self.folder: Path = args.output
        self.run = run
        self.manifest = manifest
        self.decoder = decoder
        self.predictor = predictor
        self.tiled = build_tiled(args, predictor)
        self.record_format = record_format
        self._finished = 0  # images in shards, of all processes
        self._own = 0  # images of the present block
        self._seen = 0.0

    def work(self, claims: Claims, bar: tqdm, rank: int, world_size: int) -> None:
        """Write shards until all exist, of this process or of others: a `Work`."""
        self.bar = bar
        numbers: list[int] = list(range(self.run.shards))
        while numbers:
            if not claims.are_exclusive:  # each begins with a share of its own
                numbers.sort(key=lambda number: (number % world_size != rank, number))
            has_worked = False
            for number in numbers:
                self._show()
                if self._is_finished(number) or not claims.take(number):
                    continue
                try:
                    if not self._is_finished(number):  # another process may have, just now
                        self._write(number)
                        has_worked = True
                finally:
                    claims.release(number)
            finished = finished_shards(self.folder, self.run)
            numbers = [number for number in numbers if number not in finished]
            if numbers and not has_worked:
                time.sleep(POLL_SECONDS)
        self._show(at_once=True)

    def _is_finished(self, number: int) -> bool:
        return shard_path(self.folder, number, self.run.shard_format).is_file()

    def _write(self, number: int) -> None:
        block = self.run.block(number)
        items = self.manifest[block.start : block.stop]
        records = records_of(
            items,
            self.decoder.images(items),
            self.predictor,
            self.record_format,
            tiled=self.tiled,
            batch_size=self.args.batch_size,
            advance=self._advance,
        )
        write_shard(self.folder, number, self.run, records)
        self._own = 0

    def _advance(self) -> None:
        self._own += self.args.batch_size
        self._show()

    def _show(self, *, at_once: bool = False) -> None:
        """Count the images of all finished shards, and those of the block of this process."""
        now = time.monotonic()
        if self.bar.disable or (now - self._seen < REFRESH_SECONDS and not at_once):
            return
        self._seen = now
        finished = finished_shards(self.folder, self.run)
        images = sum(len(self.run.block(number)) for number in finished)
        self.bar.n = max(self.bar.n, min(images + self._own, self.run.images))
        self.bar.refresh()
