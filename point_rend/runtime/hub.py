"""Models in folders, on this machine or on the Hugging Face Hub (with an optional extra)."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from point_rend.runtime.model_folder import FILES, LABELS_NAME, MAX_LABELS, MAX_TEXT, WEIGHTS_NAME
from point_rend.utils.downloads import download_limit
from point_rend.utils.imports import not_installed

# Packages by which huggingface_hub sends requests, in its versions.
HTTP_LIBRARIES = {"httpx", "httpx2", "httpcore", "requests", "urllib3"}

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9][\w.\-]{0,95}")


def is_repository(name: str) -> bool:
    """Return whether a text can be the name of a repository, such as `user/model`."""
    return _REPOSITORY.fullmatch(name) is not None and ".." not in name


def find_folder(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Return the folder of a model, after a download if it is a repository of the Hub.

    Args:
        name: A folder, or the name of a repository, such as `user/model`, that is no folder here.
        revision, token: As of :func:`fetch_folder`.

    Raises:
        FileNotFoundError: If it is neither.
        OSError, ValueError: As of :func:`fetch_folder`.
    """
    path = os.fspath(name)
    if os.path.isdir(path):
        if revision is not None:
            raise ValueError(f"revision {revision!r}: {path} is a folder, which has no revisions")
        return path
    if os.path.lexists(path):
        kind = "file" if os.path.exists(path) else "link to nothing"
        raise ValueError(f"{path} is a {kind}, expected a folder or a repository of the Hub")
    if not isinstance(name, str) or not is_repository(name):
        raise FileNotFoundError(f"there is no folder {path}")
    return str(fetch_folder(name, revision=revision, token=token))


def fetch_folder(
    repository: str, *, revision: str | None = None, token: str | bool | None = None
) -> Path:
    """Download the files of a model into the cache of huggingface_hub.

    Only the files of :mod:`point_rend.runtime.model_folder` are downloaded. Without a network,
    those in the cache are used.

    Args:
        repository: Its name, such as `user/model`.
        revision: Branch, tag or commit; by default the main branch.
        token: Access token; by default that of the user's login. False sends none.

    Returns:
        The folder.

    Raises:
        OSError: If it cannot be downloaded.
        ValueError: If huggingface_hub is not installed, a file is missing or larger than allowed.
    """
    hub = _import_hub()
    with _explained(repository, revision):
        try:
            info = hub.HfApi(token=token).model_info(
                repository, revision=revision, files_metadata=True
            )
        except Exception as error:
            if not _is_of_network(error):
                raise
            return _cached(hub, repository, revision, error)
        sizes = {file.rfilename: file.size for file in info.siblings or ()}
        _check_files(repository, sizes)
        return Path(
            hub.snapshot_download(
                repository, revision=revision, token=token, allow_patterns=list(FILES)
            )
        )


def push_folder(
    folder: Path,
    repository: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
    message: str = "Upload a PointRend model",
) -> str:
    """Upload the files of a model into a repository, which is created if it does not exist.

    Args:
        folder: The folder.
        repository, revision, token: As of :func:`fetch_folder`.
        private: Whether a new repository is private; by default as the account is set.
        message: Title of the commit.

    Returns:
        URL of the commit.

    Raises:
        OSError: If it cannot be uploaded.
        ValueError: If huggingface_hub is not installed, or the name is none of a repository.
    """
    hub = _import_hub()
    with _explained(repository, revision):
        api = hub.HfApi(token=token)
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            allow_patterns=list(FILES),
        )
    return str(commit.commit_url)


def _import_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise not_installed("huggingface_hub", "hub") from error
    return huggingface_hub


def _cached(hub: Any, repository: str, revision: str | None, reason: Exception) -> Path:
    """Return the folder of an earlier download."""
    try:
        folder = hub.snapshot_download(
            repository, revision=revision, local_files_only=True, allow_patterns=list(FILES)
        )
    except (OSError, ValueError):
        raise reason from None
    return Path(folder)


def _check_files(repository: str, sizes: dict[str, int | None]) -> None:
    """Refuse a repository before the download that lacks a file or has too large ones."""
    lacking = [name for name in FILES if name not in sizes]
    if lacking:
        raise ValueError(
            f"{_url(repository)} lacks {', '.join(lacking)}: expected a model of "
            "Predictor.push_to_hub"
        )
    limit, advice = download_limit()
    for name in FILES:
        size, largest = sizes[name] or 0, {WEIGHTS_NAME: limit, LABELS_NAME: MAX_LABELS}
        if size > largest.get(name, MAX_TEXT):
            raise ValueError(
                f"{_url(repository)}: {name} has {size} bytes, expected "
                f"{largest.get(name, MAX_TEXT)} at most{advice if name == WEIGHTS_NAME else ''}"
            )


@contextlib.contextmanager
def _explained(repository: str, revision: str | None) -> Iterator[None]:
    """Turn the errors of huggingface_hub into one line."""
    from huggingface_hub import errors

    url = _url(repository)
    try:
        yield
    except errors.HFValidationError as error:
        raise ValueError(f"{repository!r:.200} is no name of a repository: {error}") from error
    except errors.GatedRepoError as error:
        raise OSError(f"{url} is only for users to whom its owner has given access") from error
    except errors.RevisionNotFoundError as error:
        raise OSError(f"{url} has no revision {revision}") from error
    except errors.RepositoryNotFoundError as error:
        raise OSError(
            f"{url}: there is no such model, or it is private: pass a token of an account that "
            "may read it, or log in with `hf auth login`"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise OSError(f"{url} cannot be reached: {str(error).splitlines()[0]}") from error
    except errors.HfHubHTTPError as error:
        reason = getattr(error, "server_message", "") or str(error).split("\n")[0]
        raise OSError(f"{url} refuses the request: {reason}") from error
    except Exception as error:
        if not _is_of_network(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(f"{url} cannot be reached: {reason}") from error


def _is_of_network(error: Exception) -> bool:
    """Return whether a request got no answer."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError | ConnectionError | TimeoutError):
        return True
    is_answer = isinstance(error, errors.HfHubHTTPError)
    return not is_answer and type(error).__module__.partition(".")[0] in HTTP_LIBRARIES


def _url(repository: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repository}"
