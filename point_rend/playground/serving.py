"""A server for the page, on this machine alone unless asked otherwise."""

import argparse
import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from point_rend.inference.inputs import names_below
from point_rend.inference.predictor import Predictor
from point_rend.inference.settings import read_settings
from point_rend.playground.main_thread import MainThread
from point_rend.playground.page import LOWEST_SCORE, STYLE, build_page, import_gradio
from point_rend.playground.scenes import Scenes
from point_rend.runtime.files import exported_file
from point_rend.utils.errors import print_result

HOST, PORT = "127.0.0.1", 7860
MAX_EXAMPLES = 9
MAX_UPLOAD = 50 * 1024 * 1024  # bytes
LOCAL = "127.0.0.1,localhost"
# Functions of Gradio that fetch addresses in place of files.
FETCHING = (
    ("processing_utils", "async_ssrf_protected_download"),
    ("routes", "secure_url_stream_response"),
)


def check(args: argparse.Namespace) -> None:
    """Make sure that the page could be served, before anything is trained.

    Args:
        args: The parsed command line of `pointrend demo`.

    Raises:
        ValueError: If Gradio is missing, the port is taken, or an option does not fit.
    """
    import_gradio()
    free_port(*_place(args))
    if not LOWEST_SCORE <= args.confidence_threshold <= 1:
        raise ValueError(
            f"--confidence-threshold: expected a number from {LOWEST_SCORE:g} to 1, got "
            f"{args.confidence_threshold:g}"
        )
    if exported_file(args.model) is not None:
        raise ValueError(
            f"--model {args.model} is an exported file, which keeps no steps to show: expected a "
            "folder of Predictor.save_pretrained, or --config-file"
        )


def serve(args: argparse.Namespace) -> None:
    """Serve the page until a signal ends it.

    Args:
        args: The parsed command line of `pointrend demo`, after :func:`check`.

    Raises:
        FileNotFoundError, OSError, ValueError: After an error that the user can correct.
    """
    lowest = argparse.Namespace(**{**vars(args), "confidence_threshold": LOWEST_SCORE})
    settings = read_settings(lowest)
    predictor = Predictor(
        settings.cfg, metadata=settings.metadata, allow_unsafe=args.allow_unsafe_checkpoint
    )
    main_thread = MainThread()
    host, port = _place(args)
    with served(
        predictor,
        main_thread,
        examples=_examples(args.examples),
        title="/".join(Path(settings.cfg.MODEL.WEIGHTS).parts[-2:]),
        threshold=args.confidence_threshold,
        host=host,
        port=port,
    ) as address:
        reach = "only this machine" if host in (HOST, "localhost") else "whoever reaches that port"
        print_result(f"{address} can be used by {reach}; Ctrl-C ends it")
        main_thread.work()


def _place(args: argparse.Namespace) -> tuple[str, int]:
    return args.host or HOST, PORT if args.port is None else args.port


def _examples(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    if not folder.is_dir():
        raise ValueError(f"--examples {folder}: expected a folder of pictures")
    return [folder / name for name in names_below(folder, None, [])[:MAX_EXAMPLES]]


def free_port(host: str, port: int) -> int:
    """Return a port at which a server can listen: the given one, or any for 0.

    Raises:
        ValueError: If the port is taken, or there is no such host or port on this machine.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port: expected a number from 0 to 65535, got {port}")
    try:
        ((family, _, _, _, address), *_) = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ValueError(f"--host: expected a name or an address, got {host!r}") from error
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen()
        except OSError as error:
            raise ValueError(
                f"--host {host} --port {port} cannot be used: {error.strerror}; another --port, "
                "or --port 0 for any that is free"
            ) from error
        return int(probe.getsockname()[1])


@contextmanager
def only_local(folder: Path) -> Iterator[None]:
    """Keep Gradio from the network and from other folders.

    Args:
        folder: Folder of uploads and results.
    """
    import_gradio()
    import gradio.processing_utils
    import gradio.routes

    former = {name: value for name, value in os.environ.items() if name.startswith("GRADIO_")}
    former |= {name: os.environ[name] for name in ("NO_PROXY", "no_proxy") if name in os.environ}
    for name in former:
        del os.environ[name]
    own = {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
        "NO_PROXY": LOCAL,
    }
    os.environ.update(own)
    fetching = [(getattr(gradio, module), name) for module, name in FETCHING]
    originals = [getattr(module, name) for module, name in fetching]
    for module, name in fetching:
        setattr(module, name, _refuse)
    try:
        yield
    finally:
        for (module, name), original in zip(fetching, originals, strict=True):
            setattr(module, name, original)
        for name in own:
            os.environ.pop(name, None)
        os.environ.update(former)


def _checks_of_names(host: str) -> list[Any]:
    """Let a page of this machine answer by its own names alone.

    Otherwise a site could give its name the address of this machine, and read the page.
    """
    if host not in LOCAL.split(","):
        return []
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return [Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL.split(","))]


async def _refuse(*_: Any, **__: Any) -> Any:
    from fastapi import HTTPException

    raise HTTPException(403, "Addresses are not fetched: upload a file.")


@contextmanager
def served(
    predictor: Predictor,
    main_thread: MainThread,
    *,
    examples: Sequence[Path] = (),
    title: str,
    threshold: float = 0.5,
    host: str = HOST,
    port: int = PORT,
) -> Iterator[str]:
    """Serve the page from other threads inside a block.

    Args:
        predictor: The model, whose score threshold is the lowest of the page.
        main_thread: Runs the model, by its method `work`, in the thread that calls this.
        examples, title, threshold: As of :func:`build_page`.
        host: Name or address of this machine at which it listens.
        port: A port; 0 for any that is free.

    Yields:
        The address of the page.

    Raises:
        ValueError: If the port is taken, Gradio is missing, or the model renders nothing.
    """
    port = free_port(host, port)
    with tempfile.TemporaryDirectory(prefix="pointrend-page-") as folder, only_local(Path(folder)):
        page = build_page(
            Scenes(predictor), examples, title=title, threshold=threshold, call=main_thread.call
        )
        gr = import_gradio()
        theme = gr.themes.Default(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        )
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            footer_links=[],
            run_history=False,
            root_path="",
            max_file_size=MAX_UPLOAD,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=theme,
            css=STYLE,
            app_kwargs={"middleware": _checks_of_names(host)},
        )
        try:
            yield address
        finally:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            page.server.force_exit = True  # without waiting for the pages that are open
            page.close(verbose=False)
