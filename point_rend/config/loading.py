"""Loading of YAML configs as data: nothing in a file is executed."""

import ast
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urljoin

from detectron2.config import CfgNode, downgrade_config, get_cfg, upgrade_config

from point_rend.config.bounded_yaml import MAX_DEPTH, MAX_FILES, Budget, parse_yaml
from point_rend.config.defaults import INHERIT, add_pointrend_config, value_of
from point_rend.config.files import find_config_file
from point_rend.config.tasks import point_head_user
from point_rend.utils.downloads import is_url, local_path
from point_rend.utils.errors import did_you_mean, shortened
from point_rend.utils.reading import read_bytes

logger = logging.getLogger(__name__)
BASE_KEY = "_BASE_"
REMOTE_CONFIGS = "POINT_REND_REMOTE_CONFIGS"  # environment variable that allows URLs
OF_DETECTRON2 = "detectron2://"  # begins addresses on Detectron2's own server
COMMAND_LINE = "command line"
ARGUMENT = "opts"  # of a call from Python
SOURCES = "_point_rend_sources"  # attribute of a config: by key, the last value read and its source


def load_config(
    config_file: str,
    opts: Sequence[str] = (),
    *,
    opts_source: str = ARGUMENT,
    allow_remote: bool | None = None,
) -> CfgNode:
    """Build the config of a run: defaults, then a YAML file, then options.

    Args:
        config_file: Path or URL of a YAML file, or the name of a config of this package, as of
            :func:`get_config_file`.
        opts: Keys and values in turn, as in `["SOLVER.BASE_LR", "0.01"]`.
        opts_source: Name of their origin for messages.
        allow_remote: Whether the file or its bases may be URLs, which are downloaded; by default
            whether the environment variable POINT_REND_REMOTE_CONFIGS is 1.

    Returns:
        The config, not frozen.

    Raises:
        FileNotFoundError: If the file or one of its bases does not exist.
        ValueError: If a file would execute code or is not YAML, or a key or a value does not fit,
            or a file is a URL and that is not allowed.
    """
    cfg = get_cfg()
    add_pointrend_config(cfg)
    merge_from_file_safely(cfg, config_file, allow_remote=allow_remote)
    _override(cfg, opts, opts_source)
    return cfg


def parse_config(
    text: str, source: str, opts: Sequence[str] = (), *, opts_source: str = ARGUMENT
) -> CfgNode:
    """Build a config as :func:`load_config` does, but from the text of a YAML file without bases.

    Args:
        text: The text, such as :func:`dump_config` returns.
        source: Name of its origin for messages.
        opts, opts_source: As of :func:`load_config`.

    Returns:
        The config, not frozen.

    Raises:
        ValueError: As of :func:`load_config`.
    """
    cfg = get_cfg()
    add_pointrend_config(cfg)
    _merge(cfg, list(_flatten(parse_yaml(text, source, Budget()), source)), source)
    _override(cfg, opts, opts_source)
    return cfg


def merge_from_file_safely(cfg: CfgNode, path: str, *, allow_remote: bool | None = None) -> None:
    """Merge a YAML file and its `_BASE_` files into a config without executing anything in them.

    The result equals that of Detectron2's `cfg.merge_from_file`, files of old versions included.
    When an error is raised, `cfg` is as it was.

    Args:
        cfg: A config of the latest version; changed in place.
        path, allow_remote: As of :func:`load_config`.

    Raises:
        FileNotFoundError: If the file or one of its bases does not exist.
        ValueError: If a file would execute code or is not YAML, if the bases form a cycle, or if a
            key or a value does not fit `cfg`.
    """
    if allow_remote is None:
        allow_remote = os.environ.get(REMOTE_CONFIGS) == "1"
    found = find_config_file(path)
    _merge(cfg, _settings_of_file(found, Budget(), allow_remote=allow_remote), path)


def _merge(cfg: CfgNode, settings: Sequence["_Setting"], source: str) -> None:
    """Merge settings of any config version; when an error is raised, `cfg` is as it was."""
    version = _version_of(settings, latest=cfg.VERSION)
    if version == cfg.VERSION:
        merged = cfg.clone()
        _apply(merged, settings)
    else:
        logger.warning("%s is of config version %d: upgrading it", source, version)
        old = downgrade_config(cfg, to_version=version)
        _apply(old, settings)
        merged = upgrade_config(old)
    cfg.clear()
    cfg.update(merged)
    cfg.__dict__[SOURCES] = merged.__dict__.get(SOURCES, {})


