"""A pytest plugin: the imports of ``cityscapesscripts`` as in the official Detectron2.

Two of its files import the package under a name that exists only inside Meta. With
``-p tests.leaked_imports`` the installed files are executed as if they did, too.
"""

import re
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType

import pytest

LEAKED = "deeplearning.projects.cityscapesApi.cityscapesscripts"
FILES = ("detectron2.evaluation.cityscapes_evaluation", "detectron2.data.datasets.cityscapes")
rewritten = dict.fromkeys(FILES, 0)  # numbers of imports


class LeakingLoader(SourceFileLoader):
    """Rewrites the imports of a file before they are compiled."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the rewritten source; no bytecode is read or written."""
        source = self.get_data(self.path).decode()
        statement = r"^( *(?:from|import) )(?:deeplearning\S*\.)?cityscapesscripts\b"
        source, rewritten[fullname] = re.subn(statement, rf"\1{LEAKED}", source, flags=re.MULTILINE)
        return self.source_to_code(source.encode(), self.path)


class LeakingFinder(MetaPathFinder):
    """Finds the two files."""

    def find_spec(self, fullname, path, target=None) -> ModuleSpec | None:
        """Find one of the two files with its loader replaced."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname in FILES else None
        if spec is not None:
            spec.loader = LeakingLoader(fullname, spec.origin)
        return spec


assert not {*FILES} & sys.modules.keys()
sys.meta_path.insert(0, LeakingFinder())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Make sure that the tests ran on rewritten files."""
    if not all(rewritten.values()):
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
