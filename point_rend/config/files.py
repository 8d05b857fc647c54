"""Config files that are shipped with the package, found by name."""

import contextlib
import os
from collections import defaultdict
from pathlib import Path, PurePosixPath

from point_rend.utils.errors import did_you_mean, shortened


def find_config_file(name: str) -> str:
    """Find the config file that a user names.

    Args:
        name: Path or URL of a file, or the name of a shipped config, as of :func:`get_config_file`.
            A file that exists takes precedence.

    Returns:
        The URL, or a path on this machine.

    Raises:
        FileNotFoundError: If there is no such file; the message lists the nearest names.
    """
    if "://" in name:
        return name
    path = os.path.expanduser(name)
    return path if os.path.exists(path) else get_config_file(name)


def config_file_option(name: str) -> str:
    """Convert a command-line option as :func:`find_config_file`; an unknown name stays as it is."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return find_config_file(name)
    return name


def get_config_file(name: str) -> str:
    """Find a config file that is shipped with the package.

    Args:
        name: Path below `configs/`, for example
            "InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml". `configs/` may stand in
            front, and `.yaml` may be left out; so may the folder, if one file has the name.

    Returns:
        Its path on this machine.

    Raises:
        FileNotFoundError: If no such file is shipped; the message lists the nearest names.
        ValueError: If files in several folders have the name.
    """
    package = Path(__file__).resolve().parents[1]
    # An installed package carries the folder inside; in a checkout it lies next to the package.
    inside = package / "configs"
    root = inside if inside.is_dir() else package.parent / "configs"
    paths = {file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*.yaml"))}
    by_file_name = defaultdict(list)
    for path in paths:
        by_file_name[PurePosixPath(path).name].append(path)

    wanted = name.removeprefix("./").removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    matches = [wanted] if wanted in paths else by_file_name.get(wanted, [])
    if len(matches) > 1:
        raise ValueError(f"config {name} could be {' or '.join(matches)}: name one of them")
    if not matches:
        hint = did_you_mean(wanted, paths if "/" in wanted else by_file_name)
        raise FileNotFoundError(
            f"config file {shortened(name)} does not exist, and no config of this package has this "
            f"name{hint}"
        )
    return str(paths[matches[0]])
