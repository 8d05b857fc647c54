"""Actions that wait for the import of a module; the messages when a package is missing."""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

NO_DETECTRON2 = "Detectron2 is not installed; install it with: pointrend install-detectron2"


def lacks_detectron2(error: ImportError) -> bool:
    """Return whether an import failed, directly or behind a public name, without Detectron2."""
    return error.name == "detectron2" and isinstance(error.__cause__ or error, ModuleNotFoundError)


def not_installed(package: str, extra: str) -> ValueError:
    """Return the error for a package that is missing, which an extra of this one installs.

    Args:
        package: Name of the missing package.
        extra: Name of the extra, as in setup.py.
    """
    return ValueError(
        f'{package} is not installed; install it with: pip install "point_rend[{extra}]"'
    )


def after_import(awaited: str, action: Callable[[], None], *, undisturbed: Sequence[str]) -> None:
    """Call an action once a module has been imported, or now if it already has been.

    Modules that import the awaited one may not be ready for the action yet: the action also waits
    for the end of those in `undisturbed`.

    Args:
        awaited: Dotted name of the module.
        action: Called once.
        undisturbed: Dotted names of modules, or of packages with all their modules.
    """
    spec = getattr(sys.modules.get(awaited), "__spec__", None)
    if spec is not None and not getattr(spec, "_initializing", False):
        action()
    else:
        sys.meta_path.insert(0, _Watcher(awaited, action, undisturbed))


class _Watcher(MetaPathFinder):
    """Notices the begin and end of the execution of watched modules; other finders find them.

    Args:
        awaited, action, undisturbed: As for :func:`after_import`.
    """

    def __init__(
        self, awaited: str, action: Callable[[], None], undisturbed: Sequence[str]
    ) -> None:
        self.awaited = awaited
        self.action = action
        self.watched = (awaited, *undisturbed)
        self.executing = 0  # nested watched modules
        self.is_asking = False  # whether the other finders are searching

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Let the other finders find a watched module, and observe its execution."""
        del path, target
        is_watched = any(f"{fullname}.".startswith(f"{name}.") for name in self.watched)
        if self.is_asking or not is_watched:
            return None
        self.is_asking = True
        try:
            spec = find_spec(fullname)
        finally:
            self.is_asking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_notice(module: ModuleType) -> None:
                self.executing += 1
                try:
                    execute(module)
                finally:
                    self.executing -= 1
                self._act_if_due()

            spec.loader.exec_module = execute_and_notice  # type: ignore[method-assign]
        return spec

    def _act_if_due(self) -> None:
        if self.executing == 0 and self.awaited in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            self.action()
