"""Checkpoints: keys of older versions, loading that runs no code, saving that breaks nothing.

A file that :class:`SafeDetectionCheckpointer` has saved is sealed: the comment with which a zip
archive, such as torch's files are, may end is the SHA-256 of all bytes before it. Other programs
read the file as any other; torch itself notices hardly any changed bit.
"""

import errno
import functools
import glob
import hashlib
import logging
import math
import os
import pickle
import re
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Literal
from urllib.error import URLError
from urllib.parse import urlparse

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

logger = logging.getLogger(__name__)

# --- keys of older versions -------------------------------------------------------------------

_LEGACY_NAMES = (
    (re.compile(r"(^|\.)mask_point_head\."), r"\1mask_head.point_head."),
    (re.compile(r"(^|\.)mask_coarse_head\."), r"\1mask_head.coarse_head."),
    (re.compile(r"(^|\.)coarse_mask_fc(\d+)\."), r"\1fc\2."),
)


def upgrade_state_dict(
    state_dict: MutableMapping[str, Any], prefix: str = ""
) -> list[tuple[str, str]]:
    """Rename, in place, the keys of older PointRend checkpoints to those of the present modules.

    The first version kept ``mask_point_head`` and ``mask_coarse_head`` beside the mask head, and
    the coarse head called its layers ``coarse_mask_fc1``, ... The order of the keys stays, and so
    does the ``_metadata`` of a module's state.

    Args:
        state_dict: maps names of parameters to their values.
        prefix: only keys that begin with it are looked at, and only behind it.

    Returns:
        The renamed keys as (old, new); empty for a state dict of the present version.

    Raises:
        ValueError: if two keys would get the same name; nothing has been renamed then.
    """
    old_keys: dict[str, str] = {}  # by the new key
    for key in state_dict:
        renamed = key
        if key.startswith(prefix):
            name = key[len(prefix) :]
            for pattern, replacement in _LEGACY_NAMES:
                name = pattern.sub(replacement, name)
            renamed = prefix + name
        if renamed in old_keys:
            raise ValueError(
                f"the checkpoint holds the same parameter twice, as {old_keys[renamed]!r} and as "
                f"{key!r}: remove one of them"
            )
        old_keys[renamed] = key
    renames = [(old, new) for new, old in old_keys.items() if old != new]
    if renames:
        entries = {new: state_dict[old] for new, old in old_keys.items()}
        state_dict.clear()
        state_dict.update(entries)
        old, new = renames[0]
        logger.warning(
            "The checkpoint is of an older PointRend: %d keys renamed, such as %s to %s",
            len(renames),
            old,
            new,
        )
    return renames


# --- pickles of arrays ------------------------------------------------------------------------

_ADMITTED_GLOBALS = frozenset(
    {
        "numpy.ndarray",
        "numpy.dtype",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy.core.numeric._frombuffer",
        "collections.OrderedDict",
        "builtins.bytes",
        "builtins.set",
        "builtins.frozenset",
        "_codecs.encode",
    }
)
_PLAIN_DTYPE = re.compile(r"[|<>=]?([biufcSU]\d+|\?)")  # numbers and strings, no objects


class _RefusedError(Exception):
    """The file asks for something that is neither an array nor a plain container."""


