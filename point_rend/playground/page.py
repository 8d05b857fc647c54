"""The page in Gradio: controls, and the functions that they call."""

import html
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from point_rend.playground.choice import Choice, Pair, Shown, show
from point_rend.playground.scenes import Scenes
from point_rend.utils.errors import shortened
from point_rend.utils.imports import not_installed
from point_rend.utils.pictures import PictureError

logger = logging.getLogger(__name__)

LOWEST_SCORE = 0.05  # of the threshold's slider
MAX_WAITING = 32  # requests; further ones are refused
KEPT_SECONDS = 3600  # for which uploads and results remain on the disk
CLEAN_SECONDS = 300
FORMAT = "webp"  # of the pictures
NO_PICTURE = "Drop a photograph, paste one, or click an example."
TITLE = "PointRend"

STYLE = """
.gradio-container {
  width: 100% !important; min-width: 0 !important; max-width: 1560px !important;
  margin: 0 auto !important;
}
#head { padding: 0; }
#head h1 { margin: 0; font-size: 1.6rem; font-weight: 700; }
#head p { margin: .15rem 0 0; opacity: .8; }
#message, #caption { padding: 0 2px; }
#caption { min-height: 1.5em; }
#message .error { color: #b91c1c; font-weight: 600; }
.dark #message .error { color: #fca5a5; }
footer { display: none !important; }
"""

Kept = tuple[list[int], int | None]  # keys of the rows, and of the enlarged one
NOTHING_KEPT: Kept = ([], None)
Call = Callable[..., Any]  # call(function, *arguments), in the thread that may run the model