class _Setting(NamedTuple):
    """One value for one key, and its source: a file, the command line or an argument."""

    path: tuple[str, ...]
    value: Any
    source: str

    @property
    def key(self) -> str:
        return ".".join(self.path)


def _override(cfg: CfgNode, opts: Sequence[str], source: str) -> None:
    """Set what options set.

    If they set the class count of a head, that of the point head follows unless the file gives it
    another value: files of the stock project, and those of a training, have to repeat the count.
    """
    settings = _settings_of_opts(opts, source)
    count, point_head = f"MODEL.{point_head_user(cfg)}.NUM_CLASSES", "MODEL.POINT_HEAD.NUM_CLASSES"
    repeated = value_of(cfg, count) == value_of(cfg, point_head)
    _apply(cfg, settings)
    keys = {setting.key for setting in settings}
    if repeated and count in keys and point_head not in keys:
        cfg.MODEL.POINT_HEAD.NUM_CLASSES = INHERIT


def _settings_of_opts(opts: Sequence[str], source: str) -> list[_Setting]:
    flag = next((str(word) for word in opts if str(word).startswith("--")), None)
    if flag is not None and source == COMMAND_LINE:
        raise ValueError(
            f"{source}: {shortened(flag)} stands among the config keys; options that start with - "
            "must come before the first KEY VALUE pair"
        )
    if len(opts) % 2:
        expected, unit = "keys and values in turn", "items"
        if source == COMMAND_LINE:
            expected, unit = "pairs KEY VALUE separated by a space", "words"
        raise ValueError(
            f"{source}: expected {expected}, got an odd number of {unit}: "
            f"{shortened(' '.join(map(str, opts)))}"
        )
    keys = [str(key) for key in opts[::2]]
    return [
        _Setting(tuple(key.split(".")), value, source)
        for key, value in zip(keys, opts[1::2], strict=True)
    ]


def _settings_of_file(
    path: str, budget: Budget, included_by: tuple[str, ...] = (), *, allow_remote: bool
) -> list[_Setting]:
    """List what a file and its bases set, bases first.

    Args:
        path: Path or URL of a YAML file.
        budget: Bounds of this file and all others of the config.
        included_by: The files that led to this one, outermost first.
        allow_remote: Whether files may be URLs.
    """
    path = os.path.expanduser(path)
    chain = (*included_by, path)
    if os.path.realpath(path) in map(os.path.realpath, included_by):
        raise ValueError(f"{BASE_KEY} files form a cycle: {' -> '.join(chain)}")

    tree = _read_yaml(path, budget, included_by, allow_remote=allow_remote)
    bases = tree.pop(BASE_KEY, [])
    if isinstance(bases, str):
        bases = [bases]
    names = isinstance(bases, list) and all(isinstance(x, str) and "\0" not in x for x in bases)
    if not names:
        got = shortened(repr(bases))
        raise ValueError(f"{path}: {BASE_KEY} must be a file or a list of files, got {got}")

    settings = []
    for base in bases:
        if is_url(path) and not is_url(base):
            base = urljoin(path, base)
        elif not is_url(base):
            base = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        settings += _settings_of_file(base, budget, chain, allow_remote=allow_remote)
    settings += _flatten(tree, path)
    return settings


def _read_yaml(
    path: str, budget: Budget, included_by: tuple[str, ...], *, allow_remote: bool
) -> dict[Any, Any]:
    role = f" ({BASE_KEY} of {included_by[-1]})" if included_by else ""
    where = f"config file {path}{role}"
    budget.files -= 1
    if budget.files < 0:
        raise ValueError(f"{where}: expected at most {MAX_FILES} files in all, repeated ones too")
    if is_url(path) and not allow_remote and not path.startswith(OF_DETECTRON2):
        raise ValueError(
            f"{where} is remote and was not downloaded: expected a file of this machine; if you "
            f"trust its origin, set the environment variable {REMOTE_CONFIGS}=1"
        )
    try:
        local = local_path(path, max_bytes=budget.bytes)
        content = read_bytes(local, what=f"config file{role}", max_bytes=budget.bytes)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where} does not exist") from error
    return parse_yaml(content, where, budget)


def _flatten(
    tree: Mapping[Any, Any], source: str, prefix: tuple[str, ...] = ()
) -> Iterator[_Setting]:
    for name, value in tree.items():
        path = (*prefix, str(name))
        if isinstance(value, Mapping):
            yield from _flatten(value, source, path)
        else:
            yield _Setting(path, value, source)


