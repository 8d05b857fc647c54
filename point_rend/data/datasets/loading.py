"""Loading of registered data sets: without stray files, and with errors that name set and file.

Detectron2's loaders list folders, and assert what they expect.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import cityscapes, cityscapes_panoptic, coco
from detectron2.utils.file_io import PathManager

from point_rend.utils.pictures import is_stray_file

Loader = Callable[[], list[dict[str, Any]]]
LISTING = (cityscapes, cityscapes_panoptic, coco)  # modules of Detectron2 that list folders


def guard_loaders() -> None:
    """Make all registered data sets load as :func:`load_records` does; again has no effect."""
    for name in DatasetCatalog.list():
        if not isinstance(DatasetCatalog[name], _Guarded):
            DatasetCatalog[name] = _Guarded(name, DatasetCatalog[name])


def load_records(name: str) -> list[dict[str, Any]]:
    """Load a registered data set.

    Returns:
        Its records in Detectron2's format.

    Raises:
        FileNotFoundError: If a file or folder is missing.
        ValueError: If the set cannot be loaded.
    """
    loader = DatasetCatalog[name]
    return (loader if isinstance(loader, _Guarded) else _Guarded(name, loader))()


class _Guarded:
    """A loader whose errors are those of :func:`load_records`."""

    def __init__(self, name: str, load: Loader) -> None:
        self.name = name
        self.load = load

    def __call__(self) -> list[dict[str, Any]]:
        try:
            with _without_stray_files():
                return self.load()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.name} cannot be loaded: {error}") from error
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.name} cannot be loaded: {error}") from error
        except (AssertionError, LookupError) as error:
            if isinstance(error, LookupError) and not _is_of_detectron2(error):
                raise
            raise ValueError(
                f"{self.name} cannot be loaded: {_reason(self.name, error)}"
            ) from error


def _is_of_detectron2(error: Exception) -> bool:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return "detectron2" in Path(last.filename).parts


def _reason(name: str, error: Exception) -> str:
    """Explain an assertion of Detectron2, or a key that it does not find."""
    metadata = MetadataCatalog.get(name)
    text = str(error.args[0]) if error.args else ""
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    if "sem_seg_file_to_entry" in line:
        photograph = f"the photograph {text}" if text else "any photograph"
        return (
            f"there is no label map for {photograph}; the loader pairs NAME.jpg in "
            f"{metadata.get('image_root')} with NAME.png in {metadata.get('sem_seg_root')}"
        )
    if "endswith" in line:
        folder = metadata.get("image_dir") or "the folder of the images"
        return f"{text} in {folder} is not named like an image of Cityscapes; remove it"
    if "isfile" in line and " " not in text:
        return f"there is no file {text}"
    if isinstance(error, LookupError):
        return f"nothing belongs to {text!r} (in {line})"
    return text or f"Detectron2 expects otherwise: {line}"


class _Folders:
    """Detectron2's file system, whose lists leave out stray files."""

    def __getattr__(self, name: str) -> Any:
        return getattr(PathManager, name)

    @staticmethod
    def ls(path: str) -> list[str]:
        """List a folder."""
        return [name for name in PathManager.ls(path) if not is_stray_file(Path(name))]


@contextlib.contextmanager
def _without_stray_files() -> Iterator[None]:
    """Let the modules that list folders pass over stray files."""
    before = [module.PathManager for module in LISTING]
    for module in LISTING:
        module.PathManager = _Folders()
    try:
        yield
    finally:
        for module, manager in zip(LISTING, before, strict=True):
            module.PathManager = manager