def import_gradio() -> Any:
    """Import Gradio.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise not_installed("gradio", "page") from error
    return gradio


def build_page(
    scenes: Scenes, examples: Sequence[Path], *, title: str, threshold: float, call: Call
) -> Any:
    """Build the page.

    Args:
        scenes: The pictures and the model.
        examples: Files of pictures to click; the first one is shown at the beginning.
        title: Name of the model.
        threshold: Lowest score of an instance, at the beginning.
        call: Runs a function in the thread that may run the model: `call(function, *arguments)`.

    Returns:
        Gradio's `Blocks`, not yet launched.
    """
    gr = import_gradio()
    from gradio import SelectData  # Gradio finds it by its type
    from gradio.utils import get_upload_folder

    has_scores = "instances" in scenes.kinds
    files = [str(path.resolve()) for path in examples]
    uploads = get_upload_folder()
    gr.set_static_paths(files)
    with gr.Blocks(
        title=TITLE,
        analytics_enabled=False,
        delete_cache=(CLEAN_SECONDS, KEPT_SECONDS),
        fill_width=True,
    ) as page:
        gr.HTML(
            f"<h1>{TITLE}</h1><p>Image segmentation as rendering · {html.escape(title)}</p>",
            elem_id="head",
            padding=False,
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=240):
                photo = gr.Image(
                    files[0] if files else None,
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    label="Photograph",
                    height=240,
                    buttons=[],
                    elem_id="photo",
                )
                message = gr.HTML(NO_PICTURE, elem_id="message", padding=False)
                layer = gr.Radio(
                    scenes.kinds,
                    value=scenes.kinds[0],
                    label="Show",
                    visible=len(scenes.kinds) > 1,
                    elem_id="layer",
                )
                score = gr.Slider(
                    LOWEST_SCORE,
                    1,
                    max(threshold, LOWEST_SCORE),
                    step=0.01,
                    label="Lowest score",
                    visible=has_scores,
                    buttons=[],
                    elem_id="score",
                )
                classes = gr.Dropdown(
                    scenes.classes(),
                    value=[],
                    multiselect=True,
                    label="Classes (all if none is chosen)",
                    elem_id="classes",
                )
                if files:
                    gr.Examples(files, photo, label="Examples")
            with gr.Column(scale=7, min_width=280):
                with gr.Row():
                    step = gr.Slider(
                        1,
                        2,
                        1,
                        step=1,
                        label="Step of the rendering, on the left",
                        buttons=[],
                        scale=4,
                        elem_id="step",
                    )
                    points = gr.Checkbox(
                        True, label="Points of the step", scale=1, min_width=160, elem_id="points"
                    )
                caption = gr.HTML(elem_id="caption", padding=False)
                with gr.Row():
                    whole, closeup = (
                        gr.ImageSlider(
                            label=f"{label}: step | rendered",
                            format=FORMAT,
                            interactive=False,
                            max_height=560,
                            min_width=300,
                            buttons=["fullscreen"],
                            elem_id=name,
                        )
                        for name, label in (("whole", "Picture"), ("closeup", "Close-up"))
                    )
                table = gr.Dataframe(
                    headers=["#", "class", "score", "share of the picture"],
                    datatype=["number", "str", "str", "str"],
                    interactive=False,
                    label="Click a row to enlarge it",
                    max_height=300,
                    buttons=[],
                    elem_id="table",
                )
        kept = gr.State(NOTHING_KEPT)

        controls = [kept, photo, layer, step, score, classes, points]
        results = [message, caption, whole, closeup, table, kept]

        def results_for(kept: Kept, photo: Any, *values: Any) -> tuple[list[Any], Shown | None]:
            # Gradio checks the paths of some forms of requests alone.
            if photo and not _is_readable(photo, uploads, files):
                return _nothing(_fault("This file is no upload and no example.")), None
            return _results(scenes, call, kept, photo, *values)

        def update(*values: Any) -> list[Any]:
            return results_for(*values)[0]

        def opened(_: Any, photo: Any, *values: Any) -> list[Any]:
            if not photo:  # after a fault, too, whose message remains
                return [gr.skip(), *_nothing("")[1:], gr.skip(), gr.skip()]
            found, shown = results_for(NOTHING_KEPT, photo, *values)
            if shown is None:
                return [*found, gr.skip(), None]
            slider = gr.Slider(maximum=max(2, len(shown.steps)), value=shown.step + 1)
            return [*found, slider, gr.skip()]

        def selected(event: SelectData, kept: Kept, *values: Any) -> list[Any]:
            keys, _ = kept
            chosen = keys[int(event.row_value[0]) - 1]
            return results_for((keys, chosen), *values)[0]

        # Without preprocessing, Gradio opens no files.
        shared: dict[str, Any] = {
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "preprocess": False,
            "api_visibility": "private",
        }
        everything = [*results, step, photo]
        photo.change(opened, controls, everything, show_progress_on=[whole], **shared)
        photo.clear(lambda: NO_PICTURE, None, message, queue=False, api_visibility="private")
        page.load(opened, controls, everything, show_progress_on=[whole], **shared)
        table.select(selected, controls, results, show_progress="hidden", **shared)
        changes = [x.change for x in (layer, step, score, classes, points)]
        gr.on(
            changes,
            update,
            controls,
            results,
            show_progress="hidden",
            trigger_mode="always_last",
            **shared,
        )
    page.queue(max_size=MAX_WAITING)
    return page


def _is_readable(photo: Any, folder: str, files: Sequence[str]) -> bool:
    """Return whether a file that a request names lies in a folder or is one of some files."""
    name = photo.get("path") if isinstance(photo, Mapping) else None
    if not isinstance(name, str) or "\0" in name:
        return False
    path = os.path.realpath(name)
    return path in files or path.startswith(os.path.join(os.path.realpath(folder), ""))


def _results(
    scenes: Scenes,
    call: Call,
    kept: Kept,
    photo: Mapping[str, Any] | None,
    layer: str,
    step: float,
    score: float,
    classes: Sequence[str],
    points: bool,
) -> tuple[list[Any], Shown | None]:
    """Return the message, caption, pictures, table and kept keys for the values of the controls."""
    if not photo:
        return _nothing(NO_PICTURE), None
    choice = Choice(layer, int(step) - 1, float(score), classes or (), bool(points), kept[1])
    start = time.monotonic()
    try:
        shown = call(_segment_and_show, scenes, photo["path"], choice)
    except PictureError as error:
        return _nothing(_fault(f"This file {error.fault}.")), None
    except Exception as error:
        logger.exception("the page could not show a picture")
        reason = shortened(" ".join(str(error).split()) or type(error).__name__)
        return _nothing(_fault(f"This picture cannot be segmented: {reason}")), None
    table = [
        [i, row.name, "" if row.score is None else f"{row.score:.0%}", f"{row.share:.1%}"]
        for i, row in enumerate(shown.rows, start=1)
    ]
    found = [
        _message(shown, time.monotonic() - start),
        _caption(shown),
        _rgb(shown.whole),
        _rgb(shown.closeup),
        table,
        ([row.key for row in shown.rows], None if shown.enlarged is None else shown.enlarged.key),
    ]
    return found, shown


def _nothing(message: str) -> list[Any]:
    return [message, "", None, None, [], NOTHING_KEPT]


def _segment_and_show(scenes: Scenes, path: str, choice: Choice) -> Shown:
    return show(scenes.of(path), choice)


def _message(shown: Shown, seconds: float) -> str:
    count = len(shown.rows)
    return f"{count} of {count + shown.hidden} segments shown · {seconds:.1f} s"


def _caption(shown: Shown) -> str:
    if not shown.steps:
        return "The model finds nothing in this picture."
    text = (
        f"Left: step {shown.step + 1} of {len(shown.steps)}, <b>{shown.steps[shown.step]}</b>. "
        "Right: rendered."
    )
    if shown.enlarged is not None:
        score = "" if shown.enlarged.score is None else f" {shown.enlarged.score:.0%}"
        text += f" Enlarged: <b>{html.escape(shown.enlarged.name)}{score}</b>."
    return text


def _fault(text: str) -> str:
    return f'<span class="error">{html.escape(text)}</span>'


def _rgb(pair: Pair | None) -> Any:
    return None if pair is None else tuple(picture[:, :, ::-1] for picture in pair)
