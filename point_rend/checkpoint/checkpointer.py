"""Detectron2's checkpointer, made safe: hostile files, misfits, damage, interrupted saves."""

import contextlib
import logging
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils import comm
from torch import nn

from point_rend.checkpoint import timm_weights, zoo  # resolve timm:// and zoo://
from point_rend.checkpoint.backbone_keys import add_backbone_prefix
from point_rend.checkpoint.class_metadata import METADATA, metadata_in
from point_rend.checkpoint.completeness import check_complete, check_start
from point_rend.checkpoint.finite import check_finite
from point_rend.checkpoint.formats import (
    check_numbers,
    check_parameters,
    read_pickle,
    read_pycls_file,
    read_safetensors,
    read_torch_file,
)
from point_rend.checkpoint.legacy_keys import upgrade_state_dict
from point_rend.checkpoint.safetensors_file import SUFFIX
from point_rend.checkpoint.sealed_file import DamagedError, save_sealed, without_query
from point_rend.checkpoint.shapes import (
    advice_on_misfits,
    differs_in_classes,
    list_misfits,
    rename_misfits,
)
from point_rend.checkpoint.stem import fit_stem
from point_rend.utils import progress
from point_rend.utils.downloads import DownloadError, has_handler, is_url, safe_paths
from point_rend.utils.files import LEFTOVERS, atomic_file, write_text
from point_rend.utils.reading import read_bytes

logger = logging.getLogger(__name__)

TAG = "last_checkpoint"  # name of the file that holds the name of the last checkpoint
MAX_TAG_BYTES = 4096
FINAL = "model_final"  # name of the checkpoint of the last iteration
AVERAGED = f"{FINAL}_ema"  # of the averaged weights of the last iteration
BEST = "model_best"  # of the weights of the best evaluation
TRAINING_NAMES = re.compile(r"model_(\d+|final)\.pth")  # by which trainings save checkpoints
WEIGHTS_NAMES = re.compile(rf"({AVERAGED}|{BEST})\.pth")  # and weights, which cannot be resumed


def saved_by_training(folder: str | Path) -> list[str]:
    """List the files in a folder that have the names of a training's checkpoints and weights.

    Raises:
        OSError: If the folder cannot be read.
    """
    names = os.listdir(folder)
    return sorted(x for x in names if TRAINING_NAMES.fullmatch(x) or WEIGHTS_NAMES.fullmatch(x))


class ClassCheck(Protocol):
    """Accepts or refuses a checkpoint for its classes."""

    def __call__(self, source: str, stored: Mapping[str, Any], *, resuming: bool) -> None:
        """Check the classes.

        Args:
            source: File or URL of the checkpoint.
            stored: Its class metadata, as of :func:`read_metadata`.
            resuming: Whether it is loaded to continue what it is the last checkpoint of.

        Raises:
            ValueError: If the checkpoint must not be loaded.
        """
        ...


def holds_checkpoint(folder: str | Path) -> bool:
    """Return whether a folder holds a checkpoint, readable or not.

    Either ``last_checkpoint`` exists, or a file has the name of a training's checkpoint.
    """
    tag = os.path.join(folder, TAG)
    return os.path.isdir(folder) and (
        os.path.lexists(tag) or any(map(TRAINING_NAMES.fullmatch, os.listdir(folder)))
    )


class SafeDetectionCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, safe from hostile files, misfits and interrupted saves.

    It loads what its parent loads, to the same values, and differs in this:

    - no code in a file is executed: a file that needs more than arrays and containers is refused;
    - keys of older PointRend versions are renamed (:func:`upgrade_state_dict`);
    - shapes that do not fit are an error, not a warning; so are a file of which nothing fits the
      model, and values that are not finite;
    - ``last_checkpoint`` cannot lead out of ``save_dir``;
    - saving is atomic: an interrupted save leaves the former files as they were;
    - a file carries a checksum, so that every later change is detected;
    - resuming takes the checkpoint of the most iterations if the last one is damaged, gone or not
      named, and only together: it is an error if some processes have one and others have none;
    - a file may store the classes and the config of its model (:func:`read_stored_metadata`);
    - `.safetensors` files are read, too;
    - `zoo://` names the published models, `timm://` the pretrained backbones of timm;
    - a file of a backbone alone needs no prefix in its names (:func:`add_backbone_prefix`).

    Args:
        model: The model to load into and to save.
        save_dir: Folder of the checkpoints to save or resume from, if any.
        save_to_disk: Whether :meth:`save` writes; by default only in the main process.
        allow_unsafe: Whether to load any pickle, which executes the code in the file.
        strict_shapes: Whether every shape in a file must be the model's. Otherwise layers whose
            shape depends on the class count may differ: they keep their initial values, as in
            training with other classes, with a warning; and the first convolution is fitted to
            another number of channels (:func:`fit_stem`). Resuming is always strict.
        metadata: Fields to save with the model: those of Detectron2's metadata that describe its
            classes, and its config as YAML.
        check_classes: Called with the classes of a file before its parameters are loaded.
        checkpointables: Further objects with a state, by the names under which they are saved.

    Attributes:
        source: The file that was loaded last.
        keys_in_file: The keys of its model, in their order there, which is that of its parameters.
        config_in_file: The config of its training as YAML; None if it has none.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        allow_unsafe: bool = False,
        strict_shapes: bool = True,
        metadata: Mapping[str, Any] | None = None,
        check_classes: ClassCheck | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = safe_paths()
        self.allow_unsafe = allow_unsafe
        self.strict_shapes = strict_shapes
        self.metadata = dict(metadata or {})
        self.check_classes = check_classes
        self.source = "the checkpoint"
        self._resuming = False
        self.keys_in_file: list[str] = []
        self.config_in_file: str | None = None

    # Loading

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint into the model and the checkpointables.

        Args:
            path: File, URL, `zoo://` or `timm://` name; nothing is loaded if empty.
            checkpointables: Names of those to load; by default all that the file has.

        Returns:
            The rest of the file's contents.

        Raises:
            FileNotFoundError: If there is no such file.
            OSError: If it cannot be downloaded.
            DamagedError: If the file is damaged.
            ValueError: If the file would execute code, holds the same parameter under two names, or
                has other shapes than the model.
        """
        if path.startswith(zoo.PREFIX):
            zoo.published_url(without_query(path))
        if path.startswith(timm_weights.PREFIX):
            timm_weights.pretrained_url(without_query(path))
        if is_url(path) and not has_handler(self.path_manager, path):
            raise ValueError(f"checkpoint {path}: expected a file or a URL of http or https")
        if path and not is_url(path) and not os.path.isfile(without_query(path)):
            raise FileNotFoundError(f"there is no checkpoint {path}")
        self.source = path
        try:
            return super().load(path, checkpointables)
        except DownloadError as error:
            raise OSError(str(error) if error.name else f"checkpoint {error}") from error
        finally:
            self._parsed_url_during_load = None  # the parent leaves it behind after an error

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Continue from the last checkpoint of ``save_dir``; without one load only the weights.

        If the last one cannot be read, or ``last_checkpoint`` does not name one, the readable one
        of the most iterations is loaded, with a warning.

        Args:
            path: File or URL of the weights.
            resume: Whether to look for a last checkpoint at all.

        Returns:
            The rest of the file's contents.

        Raises:
            FileNotFoundError: If there is no such file.
            DamagedError: If there are checkpoints, but none that can be resumed.
            ValueError: As :meth:`load`; or if ``last_checkpoint`` names a file elsewhere, or only
                some of several processes have a last checkpoint.
        """
        if not resume or not self._all_have_checkpoint():
            if resume:
                self.logger.warning(
                    "Nothing to resume in '%s': starting afresh from %s",
                    self.save_dir,
                    path or "random weights",
                )
            return self.load(path, checkpointables=[])
        asked, self.strict_shapes = self.strict_shapes, True
        self._resuming = True
        try:
            return self.load(self._newest_readable())
        finally:
            self.strict_shapes, self._resuming = asked, False

    def _all_have_checkpoint(self) -> bool:
        """Return whether there is a last checkpoint, the same in all processes.

        Raises:
            ValueError: If only some of them have one.
        """
        lacking: dict[str, list[str]] = {}  # ranks by their folders
        answers = comm.all_gather((self.has_checkpoint(), self.save_dir))
        for rank, (has_checkpoint, folder) in enumerate(answers):
            if not has_checkpoint:
                lacking.setdefault(folder, []).append(str(rank))
        num_lacking = sum(map(len, lacking.values()))
        if 0 < num_lacking < len(answers):
            where = " and ".join(f"rank {', '.join(x)} in {y!r}" for y, x in lacking.items())
            raise ValueError(
                f"only {len(answers) - num_lacking} of {len(answers)} processes see a checkpoint "
                f"to resume, there is none for {where}: OUTPUT_DIR has to be one folder that all "
                "machines share"
            )
        return not lacking

    def has_checkpoint(self) -> bool:
        """Return whether ``save_dir`` holds a checkpoint, readable or not."""
        return holds_checkpoint(self.save_dir) or super().has_checkpoint()

    def _newest_readable(self) -> str:
        """Return the last checkpoint, or another one if not all processes can read it."""
        last = reason = ""
        try:
            last = self.get_checkpoint_file()
            self._check_state(last)
        except (DamagedError, OSError) as error:
            reason = str(error)
        reasons = comm.all_gather(reason)
        if not any(reasons):
            return last
        skipped = [next(filter(None, reasons))]
        candidates = self._newest_first() if comm.is_main_process() else []
        for path in comm.all_gather(candidates)[0]:
            if path == last:
                continue
            reason = ""
            try:
                self._check_state(path)
            except (ValueError, OSError) as error:
                reason = str(error)
            reasons = comm.all_gather(reason)
            if not any(reasons):
                self.logger.warning("Resuming from %s, because %s", path, "; ".join(skipped))
                return path
            skipped.append(next(filter(None, reasons)))
        raise DamagedError(f"no checkpoint can be resumed: {'; '.join(skipped)}")

    def _check_state(self, path: str) -> None:
        """Read a checkpoint, without loading it, and refuse it if it cannot be resumed.

        Raises:
            DamagedError: If it is damaged or lacks the state of a checkpointable.
            ValueError: If it would execute code.
        """
        if not path.endswith(".pth"):
            return
        contents = self._torch_load(self.path_manager.get_local_path(path))
        if missing := self.checkpointables.keys() - contents:
            raise DamagedError(f"{path} holds no {', '.join(sorted(missing))}")

    def _newest_first(self) -> list[str]:
        """List the checkpoints in ``save_dir``, that of the most iterations first."""
        found = Path(self.save_dir).glob("*.pth")
        paths = [str(path) for path in found if not WEIGHTS_NAMES.fullmatch(path.name)]
        files = [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]
        return sorted(files, key=lambda path: (self._iteration(path), path), reverse=True)

    def _iteration(self, path: str) -> int:
        """Return the iteration in the name of a checkpoint, or else the one that it stores."""
        named = TRAINING_NAMES.fullmatch(os.path.basename(path))
        if named and named[1].isdecimal():
            return int(named[1])
        try:
            stored = self._torch_load(path).get("iteration")
        except (ValueError, OSError):
            stored = None
        return stored if isinstance(stored, int) else -1

    def get_checkpoint_file(self) -> str:
        """Return the path of the last checkpoint in ``save_dir``, empty if there is none.

        Raises:
            FileNotFoundError: If ``last_checkpoint``, or the file that it names, does not exist.
            DamagedError: If it is empty or holds no name.
            ValueError: If it names a file outside ``save_dir``.
        """
        if not self.has_checkpoint():
            return ""
        tag = os.path.join(self.save_dir, TAG)
        name = self._read_tag(tag).decode(errors="replace").strip()
        advice = "write the name of a checkpoint into it or delete it"
        if not name:
            raise DamagedError(f"{tag} is empty: {advice}")
        if not name.isprintable():  # such as the zeros that a crash leaves
            raise DamagedError(f"{tag} names {name!r:.100}: it must name a file in its own folder")
        path = os.path.join(self.save_dir, name)
        leads_out = name != os.path.basename(name) or name in (os.curdir, os.pardir)
        if os.path.isdir(self.save_dir):  # on the local disk a link could lead out, too
            folder = os.path.dirname(os.path.realpath(path))
            leads_out = leads_out or folder != os.path.realpath(self.save_dir)
        if leads_out:
            raise ValueError(
                f"{tag} names {name!r:.200}: it must name a file in its own folder; {advice}"
            )
        if not self.path_manager.isfile(path):
            raise FileNotFoundError(f"{tag} names {name!r:.200}, but there is no such file")
        return path

    def _read_tag(self, tag: str) -> bytes:
        """Read ``last_checkpoint``.

        Raises:
            FileNotFoundError: If there is none.
            DamagedError: If it is anything but a small file.
        """
        if not os.path.isdir(self.save_dir):
            with self.path_manager.open(tag, "rb") as file:
                return file.read(MAX_TAG_BYTES)
        if not os.path.lexists(tag):
            raise FileNotFoundError(f"{tag} is missing")
        try:
            return read_bytes(tag, what=TAG, max_bytes=MAX_TAG_BYTES)
        except ValueError as error:
            raise DamagedError(str(error)) from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            checkpoint = read_pickle(filename, allow_unsafe=self.allow_unsafe)
        elif filename.endswith(".pyth"):
            checkpoint = read_pycls_file(filename, allow_unsafe=self.allow_unsafe)
        else:
            checkpoint = super()._load_file(filename)
        check_parameters(filename, checkpoint["model"])
        return checkpoint

    def _torch_load(self, f: str) -> dict[str, Any]:
        if f.endswith(SUFFIX):
            return read_safetensors(f)
        return read_torch_file(f, allow_unsafe=self.allow_unsafe)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        stored = metadata_in(checkpoint, self.source)
        self.config_in_file = stored.config
        if self.check_classes is not None:
            self.check_classes(self.source, stored.classes, resuming=self._resuming)
        upgrade_state_dict(checkpoint["model"])
        check_numbers(self.source, checkpoint["model"], self.model.state_dict())
        if checkpoint.get("matching_heuristics", False):
            checkpoint["model"] = self._match_by_suffix(checkpoint)
            checkpoint["matching_heuristics"] = False
        elif prefix := add_backbone_prefix(checkpoint["model"], self.model.state_dict()):
            self.logger.info("%s holds a backbone, here %s*", self.source, prefix)
        if not self.strict_shapes:
            self._fit_stem(checkpoint["model"])
        model_state, in_model = checkpoint["model"], self.model.state_dict().keys()
        check_start(self.source, in_model, _without_wrapper(model_state))
        incompatible = super()._load_model(checkpoint)
        self.keys_in_file = list(model_state)  # without the prefix of a wrapped model
        misfits = incompatible.incorrect_shapes
        errors = [m for m in misfits if self.strict_shapes or not differs_in_classes(m)]
        if errors:
            raise ValueError(
                f"{self.source}: these shapes do not fit the configured model"
                f"{advice_on_misfits(errors)}:{list_misfits(errors)}"
            )
        if misfits:
            self.logger.warning(
                "%s has another number of classes; these layers start from scratch:%s",
                self.source,
                list_misfits(misfits),
            )
            for key, _, _ in misfits:
                incompatible.missing_keys.remove(key)
            misfits.clear()
        floating = {
            key for key, value in self.model.named_parameters() if value.is_floating_point()
        }
        try:
            used = {key: value for key, value in model_state.items() if key in in_model}
            check_finite(used, floating=floating)
        except ValueError as error:
            raise ValueError(f"{self.source}: {error}") from error
        if self._resuming:
            check_complete(self.source, self.model, incompatible)
        return incompatible

    def _fit_stem(self, state: dict[str, Any]) -> None:
        """Fit the first convolution of a file to the channels of the model, with a message."""
        for key, given, wanted in fit_stem(state, self.model.state_dict()):
            how = "summed" if wanted == 1 else f"repeated, times {given}/{wanted}"
            self.logger.info(
                "%s: %s has weights for %d channels, the model for %d: they are %s",
                self.source,
                key,
                given,
                wanted,
                how,
            )

    def _match_by_suffix(self, checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Rename a checkpoint's parameters to those of the model with the same endings."""
        self._convert_ndarray_to_tensor(checkpoint["model"])
        in_model = self.model.state_dict()
        matched = align_and_update_state_dicts(
            in_model, checkpoint["model"], c2_conversion=checkpoint.get("__author__") == "Caffe2"
        )
        rename_misfits(matched, in_model)
        return matched

    # Saving

    @progress.during(progress.SAVING)
    def save(self, name: str, **kwargs: Any) -> None:
        """Save the model and the checkpointables as ``name``.pth and make it the last checkpoint.

        Args:
            name: Name of the file without its suffix.
            kwargs: Further contents.

        Raises:
            NotSavedError: If it cannot be written, such as to a full disk; with advice.
            ValueError: If ``name`` leads out of ``save_dir``.
        """
        if not self.save_dir or not self.save_to_disk or "://" in self.save_dir:
            return super().save(name, **kwargs)  # nothing to save, or other storage
        states = {key: part.state_dict() for key, part in self.checkpointables.items()}
        self.tag_last_checkpoint(self._write(name, states, kwargs))

    @progress.during(progress.SAVING)
    def save_weights(self, name: str, **kwargs: Any) -> None:
        """Save the model as ``name``.pth, without the state of a training.

        The file starts a training, or is evaluated or used, but is never the last checkpoint.

        Args:
            name: Name of the file without its suffix.
            kwargs: Further contents.

        Raises:
            NotSavedError: If it cannot be written, such as to a full disk; with advice.
            ValueError: If ``name`` leads out of ``save_dir``.
        """
        if self.save_dir and self.save_to_disk:
            self._write(name, {}, kwargs)

    def _write(self, name: str, states: Mapping[str, Any], others: Mapping[str, Any]) -> str:
        """Write the model, states, the metadata and other contents; return the file's name."""
        filename = f"{name}.pth"
        if os.path.basename(filename) != filename:
            raise ValueError(f"the name of a checkpoint must not hold a folder, got {name!r}")
        path = os.path.join(self.save_dir, filename)
        self.logger.info("Saving checkpoint to %s", path)
        metadata = {METADATA: self.metadata} if self.metadata else {}
        for leftover in Path(self.save_dir).glob(LEFTOVERS):
            with contextlib.suppress(OSError):  # such as of a folder
                leftover.unlink()
        with atomic_file(path) as file:
            save_sealed({"model": self.model.state_dict(), **states, **metadata, **others}, file)
        return filename

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note which file in ``save_dir`` is the last checkpoint.

        Args:
            last_filename_basename: Its name.
        """
        if "://" in self.save_dir:
            return super().tag_last_checkpoint(last_filename_basename)
        write_text(os.path.join(self.save_dir, TAG), last_filename_basename)


def _without_wrapper(keys: Collection[str]) -> list[str]:
    """Return keys without the prefix of a model that was wrapped for several processes."""
    wrapper = "module."
    if not all(key.startswith(wrapper) for key in keys):
        return list(keys)
    return [key.removeprefix(wrapper) for key in keys]