class _Global:
    """Stands for a name in the file; a call of it is written down, not made."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any) -> "_Call":
        return _Call(self.name, args)

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError(f"a change of {self.name}")


class _Call:
    """A call that the file asks for, with the state and the items that its result shall get."""

    __slots__ = ("args", "items", "name", "state")

    def __init__(self, name: str, args: tuple) -> None:
        self.name = name
        self.args = args
        self.state: Any = None
        self.items: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


class _ArrayUnpickler(pickle.Unpickler):
    """Reads a pickle without importing, calling or changing anything that the file names."""

    def find_class(self, module: str, name: str) -> _Global:
        path = f"{module}.{name}"
        path = re.sub(r"^__builtin__\.", "builtins.", path)  # Python 2
        path = re.sub(r"^numpy\._core\.", "numpy.core.", path)  # NumPy 2
        if path not in _ADMITTED_GLOBALS:
            raise _RefusedError(f"{module}.{name}")
        return _Global(path)


def _make(value: Any, made: dict[int, Any]) -> Any:
    """Make the arrays and containers of which the unpickler has only written down the calls.

    Args:
        value: what the unpickler returned, or a part of it.
        made: what has been made of other parts, by their ids: a shared part stays shared.
    """
    if value is None or isinstance(value, bool | int | float | str | bytes | bytearray):
        return value
    if id(value) not in made:
        new: Any
        match value:
            case dict():
                new = {_make(key, made): _make(item, made) for key, item in value.items()}
            case list() | tuple() | set() | frozenset():
                new = type(value)(_make(item, made) for item in value)
            case _Call():
                new = _carry_out(
                    value.name,
                    _make(value.args, made),
                    _make(value.state, made),
                    _make(value.items, made),
                )
            case _Global(name="numpy.ndarray"):
                new = np.ndarray
            case _:
                raise _RefusedError(getattr(value, "name", type(value).__name__))
        made[id(value)] = new
    return made[id(value)]


def _carry_out(name: str, args: tuple, state: Any, items: dict) -> Any:
    """Make the array, type, scalar, container or string that one call in the file stands for."""
    match name, args:
        case "numpy.dtype", (str(code), *_) if _PLAIN_DTYPE.fullmatch(code):
            dtype = np.dtype(code)
            return dtype.newbyteorder(state[1]) if state and state[1] != "|" else dtype
        case "numpy.core.multiarray._reconstruct", (kind, *_) if kind is np.ndarray:
            _version, shape, dtype, is_fortran, raw = state
            return _array(shape, dtype, raw, "F" if is_fortran else "C")
        case "numpy.core.multiarray.scalar", (dtype, raw):
            return _array((), dtype, raw, "C")[()]
        case "numpy.core.numeric._frombuffer", (raw, dtype, shape, order):
            return _array(shape, dtype, raw, order)
        case "collections.OrderedDict", _:
            ordered: OrderedDict = OrderedDict(*args)
            ordered.update(items)
            if state and "_metadata" in state:  # the modules' versions, in a state_dict()
                ordered._metadata = state["_metadata"]  # type: ignore[attr-defined]
            return ordered
        case "builtins.bytes", ():
            return b""
        case "builtins.set" | "builtins.frozenset", (list(members),):
            return set(members) if name == "builtins.set" else frozenset(members)
        case "_codecs.encode", (str(text), "latin1"):
            return text.encode("latin1")
    raise _RefusedError(f"{name}{reprlib.repr(args)}")


def _array(
    shape: tuple[int, ...], dtype: np.dtype, raw: bytes | str, order: Literal["C", "F"]
) -> np.ndarray:
    if isinstance(raw, str):  # Python 2 had one kind of string; it is read as latin1
        raw = raw.encode("latin1")
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(raw)} bytes for an array of shape {shape} and type {dtype}")
    # A copy: a view of the file's bytes could not be written to, nor could torch swap them.
    stored: np.ndarray = np.ndarray(shape, dtype, buffer=raw, order=order)
    return stored.astype(dtype.newbyteorder("="), order="K")


# --- the checkpointer -------------------------------------------------------------------------

# Layers whose shape depends on the class count, with the dimensions that do.
_CLASS_DIMENSIONS = (
    (re.compile(r"(^|\.)point_head\.fc\d+\.weight$"), {1}),
    (re.compile(r"(^|\.)point_head\.predictor\.weight$"), {0, 1}),
    (re.compile(r"(^|\.)(cls_score|bbox_pred|predictor|prediction)\.(weight|bias)$"), {0}),
)


class DamagedError(ValueError):
    """A file is not what was saved, or no checkpoint at all."""


class NotSavedError(OSError):
    """A file could not be saved; the former ones are as they were."""

    def __str__(self) -> str:
        return str(self.strerror)


class SafeDetectionCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, safe from hostile files, misfits and interrupted saves.

    It loads what its parent loads, to the same values, and differs in this:

    - no code from a file runs: a file that asks for more than arrays and containers is refused;
    - keys of older PointRend versions are renamed (:func:`upgrade_state_dict`);
    - shapes that do not fit are an error, not a warning;
    - ``last_checkpoint`` cannot lead out of ``save_dir``;
    - a file gets its name when it is complete and on the disk: an interrupted save leaves the
      former ones as they were;
    - a file carries a checksum, so that every later change of it is noticed;
    - resuming goes back to an earlier checkpoint if the last one is damaged or gone, and only
      together: it is an error if some processes have one and others have none;
    - a file may tell the classes of its model (:func:`read_metadata`).

    Args:
        model: the model to load into and to save.
        save_dir: folder of the checkpoints, if any are to be saved or resumed from.
        save_to_disk: whether :meth:`save` writes; by default only in the main process.
        allow_unsafe: load any pickle, which runs whatever code the file holds.
        strict_shapes: whether every shape in a file must be the model's. Otherwise layers whose
            shape depends on the class count may differ: they keep their initial values, as in
            training with other classes, with a warning. Resuming is always strict.
        metadata: what a saved file shall tell of the model's classes, in fields of Detectron2's
            metadata of data sets; nothing if empty.
        checkpointables: further objects with a state, by the names they are saved under.
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
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.allow_unsafe = allow_unsafe
        self.strict_shapes = strict_shapes
        self.metadata = dict(metadata or {})
        self._source = "the checkpoint"

    # Loading

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint into the model and, unless told otherwise, into the checkpointables.

        Args:
            path: file or URL; nothing is loaded if empty.
            checkpointables: names of those to load; by default all that the file has.

        Returns:
            What else the file holds.

        Raises:
            FileNotFoundError: if there is no such file.
            OSError: if it cannot be downloaded.
            DamagedError: if the file is damaged.
            ValueError: if the file asks for code to run, holds the same parameter under two names,
                or has shapes that the model does not.
        """
        if path and "://" not in path and not os.path.isfile(without_query(path)):
            raise FileNotFoundError(f"there is no checkpoint {path}")
        self._source = path
        try:
            return super().load(path, checkpointables)
        except URLError as error:
            raise OSError(f"checkpoint {path} cannot be downloaded: {error.reason}") from error
        finally:
            self._parsed_url_during_load = None  # the parent leaves it behind after an error

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Continue from the last checkpoint of ``save_dir``; without one load only the weights.

        If the last one cannot be read, the newest that can is taken, with a warning.

        Args:
            path: file or URL of the weights.
            resume: whether to look for a last checkpoint at all.

        Returns:
            What else the file holds.

        Raises:
            FileNotFoundError: if there is no such file.
            DamagedError: if the last checkpoint and all others are damaged or gone.
            ValueError: as :meth:`load`, if ``last_checkpoint`` names no file of ``save_dir``, or if
                only some of several processes have a last checkpoint.
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
        try:
            return self.load(self._newest_readable())
        finally:
            self.strict_shapes = asked

    def _all_have_checkpoint(self) -> bool:
        """Tell whether there is a last checkpoint, sure that all processes say the same.

        Raises:
            ValueError: if they do not.
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

    def _newest_readable(self) -> str:
        """Return the last checkpoint or, if it cannot be read by all processes, one before it."""
        last = reason = ""
        try:
            last = self.get_checkpoint_file()
            self._contents(last)
        except (DamagedError, FileNotFoundError) as error:
            reason = str(error)
        reasons = comm.all_gather(reason)
        if not any(reasons):
            return last
        skipped = [next(filter(None, reasons))]
        for path in comm.all_gather(self._by_age())[0]:
            if path == last:
                continue
            try:
                missing = self.checkpointables.keys() - self._contents(path)
                reason = f"{path} holds no {', '.join(sorted(missing))}" if missing else ""
            except (ValueError, OSError) as error:
                reason = str(error)
            reasons = comm.all_gather(reason)
            if not any(reasons):
                self.logger.warning("Resuming from %s, because %s", path, "; ".join(skipped))
                return path
            skipped.append(next(filter(None, reasons)))
        raise DamagedError("; ".join(skipped))

    def _contents(self, path: str) -> set[str]:
        """Read a checkpoint and name what it holds, without loading anything into anything."""
        if not path.endswith(".pth"):
            return set()
        return set(self._torch_load(self.path_manager.get_local_path(path)))

    def _by_age(self) -> list[str]:
        """List the checkpoints in ``save_dir``, newest first."""
        paths = glob.glob(os.path.join(glob.escape(self.save_dir), "*.pth"))
        files = [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]
        return sorted(files, key=lambda path: (os.path.getmtime(path), path), reverse=True)

    def get_checkpoint_file(self) -> str:
        """Return the path of the last checkpoint in ``save_dir``, empty if there is none.

        Raises:
            FileNotFoundError: if ``last_checkpoint`` names a file that is not there.
            DamagedError: if it is empty.
            ValueError: if it names anything but a file in ``save_dir``.
        """
        if not self.has_checkpoint():
            return ""
        tag = os.path.join(self.save_dir, "last_checkpoint")
        with self.path_manager.open(tag, "rb") as file:
            name = file.read().decode(errors="replace").strip()
        if not name:
            raise DamagedError(
                f"{tag} is empty: write the name of a checkpoint into it or delete it"
            )
        path = os.path.join(self.save_dir, name)
        leads_out = name != os.path.basename(name) or name in (os.curdir, os.pardir)
        if not name.isprintable():  # such as the zeros that a crash leaves
            leads_out = True
        elif os.path.isdir(self.save_dir):  # on the local disk a link could lead out, too
            folder = os.path.dirname(os.path.realpath(path))
            leads_out = leads_out or folder != os.path.realpath(self.save_dir)
        if leads_out:
            raise ValueError(f"{tag} names {name!r}: it must name a file in its own folder")
        if not self.path_manager.isfile(path):
            raise FileNotFoundError(f"{tag} names {name!r}, but there is no such file")
        return path

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            checkpoint = _from_model_zoo(_read(filename, self._unpickle))
        elif filename.endswith(".pyth"):  # of pycls
            state = _without(self._torch_load(filename).get("model_state"), "num_batches_tracked")
            checkpoint = {"model": state, "__author__": "pycls", "matching_heuristics": True}
        else:
            checkpoint = super()._load_file(filename)
        model = checkpoint["model"]
        if not isinstance(model, dict) or not model:
            raise ValueError(f"{filename} holds no parameters of a model")
        for key, value in model.items():
            if not isinstance(key, str) or not isinstance(value, np.ndarray | torch.Tensor):
                raise ValueError(
                    f"{filename}: the model's {key!r} must be an array or tensor, "
                    f"not {type(value).__name__}"
                )
        return checkpoint

    def _torch_load(self, f: str) -> dict[str, Any]:
        return _read(f, functools.partial(_load_sealed, allow_unsafe=self.allow_unsafe))

    def _unpickle(self, file: BinaryIO) -> Any:
        if self.allow_unsafe:
            return pickle.load(file, encoding="latin1")
        return _make(_ArrayUnpickler(file, encoding="latin1").load(), {})

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        upgrade_state_dict(checkpoint["model"])
        if checkpoint.get("matching_heuristics", False):
            checkpoint["model"] = self._match_by_suffix(checkpoint)
            checkpoint["matching_heuristics"] = False
        incompatible = super()._load_model(checkpoint)
        misfits = incompatible.incorrect_shapes
        errors = [m for m in misfits if self.strict_shapes or not _differs_in_classes(*m)]
        if errors:
            raise ValueError(
                f"{self._source}: these shapes do not fit the configured model:{_listed(errors)}"
            )
        if misfits:
            self.logger.warning(
                "%s has another number of classes; these layers start from scratch:%s",
                self._source,
                _listed(misfits),
            )
            for key, _, _ in misfits:
                incompatible.missing_keys.remove(key)
            misfits.clear()
        return incompatible

    def _match_by_suffix(self, checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Name a checkpoint's parameters by the model's that end like them, fitting or not."""
        self._convert_ndarray_to_tensor(checkpoint["model"])
        in_model = self.model.state_dict()
        matched = align_and_update_state_dicts(
            in_model, checkpoint["model"], c2_conversion=checkpoint.get("__author__") == "Caffe2"
        )
        # Where shapes differ, the heuristics leave a parameter under its own name.
        for key in [key for key in in_model if key not in matched]:
            names = [name for name in matched if key.endswith("." + name)]
            name = max(names, key=len, default=key)
            if name in matched and matched[name].shape != in_model[key].shape:
                matched[key] = matched.pop(name)
        return matched

    # Saving

    def save(self, name: str, **kwargs: Any) -> None:
        """Save the model and the checkpointables as ``name``.pth and make it the last checkpoint.

        Args:
            name: name of the file without its suffix.
            kwargs: what else to save.

        Raises:
            NotSavedError: if it cannot be written, such as to a full disk; with what to do.
            ValueError: if ``name`` leads out of ``save_dir``.
        """
        if not os.path.isdir(self.save_dir) or not self.save_to_disk:
            return super().save(name, **kwargs)  # nowhere, or where only the path manager leads
        filename = f"{name}.pth"
        if os.path.basename(filename) != filename:
            raise ValueError(f"the name of a checkpoint must not hold a folder, got {name!r}")
        path = os.path.join(self.save_dir, filename)
        self.logger.info("Saving checkpoint to %s", path)
        states = {key: part.state_dict() for key, part in self.checkpointables.items()}
        if self.metadata:
            states[METADATA] = self.metadata
        for leftover in glob.glob(os.path.join(glob.escape(self.save_dir), _TEMPORARY.format("*"))):
            os.remove(leftover)  # of a process that was killed
        with _written_whole(path) as file:
            _save_and_seal({"model": self.model.state_dict(), **states, **kwargs}, file)
        self.tag_last_checkpoint(filename)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note which file in ``save_dir`` is the last checkpoint.

        Args:
            last_filename_basename: its name.
        """
        if not os.path.isdir(self.save_dir):
            return super().tag_last_checkpoint(last_filename_basename)
        with _written_whole(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())


# Fields of Detectron2's metadata that tell the classes of a model, for "thing" and "stuff".
METADATA_FIELDS = ("{}_classes", "{}_colors", "{}_dataset_id_to_contiguous_id")
METADATA = "metadata"  # their key in a checkpoint


def read_metadata(path: str, *, allow_unsafe: bool = False) -> dict[str, Any]:
    """Read what a checkpoint tells of the classes of its model.

    Args:
        path: file or URL; may be empty, as MODEL.WEIGHTS.
        allow_unsafe: load any pickle, which runs whatever code the file holds.

    Returns:
        Fields of Detectron2's metadata: the names of the classes and, where they are known, their
        colours and their ids in the data set. Empty for files that tell nothing: those of the model
        zoo, of other programs, and of older versions.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedError: if the file is damaged.
        ValueError: if the file asks for code to run, or what it tells is not sound.
    """
    path = without_query(path)
    if not path.endswith(".pth"):
        return {}
    local = PathManager.get_local_path(path)
    if not os.path.isfile(local):
        raise FileNotFoundError(f"there is no checkpoint {path}")
    reader = functools.partial(_load_sealed, allow_unsafe=allow_unsafe)
    told = _read(local, reader).get(METADATA)
    if not isinstance(told, dict):
        return {}
    fields = [field.format(kind) for kind in ("thing", "stuff") for field in METADATA_FIELDS]
    metadata = {field: told[field] for field in fields if field in told}
    for field, value in metadata.items():
        if not _is_sound(field, value):
            raise ValueError(
                f"{path}: its {METADATA} has {field} {value!r:.80}, which is not sound"
            )
    return metadata


def _is_sound(field: str, value: Any) -> bool:
    """Tell whether a field of metadata has names, colours or ids, as its name says."""
    if field.endswith("_contiguous_id"):
        return isinstance(value, dict) and all(
            isinstance(x, int) for pair in value.items() for x in pair
        )
    if not isinstance(value, list):
        return False
    if field.endswith("_classes"):
        return len(value) > 0 and all(isinstance(name, str) for name in value)
    return all(
        isinstance(colour, list) and len(colour) == 3 and all(x in range(256) for x in colour)
        for colour in value
    )


def _load_sealed(file: BinaryIO, *, allow_unsafe: bool) -> Any:
    _check_seal(file)
    return torch.load(file, map_location="cpu", weights_only=not allow_unsafe)


def _read(filename: str, reader: Callable[[BinaryIO], Any]) -> dict[str, Any]:
    with open(filename, "rb") as file:
        try:
            data = reader(file)
        except Exception as error:
            refused = re.search(r"GLOBAL (\S+)", str(error))
            if isinstance(error, _RefusedError) or refused:
                raise ValueError(
                    f"{filename} is refused: it asks for {refused[1] if refused else error}, and "
                    "whatever is neither an array nor a plain container could run code. If you "
                    "trust who made the file, load it with allow_unsafe=True "
                    "(train_net.py --allow-unsafe-checkpoint)"
                ) from error
            reason = str(error).rpartition("WeightsUnpickler error: ")[2].split("\n")[0]
            raise DamagedError(
                f"{filename} cannot be read, it is damaged or no checkpoint "
                f"({type(error).__name__}: {reason})"
            ) from error
    if not isinstance(data, dict):
        raise ValueError(f"{filename} must hold a dict, not {type(data).__name__}")
    return data


def _from_model_zoo(data: dict[str, Any]) -> dict[str, Any]:
    if "model" in data and "__author__" in data:  # Detectron2's
        return data
    blobs = _without(data.get("blobs", data), "_momentum")  # Detectron's; ImageNet's are bare
    return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}


def _without(parameters: Any, ending: str) -> Any:
    if not isinstance(parameters, dict):
        return parameters
    return {key: value for key, value in parameters.items() if not str(key).endswith(ending)}


def _differs_in_classes(key: str, in_file: tuple[int, ...], in_model: tuple[int, ...]) -> bool:
    for pattern, dimensions in _CLASS_DIMENSIONS:
        if pattern.search(key):
            sizes = zip(in_file, in_model, strict=False)
            differing = {i for i, (a, b) in enumerate(sizes) if a != b}
            return len(in_file) == len(in_model) and differing <= dimensions
    return False


def without_query(path: str) -> str:
    """Cut off what Detectron2's checkpointer takes for options, as ``?matching_heuristics``."""
    return urlparse(path)._replace(query="").geturl()


