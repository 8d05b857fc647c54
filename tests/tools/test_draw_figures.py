"""The figures of docs/HOW_IT_WORKS.md and the command that draws them."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from point_rend import StandardPointHead
from point_rend.cli import visualize
from tests.conftest import REPOSITORY
from tests.tiny_datasets import load_script

draw_figures = load_script("tools/dev/draw_figures.py")

PAGE = REPOSITORY / "docs" / "HOW_IT_WORKS.md"
FOLDER = REPOSITORY / "docs" / "images" / "how_it_works"
PICTURES = {f"{name}.png" for name in visualize.FIGURES}
SVG = "{http://www.w3.org/2000/svg}"


def test_the_page_shows_every_figure_that_the_command_draws_and_each_is_small():
    shown = set(re.findall(r"\]\(images/how_it_works/([^)]+)\)", PAGE.read_text(encoding="utf-8")))
    assert shown == PICTURES | {"point-head.svg"} == {file.name for file in FOLDER.iterdir()}
    for file in FOLDER.iterdir():
        assert file.stat().st_size < 120_000, file.name


def test_the_diagram_of_the_page_is_the_one_that_the_command_draws():
    drawn = draw_figures.published_diagram()
    assert (FOLDER / "point-head.svg").read_text(encoding="utf-8") == drawn


def test_a_diagram_shows_the_widths_of_all_layers_on_an_opaque_card():
    head = StandardPointHead(in_channels=30, coarse_channels=4, num_classes=3, fc_dim=20, num_fc=2)
    root = ElementTree.fromstring(draw_figures.point_head_diagram(head, 5))
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert [x for x in words if "→" in x] == ["34 → 20", "24 → 20", "24 → 3"]
    assert [x for x in words if "+" in x] == ["30 + 4", "20 + 4", "20 + 4"]
    assert "coarse, 5×5" in words
    card, width, height = next(root.iter(f"{SVG}rect")), *draw_figures.SIZE
    assert card.get("fill") == "#ffffff"
    assert (card.get("width"), card.get("height")) == (f"{width - 1}", f"{height - 1}")


def test_pictures_keep_their_look_in_a_palette(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    picture = np.stack(np.meshgrid(ramp, ramp), axis=-1)
    picture = np.concatenate((picture, np.full((64, 64, 1), 90, np.uint8)), axis=-1)
    demo = tmp_path / "demo"
    weights = demo / "pointrend" / "model_final.pth"

    def draw(arguments: Sequence[str]) -> list[Path]:
        values = dict(itertools.pairwise(arguments))
        assert values["--input"] == str(demo / "shapes" / "val" / draw_figures.PHOTOGRAPH)
        assert values["--config-file"] == str(weights.with_name("config.yaml"))
        assert values["MODEL.WEIGHTS"] == str(weights)
        file = Path(values["--output"]) / "steps.png"
        Image.fromarray(picture).save(file)
        return [file]

    monkeypatch.setattr(visualize, "main", draw)
    weights.parent.mkdir(parents=True)
    weights.touch()
    arguments = ["--demo", str(demo), "--output", str(tmp_path / "figures")]
    files = draw_figures.main(arguments)
    assert files == [tmp_path / "figures" / name for name in ("steps.png", "point-head.svg")]
    with Image.open(files[0]) as drawn:
        assert drawn.mode == "P"
        difference = np.abs(np.asarray(drawn.convert("RGB"), dtype=int) - picture)
    assert difference.mean() < 8
    assert {file.name for file in files[0].parent.iterdir()} == {"steps.png", "point-head.svg"}


def test_a_demo_that_has_not_run_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as raised:
        draw_figures.main(["--demo", str(tmp_path), "--output", str(tmp_path / "figures")])
    assert raised.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "model_final.pth is missing: run `pointrend demo` first" in message
    assert not (tmp_path / "figures").exists()


def test_an_output_that_is_a_file_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    weights = tmp_path / "pointrend" / "model_final.pth"
    weights.parent.mkdir()
    weights.touch()
    monkeypatch.setattr(draw_figures, "draw_pictures", None)
    with pytest.raises(SystemExit) as raised:
        draw_figures.main(["--demo", str(tmp_path), "--output", str(weights)])
    assert raised.value.code == 2
    assert f"--output {weights} cannot be written: " in capsys.readouterr().err
