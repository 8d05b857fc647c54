#!/usr/bin/env python
"""Draw the figures of docs/HOW_IT_WORKS.md: masks of the demo's model, and a diagram.

    make demo
    python tools/dev/draw_figures.py --demo output/demo --output docs/images/how_it_works

The pictures are those of `pointrend visualize` for one object of the demo's validation images, with
a palette to keep the files small. The diagram of the point head shows the layers that the published
config builds; it needs no trained model.
"""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from point_rend.cli import visualize
from point_rend.utils.errors import user_errors
from point_rend.utils.files import atomic_file, check_output, write_text

if TYPE_CHECKING:
    from point_rend import StandardPointHead

CONFIG = "InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml"
PHOTOGRAPH, INSTANCE = "000005.jpg", 1
PANEL_SIDE = 224
NUM_COLORS = 256

INK, FINE, COARSE = "#1f2328", "#3b82c4", "#e08a1e"
PIXELS_PER_CHANNEL = 0.36
SIZE = (920, 270)
TOP, FIRST, SPACING, BAR = 62, 232, 148, 26  # of the columns of bars, in pixels


def rectangle(x: float, y: float, width: float, height: float, color: str) -> str:
    """Return a filled rectangle as SVG."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{color}" '
        f'stroke="{INK}" stroke-width="0.8"/>'
    )


def text(x: float, y: float, words: str, *, anchor: str = "middle", size: int = 13) -> str:
    """Return a line of text as SVG."""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}">{words}</text>'


def arrow(*corners: tuple[float, float]) -> str:
    """Return an arrow through some corners as SVG."""
    path = " L".join(f"{x:g} {y:g}" for x, y in corners)
    return (
        f'<path d="M{path}" fill="none" stroke="{INK}" stroke-width="1.6" marker-end="url(#head)"/>'
    )


def grid(x: float, y: float, cells: int, side: float, color: str) -> list[str]:
    """Return a grid of cells with a point in it as SVG."""
    lines = [rectangle(x, y, side, side, color)]
    for i in range(1, cells):
        place = i * side / cells
        lines.append(
            f'<path d="M{x + place:.4g} {y:g} v{side:g} M{x:g} {y + place:.4g} h{side:g}" '
            'stroke="white" stroke-width="0.7"/>'
        )
    dot = f'cx="{x + 0.62 * side:g}" cy="{y + 0.42 * side:g}" r="4"'
    return [*lines, f'<circle {dot} fill="#d1242f" stroke="white" stroke-width="1.2"/>']


def point_head_diagram(head: "StandardPointHead", coarse_side: int) -> str:
    """Draw the layers of a point head: one bar per vector, as high as its number of channels.

    Args:
        head: A head in which all layers take the coarse prediction.
        coarse_side: Side of the coarse prediction, in cells.

    Returns:
        SVG with a light background, which is legible on any page.
    """
    width, height = SIZE
    layers, coarse = [*head.hidden_layers, head.predictor], head.coarse_channels
    rail = height - 34  # y of the line from the coarse prediction to all layers
    parts = [rectangle(0.5, 0.5, width - 1, height - 1, "#ffffff")]
    parts += grid(28, 40, 14, 78, FINE) + grid(28, 158, coarse_side, 78, COARSE)
    parts += [text(67, 30, "feature map"), text(67, 148, f"coarse, {coarse_side}×{coarse_side}")]
    for i, layer in enumerate(layers):
        x, channels = FIRST + i * SPACING, layer.in_channels - coarse
        fine_height, coarse_height = (PIXELS_PER_CHANNEL * n for n in (channels, coarse))
        middle = TOP + fine_height / 2
        parts.append(rectangle(x, TOP, BAR, fine_height, FINE))
        parts.append(rectangle(x, TOP + fine_height, BAR, coarse_height, COARSE))
        parts.append(text(x + BAR / 2, TOP - 10, f"{channels} + {coarse}"))
        parts.append(
            arrow((x + BAR / 2, rail), (x + BAR / 2, TOP + fine_height + coarse_height + 3))
        )
        is_last = i == len(layers) - 1
        name = "linear" if is_last else "linear, ReLU"
        center = x + (BAR + SPACING) / 2
        parts.append(arrow((x + BAR + 5, middle), (x + SPACING - 6, middle)))
        parts.append(text(center, middle - 9, name, size=12))
        parts.append(text(center, middle + 18, f"{layer.in_channels} → {layer.out_channels}"))
    last = FIRST + len(layers) * SPACING
    logits = PIXELS_PER_CHANNEL * head.predictor.out_channels
    middle = TOP + PIXELS_PER_CHANNEL * head.predictor.in_channels / 2
    parts.append(rectangle(last, middle - logits / 2, BAR, logits, COARSE))
    parts.append(text(last + BAR / 2, middle - logits / 2 - 10, f"{head.predictor.out_channels}"))
    parts.append(text(last + BAR / 2, middle + logits / 2 + 18, "logits"))
    parts.append(arrow((112, 79), (FIRST - 6, 79)))
    parts.append(text(167, 70, "read at the point", size=12))
    parts.append(f'<path d="M112 {rail:g} H{last - SPACING + BAR / 2:g}" stroke="{INK}"/>')
    parts.append(text(167, rail - 9, "read at the point", size=12))
    parts.append(text(width - 24, rail + 22, "the same weights at every point", anchor="end"))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="system-ui, sans-serif" fill="{INK}" role="img" '
        'aria-label="The point head">\n'
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker>'
        f"</defs>\n{body}\n</svg>\n"
    )


def published_diagram() -> str:
    """Draw the point head of the published config."""
    from detectron2.layers import ShapeSpec

    from point_rend import StandardPointHead, get_config_file, load_config

    cfg = load_config(get_config_file(CONFIG))
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    cfg.MODEL.POINT_HEAD.NUM_CLASSES = num_classes
    head = StandardPointHead(cfg, ShapeSpec(channels=cfg.MODEL.FPN.OUT_CHANNELS))
    return point_head_diagram(head, cfg.MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION)


def draw_pictures(demo: Path, output: Path) -> list[Path]:
    """Write the pictures of the demo's model.

    Args:
        demo: Output folder of `pointrend demo`.
        output: Folder of the figures.

    Returns:
        The files written.
    """
    files = []
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            *("--config-file", str(demo / "pointrend" / "config.yaml")),
            *("--input", str(demo / "shapes" / "val" / PHOTOGRAPH), "--output", folder),
            *("--instance", str(INSTANCE), "--size", str(PANEL_SIDE), "--formats", "png"),
            *("--opts", "MODEL.WEIGHTS", str(demo / "pointrend" / "model_final.pth")),
        ]
        with contextlib.redirect_stdout(io.StringIO()):  # names of temporary files
            pictures = visualize.main(arguments)
        for drawn in pictures:
            with Image.open(drawn) as picture:
                small = picture.convert("RGB").quantize(NUM_COLORS, dither=Image.Dither.NONE)
            files.append(output / drawn.name)
            with atomic_file(files[-1]) as file:
                small.save(file, format="PNG", optimize=True)
    return files


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The files written.

    Raises:
        SystemExit: With code 2 after an error that the user can correct.
    """
    parser = argparse.ArgumentParser(description="Draw the figures of docs/HOW_IT_WORKS.md.")
    parser.add_argument(
        "--demo", type=Path, required=True, help="output folder of the demo: output/demo"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the figures")
    args = parser.parse_args(argv)
    with user_errors():
        weights = args.demo / "pointrend" / "model_final.pth"
        if not weights.is_file():
            raise FileNotFoundError(f"{weights} is missing: run `pointrend demo` first")
        check_output(args.output, folder=True)
    files = draw_pictures(args.demo, args.output)
    files.append(args.output / "point-head.svg")
    write_text(files[-1], published_diagram())
    print("\n".join(map(str, files)))
    return files


if __name__ == "__main__":
    main()