def _listed(misfits: list[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> str:
    return "".join(
        f"\n  {key}: {in_file} in the file, {in_model} in the model"
        for key, in_file, in_model in misfits
    )


# --- files that are whole ---------------------------------------------------------------------

_TEMPORARY = ".{}.tmp"  # name of a file that is not complete
_END_OF_ZIP = b"PK\x05\x06"  # begins the last record of a zip archive, of which the last field is
_LENGTH_AT = 20  # the length of the comment, of two bytes; the comment follows
_SEAL = b"point_rend sha256 "  # begins the comment
_SEAL_LENGTH = len(_SEAL) + 64
_BLOCK = 1 << 20  # bytes read at a time


def _save_and_seal(data: dict[str, Any], file: BinaryIO) -> None:
    """Save data with torch and end the file with its checksum."""
    writer = _ErrorKeeper(file)
    try:
        torch.save(data, writer)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise (writer.error or error) from error
    file.seek(-2, os.SEEK_END)
    file.write(_SEAL_LENGTH.to_bytes(2, "little") + _SEAL)
    digest = _digest(file, file.tell())
    file.write(digest)


class _ErrorKeeper:
    """Keeps the error of a write, for which torch raises one of its own that says nothing."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _digest(file: BinaryIO, length: int) -> bytes:
    """Return the checksum of the first bytes of a file, and leave it behind them."""
    file.seek(0)
    digest = hashlib.sha256()
    while length:
        block = file.read(min(length, _BLOCK))
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode()


def _check_seal(file: BinaryIO) -> None:
    """Check a file against its checksum, if it has one, and go back to its begin.

    Raises:
        ValueError: if it has another one, or only a part of one.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LENGTH_AT - 2 - _SEAL_LENGTH))
    _, end, last_record = file.read().rpartition(_END_OF_ZIP)
    length = last_record[_LENGTH_AT - len(end) :][:2]
    comment = last_record[_LENGTH_AT - len(end) + 2 :]
    sealed_length = _SEAL_LENGTH.to_bytes(2, "little")
    if end and (length == sealed_length or comment.startswith(_SEAL)):
        whole = length == sealed_length and len(comment) == _SEAL_LENGTH
        if not (whole and _SEAL + _digest(file, size - 64) == comment):
            raise ValueError("its checksum is that of other content")
    file.seek(0)


@contextmanager
def _written_whole(path: str) -> Iterator[BinaryIO]:
    """Open a file to write and read that appears under ``path`` when it is complete and safe."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, _TEMPORARY.format(name))
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _write_through(folder)
    except BaseException as error:
        with suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError):
            raise NotSavedError(
                error.errno,
                f"{path} could not be saved ({error.strerror or error}): make room or let the "
                "folder be written to; the checkpoints before it are as they were",
            ) from error
        raise


def _write_through(folder: str) -> None:
    """Make the names in a folder survive a crash of the machine, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of file systems that cannot
            raise
    finally:
        os.close(descriptor)
