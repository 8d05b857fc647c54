"""Names in any script, drawn with planted fonts whose glyphs are known rectangles."""

import logging
import os
import time
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from point_rend.inference.outputs import Results
from point_rend.visualization import fonts
from point_rend.visualization.drawing import write_names
from point_rend.visualization.fonts import VARIABLE, clusters, families, legible, line_of
from point_rend.visualization.layout import Panel, save_figure, side_by_side
from point_rend.visualization.predictions import draw

DEJAVU = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
DEJAVU_CODES = set(FT2Font(DEJAVU).get_charmap())
# Glyphs as left, bottom, right and top in 1000ths of the font's size, and their width with spaces.
FULL, LEFT, LOW, WIDTH = (100, 0, 1100, 800), (100, 0, 500, 800), (100, 0, 1100, 200), 1200
GAP = (100, 0, 100, 0)
CJK = {"汽": FULL, "车": LEFT}
NOTE = "\U0001f6d7"  # a symbol that DejaVu lacks


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of fonts that are all that the machine has, besides DejaVu Sans."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    monkeypatch.delenv(VARIABLE, raising=False)
    caches = (fonts._font_book, fonts._coverage, fonts._font, fonts._line_of)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path / "fonts"
    for cache in caches:
        cache.cache_clear()


def plant(file: Path, glyphs: Mapping[str, tuple[int, int, int, int]]) -> Path:
    """Write a font of rectangles."""
    names = {ord(character): f"u{ord(character):X}" for character in glyphs}
    outlines = {".notdef": TTGlyphPen(None).glyph()}
    for character, (left, bottom, right, top) in glyphs.items():
        pen = TTGlyphPen(None)
        pen.moveTo((left, bottom))
        for corner in ((left, top), (right, top), (right, bottom)):
            pen.lineTo(corner)
        pen.closePath()
        outlines[names[ord(character)]] = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(outlines))
    builder.setupCharacterMap(names)
    builder.setupGlyf(outlines)
    builder.setupHorizontalMetrics(dict.fromkeys(outlines, (WIDTH, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": file.stem, "styleName": "Regular", "psName": file.stem})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    file.parent.mkdir(parents=True, exist_ok=True)
    builder.save(file)
    return file


def drawn(text: str, size: float = 50, width: int = 400) -> np.ndarray:
    """Draw white on black, without an outline, (100, W) uint8."""
    picture = Image.new("L", (width, 100))
    line_of(text, size).draw(ImageDraw.Draw(picture), (width / 2, 50), "white")
    return np.asarray(picture)


def shapes(picture: np.ndarray) -> list[tuple[int, ...]]:
    """Left, top, width and height of the separate white shapes, from left to right."""
    boxes = cv2.connectedComponentsWithStats((picture > 127).astype(np.uint8))[2]
    return sorted(tuple(box[:4]) for box in boxes[1:].tolist())


def parts(picture: np.ndarray) -> list[tuple[int, ...]]:
    """Widths and heights of the separate white shapes, from left to right."""
    return [shape[2:] for shape in shapes(picture)]


# --- fonts ----------------------------------------------------------------------------------------


def test_the_glyphs_of_a_font_of_the_machine_are_drawn(folder: Path) -> None:
    plant(folder / "deeper" / "Planted.ttf", CJK)
    picture = drawn("车汽")
    expected = np.zeros_like(picture)
    expected[25:65, 145:165] = expected[25:65, 205:255] = 255  # centered, on one baseline
    assert (cv2.absdiff(picture, expected) > 127).sum() <= 2 * 40  # half a pixel of the height
    assert parts(picture) == [(20, 40), (50, 40)]


def test_every_picture_with_names_has_the_glyphs(folder: Path, tmp_path: Path) -> None:
    plant(folder / "Planted.ttf", CJK)
    black = np.zeros((900, 900, 3), dtype=np.uint8)  # the largest names: 30 pixels
    mask = np.ones((1, 900, 900), dtype=bool)
    named = write_names(black, mask, ["汽"])
    assert parts(named[:, :, 0]) == [(30, 24)]
    titled = side_by_side([black], ["汽"])[:50]
    assert parts(255 - titled[:, :, 0]) == [(34, 27)]  # 0.6 of 56 pixels
    save_figure(tmp_path / "figure.svg", [[Panel(black, "汽 $5$ input")]])
    text = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert "Planted-" in text
    assert "DejaVuSans-" in text
    assert "LastResort" not in text
    assert families("input") == ["DejaVu Sans"]


def test_ascii_and_other_letters_of_dejavu_are_drawn_as_ever(folder: Path) -> None:
    """To the pixel as by Pillow alone, whatever other fonts there are."""
    plant(folder / "Planted.ttf", {"a": FULL, "б": FULL, "9": FULL})
    font = ImageFont.truetype(DEJAVU, 30)
    black = np.zeros((900, 900, 3), dtype=np.uint8)
    for name in ("balloon 95%", "a/b_c-9", "×β машина", "Å"):
        expected = Image.fromarray(black)
        ImageDraw.Draw(expected).text(
            *((449.0, 449.0), name, "white"),
            font=font,
            anchor="mm",
            stroke_width=2,
            stroke_fill="black",
        )
        mask = np.zeros((1, 900, 900), dtype=bool)
        mask[:, 448:451, 448:451] = True
        np.testing.assert_array_equal(write_names(black, mask, [name]), np.asarray(expected))


def test_a_text_that_one_font_has_is_drawn_in_that_font(folder: Path) -> None:
    plant(folder / "A.ttf", {"汽": FULL})
    plant(folder / "B.ttf", {**CJK, " ": GAP, "9": LOW})
    assert parts(drawn("汽车 9")) == [(50, 40), (20, 40), (50, 10)]


def test_a_text_that_no_font_has_alone_is_drawn_in_several_on_one_baseline(folder: Path) -> None:
    plant(folder / "A.ttf", {"汽": FULL})
    plant(folder / "B.ttf", {"车": LEFT})
    picture = drawn("汽车H")
    assert parts(picture)[:2] == [(50, 40), (20, 40)]
    np.testing.assert_allclose(parts(picture)[2], parts(drawn("H"))[0], atol=1)
    assert np.ptp([top + height for _, top, _, height in shapes(picture)]) <= 1


def test_plain_styles_come_before_others_and_the_fonts_of_the_user_before_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(folder / "A-Bold.ttf", {"汽": LEFT})
    plant(folder / "A-Serif.ttf", {"汽": LEFT})
    plant(folder / "NotoColorEmoji.ttf", {"汽": LEFT})
    plant(folder / "Z-Regular.ttf", {"汽": FULL})
    assert parts(drawn("汽")) == [(50, 40)]
    own = plant(folder.parent / "own" / "mine.ttf", {"汽": LOW, "a": LOW})
    for value in (str(own), str(own.parent), f"{own}{os.pathsep}{folder}"):
        monkeypatch.setenv(VARIABLE, value)
        assert parts(drawn("汽")) == [(50, 10)]
        assert parts(drawn("a")) == [(50, 10)]
        assert parts(drawn("b")) != [(50, 10)]


def test_a_font_of_the_user_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "/no/such.ttf")
    with pytest.raises(ValueError, match=f"{VARIABLE}: there is no file or folder '/no/such.ttf'"):
        legible("汽")
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    monkeypatch.setenv(VARIABLE, str(broken))
    with pytest.raises(ValueError, match=r"broken\.ttf' is no outline font"):
        line_of("汽", 20)


@pytest.mark.parametrize("kind", ["pipe", "device", "terabytes"])
def test_a_font_without_end_is_named_and_not_read(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.ttf"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        file.touch()
        os.truncate(file, 1 << 40)
    monkeypatch.setenv(VARIABLE, str(file))
    with pytest.raises(ValueError, match=r"a\.ttf' is no outline font"):
        legible("é")
    monkeypatch.delenv(VARIABLE)
    folder.mkdir()
    os.symlink(file, folder / "a.ttf")
    assert legible("汽") == "U+6C7D"


def test_a_folder_of_far_too_many_files_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "many").mkdir(exist_ok=True)
        (tmp_path / "many" / name).touch()
    monkeypatch.setattr(fonts, "MAX_FILES", 2)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "many"))
    with pytest.raises(ValueError, match="many' has more than 2 files: expected a folder of fonts"):
        legible("é")


