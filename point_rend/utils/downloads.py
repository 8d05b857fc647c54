"""Downloads that cannot harm: bounded in size and time, into a cache by the full URL.

The path manager of Detectron2 writes the bytes of a server to a path that the URL chooses, `..`
included, and takes files of different hosts for the same. The commands of this package replace its
handlers of URLs (:func:`guard_detectron2`); :func:`safe_paths` is a path manager for everyone.
"""

import contextlib
import functools
import hashlib
import http.client
import importlib
import logging
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit

import portalocker
from iopath.common.file_io import OneDrivePathHandler, PathHandler, PathManager

from point_rend.utils.files import LEFTOVERS, atomic_file

LIMIT = "POINT_REND_DOWNLOAD_LIMIT"  # environment variable: GiB of the largest download
TIMEOUT = "POINT_REND_DOWNLOAD_TIMEOUT"  # seconds without an answer, or of a stalled download
DEFAULTS = {LIMIT: 4.0, TIMEOUT: 30.0}
SLOWEST = 1024  # bytes per second below which a download counts as stalled
LONGEST_URL = 2000
OTHER_PROCESS = 3600  # seconds to wait for another process that downloads the same file
_BLOCK = 1 << 16

ONE_DRIVE = OneDrivePathHandler.ONE_DRIVE_PREFIX
URLS = ("http://", "https://", "ftp://", ONE_DRIVE)  # what Detectron2 downloads; ftp is refused

logger = logging.getLogger(__name__)


class DownloadError(OSError):
    """A file could not be downloaded; nothing is left of it.

    Args:
        url: Its URL.
        reason: The reason.
        name: The name that stands for the URL, if any.
    """

    def __init__(self, url: str, reason: object, name: str = "") -> None:
        message = f"{url} cannot be downloaded: {reason}"
        if name:
            message = (
                f"{name} cannot be downloaded from {url} ({reason}): download the file by other "
                "means and pass its path"
            )
        super().__init__(message)
        self.reason = reason
        self.name = name


def is_url(path: str) -> bool:
    """Return whether a path has a scheme, such as `https://`."""
    return "://" in path


def local_path(path: str, *, again: bool = False, max_bytes: int | None = None) -> str:
    """Return the path of a file on this machine, after a download if it is a URL.

    Args:
        path: A path, which is returned as it is, an http or https URL, a name that stands for one
            (`detectron2://`, `catalog://`, those of :func:`add_names`), or anything else that the
            user has registered in Detectron2's path manager.
        again: Whether to download what is in the cache already.
        max_bytes: As of :func:`download`.

    Raises:
        DownloadError: As :func:`download`.
        ValueError: As :func:`download`, or if the scheme is unknown.
    """
    if not is_url(path):
        return path
    url = resolve(path)
    if not url.startswith(("http://", "https://")):
        return _detectron2_paths().get_local_path(url, force=again)
    try:
        return str(download(url, again=again, max_bytes=max_bytes))
    except DownloadError as error:
        if url == path:
            raise
        raise DownloadError(url, error.reason, name=path) from error


def resolve(path: str) -> str:
    """Return the URL that a URL or a name stands for, checked but not asked for.

    Raises:
        FileNotFoundError: If a name stands for nothing.
        ValueError: If the URL cannot be used, or the scheme is unknown.
    """
    scheme, separator, rest = path.partition("://")
    path = f"{scheme.lower()}{separator}{rest}"
    for prefix, url_of in _NAMES.items():
        if path.startswith(prefix):
            path = url_of(path)
            break
    if path.startswith(URLS) or not has_handler(_detectron2_paths(), path):
        check_url(path)
    return path


def has_handler(paths: PathManager, path: str) -> bool:
    """Return whether a path manager knows the scheme of a path."""
    return path.startswith(tuple(paths._path_handlers))


def _detectron2_paths() -> PathManager:
    return importlib.import_module("detectron2.utils.file_io").PathManager


def _of_detectron2(path: str) -> str:
    return "https://dl.fbaipublicfiles.com/" + path.replace("://", "/", 1)


def _of_catalog(path: str) -> str:
    catalog = importlib.import_module("detectron2.checkpoint.catalog").ModelCatalog
    try:
        return catalog.get(path.partition("://")[2])
    except (KeyError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{path}: Detectron2's catalog has no model of this name"
        ) from error


_NAMES: dict[str, Callable[[str], str]] = {
    "detectron2://": _of_detectron2,
    "catalog://": _of_catalog,
    ONE_DRIVE: OneDrivePathHandler().create_one_drive_direct_download,
}


