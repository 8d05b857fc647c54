"""A second name for an installed package."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def alias_package(alias: str, package: str) -> None:
    """Let imports of a name that does not exist give the modules of a package.

    Every module, imported only when it is asked for, is the same object under both names. If there
    is a package of the name `alias`, it is the one that is imported.

    Args:
        alias: Dotted name; the packages that it names before its last dot may exist or not.
        package: Name of the package. An import below `alias` fails with its name if it is not
            installed.
    """
    sys.meta_path.append(_AliasFinder(alias, package))


class _AliasFinder(MetaPathFinder):
    """Finds the alias and the packages around it; the last finder to be asked.

    Args:
        alias, package: As for :func:`alias_package`.
    """

    def __init__(self, alias: str, package: str) -> None:
        self.alias = alias
        self.loader = _PackageLoader(alias, package)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the alias, or an empty package that leads to it."""
        del path, target
        if fullname == self.alias:
            return ModuleSpec(fullname, self.loader)
        if self.alias.startswith(f"{fullname}."):
            return ModuleSpec(fullname, None, is_package=True)
        return None


class _PackageLoader(MetaPathFinder, Loader):
    """Loads modules of the package under the alias, and finds those below it.

    Once the alias is loaded, it is the first finder to be asked: the others would find the files in
    the folder of the package, and execute them a second time.

    Args:
        alias, package: As for :func:`alias_package`.
    """

    def __init__(self, alias: str, package: str) -> None:
        self.alias = alias
        self.package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find modules below the alias."""
        del path, target
        return ModuleSpec(fullname, self) if fullname.startswith(f"{self.alias}.") else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the package in the place of a new module."""
        name = module.__name__
        try:
            # The import system returns what it finds here after the execution.
            sys.modules[name] = importlib.import_module(
                self.package + name.removeprefix(self.alias)
            )
        except ModuleNotFoundError as error:
            if error.name != self.package:
                raise
            raise ModuleNotFoundError(
                f"{name} stands for the package {self.package}, which is not installed: "
                f"pip install {self.package}",
                name=self.package,
            ) from error
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