@pytest.mark.parametrize("name", ["x" * 10**7, "\u0301" * 10**7, " " * 10**7, "é" * 10**7])
def test_a_name_of_megabytes_takes_no_time(name: str) -> None:
    start = time.process_time()
    assert len(legible(name)) <= 4 * fonts.LONGEST
    assert line_of(name, 18, 200).width <= 200
    assert time.process_time() - start < 2


def test_predictions_that_draw_no_pictures_need_no_font(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = Metadata(name="m", thing_classes=["a"], thing_dataset_id_to_contiguous_id={1: 0})
    monkeypatch.setenv(VARIABLE, "/no/such.ttf")
    Results(metadata, ["coco", "masks"])
    with pytest.raises(ValueError, match=f"{VARIABLE}: there is no file or folder '/no/such.ttf'"):
        Results(metadata, ["coco", "pictures"])


def test_files_that_are_no_fonts_are_passed_over(folder: Path) -> None:
    font = plant(folder / "Z.ttf", CJK)
    (folder / "A.ttf").write_bytes(b"no font")
    (folder / "B.ttc").write_bytes(font.read_bytes()[:200])
    (folder / "C.otf").mkdir()
    assert parts(drawn("汽")) == [(50, 40)]


# --- stand-ins ------------------------------------------------------------------------------------


def test_letters_without_a_font_become_code_points_and_symbols_are_left_out() -> None:
    assert legible("汽车 95%") == "U+6C7D U+8F66 95%"
    assert legible("car汽s") == "car U+6C7D s"
    assert legible(f"car {NOTE} 5%") == "car 5%"
    assert legible(f"{NOTE}\u200d{NOTE}\ufe0f", "class 4") == "class 4"
    np.testing.assert_array_equal(drawn("汽", 20), drawn("U+6C7D", 20))


def test_a_name_without_a_font_is_drawn_as_the_number_of_its_class() -> None:
    image = np.full((90, 120, 3), 60, dtype=np.uint8)
    fields = {
        "pred_boxes": Boxes(torch.tensor([[0, 0, 120, 90]])),
        "scores": torch.tensor([0.95]),
        "pred_classes": torch.tensor([1]),
        "pred_masks": torch.ones(1, 90, 120, dtype=torch.bool),
    }
    output = {"instances": Instances((90, 120), **fields)}

    def picture(*names: str) -> np.ndarray:
        colors = [(9, 9, 9), (200, 0, 0)]
        metadata = Metadata(name="m", thing_classes=list(names), thing_colors=colors)
        return draw(image, output, metadata, by_class=False)

    np.testing.assert_array_equal(picture("a", "汽车"), picture("a", "class 1"))
    np.testing.assert_array_equal(picture("a", "car 汽"), picture("a", "class 1"))
    np.testing.assert_array_equal(picture("a", f"car {NOTE}"), picture("a", "car"))
    assert (picture("a", "") != picture("a", "b")).any()


def test_no_font_means_one_warning_for_each_script(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for text in ("汽车", "ひ", "한", "汽", "गाड़ी", "गा", NOTE, "\ue000", "car", "سيارة"):
            legible(text)
    lines = [record.getMessage() for record in caplog.records]
    for line, (what, package) in zip(
        lines,
        [
            ("CJK letters of '汽车'", "Noto Sans CJK (Debian, Ubuntu: fonts-noto-cjk)"),
            (
                "Devanagari letters of 'गाड़ी'",
                "Noto Sans Devanagari (Debian, Ubuntu: fonts-noto-core)",
            ),
            ("symbols of", "fonts-symbola"),
            ("unassigned characters of", "the font that they are made for"),
        ],
        strict=True,
    ):
        assert what in line
        assert package in line
        assert "\n" not in line
        assert VARIABLE in line


SAMPLES = (
    "汽车 自動車 자동차 ひこうき سيارة مردم רכב गाड़ी หมี বাঘ மயில் አንበሳ ཁྱི ລາວ Ångström Å é ﷽ "
    "😀 🚗 👨‍👩‍👧 🏳️‍🌈 ☃️ 👍🏽 ½ ∑ ⟨⟩ \ue000 \U0010ffff \ud800 \x00 \x1b[31m \u202e \u2066 "
    "\t\n\r\u2028 a\u0301\u0302\u0303"
)


def test_only_characters_with_a_glyph_are_ever_drawn() -> None:
    for text in (SAMPLES, *SAMPLES.split(" "), *SAMPLES):
        shown = legible(text)
        invisible = "\u200c\u200d" + "".join(map(chr, range(0xFE00, 0xFE10)))
        assert {ord(x) for x in shown if x not in invisible} <= DEJAVU_CODES
        assert "  " not in shown
        assert not any(unicodedata.category(x) in ("Cc", "Cs", "Zl") for x in shown)
        drawn(text, 12)


def test_one_line_of_bounded_width_whatever_the_name(folder: Path) -> None:
    plant(folder / "Planted.ttf", CJK)
    assert legible(" a\tb\r\nc\x07 ") == "a b c"
    assert legible("e\u0301") == "é"
    for text in ("x" * 500, "x" * 100_000, "汽" * 400, "wide name " * 30, "a" + "\u0301" * 9**5):
        line = line_of(f"{text} 95%", 20, 200)
        assert line.width <= 200
        black = np.zeros((60, 200, 3), dtype=np.uint8)
        picture = write_names(black, np.ones((1, 60, 200), dtype=bool), [f"{text} 95%"])
        assert picture.any()
    assert fonts._without_middle([*"a name 95%"], 8) == "a name…5%"


def test_accents_and_joined_characters_stay_with_their_character() -> None:
    assert clusters("ae\u0301\u0302b") == ["a", "e\u0301\u0302", "b"]
    assert clusters("👨‍👩‍👧👍🏽☃️x") == ["👨‍👩‍👧", "👍🏽", "☃️", "x"]
    assert clusters("") == []


# --- from right to left ---------------------------------------------------------------------------


@pytest.mark.parametrize("shaping", [True, False])
def test_words_from_right_to_left_are_in_their_order(
    shaping: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without Raqm, in one font and in several."""
    if not shaping:
        monkeypatch.setattr(fonts, "_shapes", lambda: False)
    elif not fonts._shapes():
        pytest.skip("Pillow has no Raqm here")
    hebrew = {"א": LEFT, "ב": LOW, "1": FULL, "%": LEFT, " ": GAP, "a": LOW, "b": FULL, "ד": FULL}
    monkeypatch.setenv(VARIABLE, str(plant(folder.parent / "own.ttf", hebrew)))
    plant(folder / "Planted.ttf", CJK)
    left, low, full = (20, 40), (50, 10), (50, 40)
    assert parts(drawn("אב")) == [low, left]
    assert parts(drawn("א1 ב")) == [low, full, left]
    assert parts(drawn("אב 1%")) == [full, left, low, left]
    assert parts(drawn("b אב")) == [full, low, left]
    assert parts(drawn("א bא ב")) == [low, left, full, left]
    assert parts(drawn("车 אב")) == [left, low, left]
    assert parts(drawn("אב 汽车")) == [full, left, low, left]


def test_unjoined_letters_are_a_warning_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "_shapes", lambda: False)
    with caplog.at_level(logging.WARNING):
        for text in ("سيارة", "مردم", "car", "רכב"):
            assert drawn(text, 20).any()
    (record,) = caplog.records
    assert "letters of 'سيارة' and others unjoined: install FriBiDi" in record.getMessage()


@pytest.mark.skipif(not fonts._shapes(), reason="Pillow has no Raqm here")
def test_arabic_letters_are_joined() -> None:
    """As in the shaped font of Pillow alone; on its own, a letter has another form."""
    picture = Image.new("L", (400, 100))
    font = ImageFont.truetype(DEJAVU, 50, layout_engine=ImageFont.Layout.RAQM)
    ImageDraw.Draw(picture).text((200, 50), "سيارة", "white", font=font, anchor="mm")
    expected = np.asarray(picture)
    found = drawn("سيارة")
    assert len(parts(found)) == len(parts(expected))
    difference = min(
        np.abs(np.roll(found, (dy, dx), (0, 1)).astype(int) - expected).mean()
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    )
    assert difference < 1