def download(url: str, *, again: bool = False, max_bytes: int | None = None) -> Path:
    """Download a file unless the cache has it; it is there complete or not at all.

    The cache is `point_rend` in the folder `FVCORE_CACHE`, or `~/.torch/point_rend_cache`.

    Args:
        url: An http or https URL.
        again: Whether to download it in any case.
        max_bytes: Largest size; by default the environment variable POINT_REND_DOWNLOAD_LIMIT, in
            GiB, or 4 GiB.

    Raises:
        DownloadError: If the server cannot be reached, stalls, redirects to anything but http or
            https, or sends more bytes than allowed or fewer than announced.
        NotSavedError: If the cache cannot be written.
        ValueError: If the URL cannot be used.
    """
    check_url(url)
    file = _cached_file(url)
    if file.is_file() and not again:
        return file
    with _lock(file.parent):
        if not file.is_file() or again:
            for leftover in file.parent.glob(LEFTOVERS):
                leftover.unlink()
            logger.info("Downloading %s", url)
            with atomic_file(file) as target:
                size = _fetch(url, target, max_bytes)
            logger.info("%s: %d bytes in %s", url, size, file)
    return file


def download_into(url: str, target: BinaryIO, *, max_bytes: int | None = None) -> int:
    """Download a file into an open one, past the cache.

    Args:
        url: An http or https URL.
        target: The open file.
        max_bytes: As of :func:`download`.

    Returns:
        Its size in bytes.

    Raises:
        DownloadError, ValueError: As of :func:`download`.
    """
    check_url(url)
    return _fetch(url, target, max_bytes)


def check_url(url: str) -> None:
    """Refuse a URL that is not of http or https, or whose path leads upward, decoded or not.

    Raises:
        ValueError: If it is refused.
    """
    shown = f"{url!r:.200}"
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:
        raise ValueError(f"{shown} is no URL: {error}") from error
    if not sound or "@" in parts.netloc:
        raise ValueError(f"{shown}: expected an http:// or https:// URL with a host")
    if len(url) > LONGEST_URL or not url.isprintable() or " " in url:
        raise ValueError(f"{shown}: expected a URL of printable characters, {LONGEST_URL} at most")
    if ".." in re.split(r"[/\\]", _decoded(parts.path)):
        raise ValueError(f"{shown}: expected a URL without `..` in its path")


def _decoded(text: str) -> str:
    while (decoded := unquote(text)) != text:
        text = decoded
    return text


def _cached_file(url: str) -> Path:
    """Return the place of a URL in the cache: a folder of its own, and a name with its suffix."""
    root = os.environ.get("FVCORE_CACHE")
    cache = Path(root, "point_rend") if root else Path("~/.torch/point_rend_cache").expanduser()
    name = re.sub(r"[^A-Za-z0-9._-]", "_", _decoded(urlsplit(url).path).rpartition("/")[2])
    return cache / hashlib.sha256(url.encode()).hexdigest() / (name.lstrip(".")[-100:] or "file")


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one process at a time download into a folder, which is created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = portalocker.Lock(str(folder / "lock"), timeout=OTHER_PROCESS)
        lock.acquire()
    except portalocker.exceptions.LockException as error:
        raise OSError(f"{folder} is locked by another download: {error}") from error
    except OSError as error:
        raise OSError(
            f"the cache of downloads {folder} cannot be written ({error.strerror}): set "
            "FVCORE_CACHE to a folder that can"
        ) from error
    try:
        yield
    finally:
        lock.release()


# Fetching


def _setting(variable: str) -> float:
    """Read a positive number from the environment.

    Raises:
        ValueError: If it is not one.
    """
    text = os.environ.get(variable, "")
    try:
        number = float(text or DEFAULTS[variable])
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise ValueError(f"{variable} is {text!r}: expected a positive number")
    return number


def download_limit() -> tuple[int, str]:
    """Return the size of the largest download, in bytes, and advice how to raise it.

    Raises:
        ValueError: If the environment variable is no positive number.
    """
    advice = f"; the environment variable {LIMIT} raises it (in GiB)"
    return int(_setting(LIMIT) * 2**30), advice