def _version_of(settings: Sequence[_Setting], latest: int) -> int:
    """Return the config version of a file; without a VERSION its keys decide."""
    given = [setting for setting in settings if setting.key == "VERSION"]
    if not given:
        old_keys = {"MODEL.WEIGHT", "TEST.AUG_ON"}
        return 1 if any(setting.key in old_keys for setting in settings) else latest
    version = given[-1].value
    if not isinstance(version, int) or not 0 <= version <= latest:
        raise ValueError(
            f"{given[-1].source}: VERSION must be a number from 0 to {latest}, got "
            f"{shortened(repr(version))}"
        )
    return version


def _apply(cfg: CfgNode, settings: Iterable[_Setting]) -> None:
    """Set keys that exist to values of their types, in order."""
    for setting in settings:
        current: Any = cfg
        for name in setting.path:
            if not isinstance(current, CfgNode) or name not in current:
                raise ValueError(_unknown_key(cfg, setting))
            current = current[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's parser, which strings are tried on
            _set(cfg, setting, current)


def _set(cfg: CfgNode, setting: _Setting, current: Any) -> None:
    value = setting.value
    try:
        value = _literal(value) if isinstance(value, str) else value
        _check_size(value)
    except ValueError as error:
        raise ValueError(f"{setting.source}: {setting.key} must be {error}") from error
    try:
        cfg.merge_from_list([setting.key, setting.value])
    except (ValueError, TypeError) as error:
        raise ValueError(_wrong_type(current, setting, value)) from error
    sources = cfg.__dict__.setdefault(SOURCES, {})
    sources[setting.key] = value_of(cfg, setting.key), setting.source


def source_of(cfg: CfgNode, key: str) -> str:
    """Return where the value of a key was read, as a message begins; nothing if it is unknown."""
    value, source = cfg.__dict__.get(SOURCES, {}).get(key, (None, ""))
    return f"{source}: " if source and value is value_of(cfg, key) else ""


LONGEST_VALUE = 10_000  # characters
MOST_SIGNS = 1000  # + and - of a value


def _literal(text: str) -> Any:
    """Read a string as the merge does: as a Python literal, so that "(1, 2)" is a tuple.

    Raises:
        ValueError: If it is too large; the message completes "must be".
    """
    depth = 0
    for character in text[:LONGEST_VALUE]:
        depth += (character in "([{") - (character in ")]}")
        if depth > MAX_DEPTH:
            raise ValueError(f"nested at most {MAX_DEPTH} levels deep, got {shortened(text)}")
    if len(text) > LONGEST_VALUE:
        raise ValueError(f"at most {LONGEST_VALUE} characters, got {len(text)}: {shortened(text)}")
    # Python's parser recurses for each sign, and each version of Python has another bound.
    if text.count("+") + text.count("-") > MOST_SIGNS:
        raise ValueError(f"a plain value, got {shortened(text)}")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"a plain value, got {shortened(text)}") from error


def _check_size(value: Any) -> None:
    """Refuse values that no program can use; the message completes "must be"."""
    if isinstance(value, (list, tuple)):
        for item in value:
            _check_size(item)
    elif isinstance(value, int) and value.bit_length() > 63:
        raise ValueError(f"a number of 64 bits, got one of {value.bit_length() + 1}")
    elif isinstance(value, str) and "\0" in value:
        raise ValueError(f"without null characters, got {shortened(value)}")


def _wrong_type(current: Any, setting: _Setting, got: Any) -> str:
    if isinstance(current, CfgNode):
        expected = "a section of keys"
    else:
        expected = f"{type(current).__name__} such as {shortened(repr(current))}"
    text = shortened(str(got))
    message = f"{setting.source}: {setting.key} must be {expected}, got {type(got).__name__} {text}"
    if isinstance(current, str):
        message += f"""; quote it twice to make it a string: "'{text}'\""""
    return message


def _unknown_key(cfg: CfgNode, setting: _Setting) -> str:
    message = f"{setting.source}: unknown config key {shortened(setting.key)}"
    if setting.source == COMMAND_LINE and setting.key.startswith("-"):
        return f"{message}; options that start with - go before the first KEY VALUE"
    if setting.source == COMMAND_LINE and "=" in setting.key:
        return f"{message}; write KEY VALUE with a space, not KEY=VALUE"
    if setting.source == ARGUMENT and "=" in setting.key:
        return f"{message}; pass a key and its value as two items, not as KEY=VALUE"
    known = [known_setting.key for known_setting in _flatten(cfg, "")]
    return message + did_you_mean(setting.key, known)