def _fetch(url: str, target: BinaryIO, max_bytes: int | None) -> int:
    """Write the answer to a request into an open file, and return its size."""
    limit, advice = download_limit() if max_bytes is None else (max_bytes, "")
    too_large = f"more than {limit} bytes, the limit{advice}"
    seconds = _setting(TIMEOUT)
    received = 0
    try:
        with _Watch(seconds) as watch, _open(url, seconds, watch) as answer:
            announced = answer.length
            if announced is not None and announced > limit:
                raise DownloadError(url, too_large)
            watch.note(int(seconds * SLOWEST))  # the first window began before the connection
            while block := answer.read1(_BLOCK):
                received += len(block)
                watch.note(len(block))
                if received > limit:
                    raise DownloadError(url, too_large)
                target.write(block)
            if watch.stalled:
                raise TimeoutError
    except HTTPError as error:
        error.close()
        raise DownloadError(url, f"{error.code} {error.reason}{_elsewhere(url)}") from error
    except (URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as e:
        reason = e.reason if isinstance(e, URLError) else f"{type(e).__name__} {e}"
        if watch.stalled or isinstance(e, TimeoutError) or isinstance(reason, TimeoutError):
            reason = (
                f"the server stalled for {seconds:g} seconds; the environment variable {TIMEOUT} "
                "raises this limit"
            )
        raise DownloadError(url, f"{reason}{_elsewhere(url)}") from e
    if announced is not None and received != announced:
        raise DownloadError(url, f"it ended after {received} of {announced} bytes")
    if not received:
        raise DownloadError(url, "it is empty")
    return received


def _elsewhere(url: str) -> str:
    """Name the file in the cache of iopath, which other programs may have filled."""
    root = os.path.expanduser(os.environ.get("FVCORE_CACHE", "~/.torch/iopath_cache"))
    file = os.path.join(root, urlsplit(url).path.lstrip("/"))
    if not os.path.isfile(file):
        return ""
    return f"; {file} was downloaded by another program: pass this path if you trust it"


class _Watch:
    """Ends the connections of a download that receives too little in a period.

    A timeout of the socket alone would start anew with each byte.

    Args:
        seconds: Length of the period.

    Attributes:
        stalled: Whether the connections were ended.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.stalled = False
        self.sockets: list[socket.socket] = []
        self._received = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def note(self, size: int) -> None:
        """Count received bytes."""
        self._received += size

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        before = 0
        while not self._done.wait(self.seconds):
            if self._received - before < self.seconds * SLOWEST:
                self.stalled = True
                for connection in self.sockets:
                    with contextlib.suppress(OSError):
                        # Not the method of SSL sockets, which is not safe between threads.
                        socket.socket.shutdown(connection, socket.SHUT_RDWR)
                return
            before = self._received


class _Connection(http.client.HTTPConnection):
    """A connection whose socket is watched."""

    def __init__(self, *args: Any, watch: _Watch, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watch = watch

    def connect(self) -> None:
        super().connect()
        self.watch.sockets.append(self.sock)


class _SecureConnection(_Connection):
    """The same with TLS, whose handshake is watched, too."""

    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        host = self._tunnel_host or self.host  # type: ignore[attr-defined]
        context = ssl.create_default_context()
        secured = context.wrap_socket(
            self.sock, server_hostname=host, do_handshake_on_connect=False
        )
        self.sock = secured
        self.watch.sockets.append(secured)
        secured.do_handshake()


class _Connections(request.AbstractHTTPHandler):
    """Opens watched connections."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def http_open(self, asked: request.Request) -> http.client.HTTPResponse:
        return self._answer(_Connection, asked)

    def https_open(self, asked: request.Request) -> http.client.HTTPResponse:
        return self._answer(_SecureConnection, asked)

    def _answer(self, kind: type[_Connection], asked: request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(kind, watch=self.watch), asked)

    http_request = https_request = request.AbstractHTTPHandler.do_request_


class _Redirects(request.HTTPRedirectHandler):
    """Follows redirections to what could be asked for, and never from https to http."""

    def redirect_request(
        self, req: request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> request.Request | None:
        try:
            check_url(newurl)
        except ValueError as error:
            raise URLError(f"it redirects to {error}") from error
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise URLError(f"it redirects from https to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, seconds: float, watch: _Watch) -> http.client.HTTPResponse:
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        _Connections(watch),
        _Redirects(),
        request.HTTPErrorProcessor(),
        request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    encoded = quote(url, safe="/:?#[]@!$&'()*+,;=%~")  # other letters than those of ASCII
    headers = {"User-Agent": "point_rend", "Accept-Encoding": "identity"}
    return opener.open(request.Request(encoded, headers=headers), timeout=seconds)


# Path managers


class UrlHandler(PathHandler):
    """Reads URLs for a path manager by :func:`local_path`.

    Args:
        prefixes: The beginnings of paths that it is to read.
    """

    def __init__(self, prefixes: tuple[str, ...]) -> None:
        super().__init__()
        self.prefixes = prefixes

    def _get_supported_prefixes(self) -> list[str]:
        return list(self.prefixes)

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        del kwargs
        return local_path(path, again=force)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        if set(mode) & set("wax+"):
            raise OSError(f"{path} cannot be written: expected a path on this machine")
        return open(local_path(path), mode, buffering, **kwargs)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        del kwargs
        try:
            return os.path.isfile(local_path(path))
        except DownloadError:
            return False

    _isfile = _exists

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        del path, kwargs
        return False

    def _refuse(self, path: str, *args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        raise OSError(f"{path}: expected a path on this machine")

    _ls = _mkdirs = _rm = _copy = _mv = _symlink = _refuse


def add_names(prefix: str, url_of: Callable[[str], str]) -> None:
    """Let names stand for URLs.

    Args:
        prefix: The beginning of the names, such as `zoo://`.
        url_of: Returns the URL of a name, or raises a FileNotFoundError.
    """
    _NAMES[prefix] = url_of


def safe_paths() -> PathManager:
    """Return a path manager that knows what Detectron2's does, and downloads as this module."""
    paths = PathManager()
    for handler in _detectron2_paths()._path_handlers.values():
        paths.register_handler(handler)
    paths.register_handler(UrlHandler((*URLS, *_NAMES)))
    return paths


def guard_detectron2() -> None:
    """Let Detectron2 download as this module does, in this process.

    Only programs call this: what other code does with Detectron2 is its own decision.
    """
    _detectron2_paths().register_handler(UrlHandler(URLS))
