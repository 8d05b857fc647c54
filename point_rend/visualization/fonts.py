"""Text in any script: a font that has its glyphs, and a legible stand-in if there is none.

DejaVu Sans, a part of Matplotlib, has the letters of Latin, Greek, Cyrillic, Arabic and Hebrew. The
fonts of the machine are searched for all others. Fonts of the user's come first: the environment
variable POINT_REND_FONT names a file, a folder, or several of these, separated as in PATH.

Pillow joins and orders letters with Raqm where it has it; without, words that are read from right
to left are in the right order, but letters are not joined.
"""

import contextlib
import functools
import itertools
import logging
import os
import stat
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ImageDraw, ImageFont, features

from point_rend.utils.errors import shorten

logger = logging.getLogger(__name__)

VARIABLE = "POINT_REND_FONT"
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
MAX_BYTES = 512 << 20  # of a font file; the largest ones, with all of CJK, have about 120 MB
MAX_FILES = 100_000  # in a folder of the user's
LONGEST = 300  # characters of a text that are drawn
MAX_LOOKED_AT = 16 * LONGEST  # characters that are laid out, of which most may not be drawn
ELLIPSIS = "…"
JOINERS = "\u200d\u200c"  # they join letters or keep them apart
VARIATIONS = range(0xFE00, 0xFE10)  # forms of the character before
SKIN_COLORS = range(0x1F3FB, 0x1F400)
RIGHT_TO_LEFT = ("R", "AL")  # classes of Unicode's bidirectional algorithm
# In the names of fonts that are taken last, as others with the same letters are plainer.
STYLES = (
    *("bold", "italic", "oblique", "light", "thin", "black", "heavy", "medium", "condensed"),
    *("serif", "mono", "kufi", "nastaliq", "looped", "unjoined", "display", "ui"),
)
# Fonts with a box or nothing for every character, and those in color, which are no outlines.
UNFIT = ("lastresort", "adobeblank", "coloremoji", "tofu")
CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO")
Place = tuple[float, float]


class FontBook:
    """Font files in the order of preference.

    Args:
        files: The files; those that cannot be read are passed over.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.files = files
        self._first: dict[str, str | None] = {}  # by characters that have been asked for
        self._warned: set[str] = set()

    def font_of(self, characters: str) -> str | None:
        """Return the first file that has glyphs for all characters."""
        if characters not in self._first:
            has_all = (file for file in self.files if _covers(file, characters))
            self._first[characters] = next(has_all, None)
        return self._first[characters]

    def split(self, text: str) -> list[tuple[str, str]]:
        """Divide a text into parts of one font each: one part if a single font has all.

        Args:
            text: Of characters that each have a font.

        Returns:
            The parts and the files of their fonts.
        """
        if _covers(self.files[0], _needed(text)):
            return [(text, self.files[0])] if text else []
        parts = []
        for cluster in clusters(text):
            font = self.font_of(_needed(cluster))
            if font is not None:
                parts.append((cluster, font))
            else:  # a letter with an accent that is in another font
                parts += [(x, self.font_of(_needed(x)) or self.files[0]) for x in cluster]
        for font in dict.fromkeys(font for _, font in parts):
            if _covers(font, _needed(text)):
                return [(text, font)]
        groups = itertools.groupby(parts, key=lambda part: part[1])
        return [("".join(x for x, _ in group), font) for font, group in groups]

    def warn_of_missing(self, character: str, text: str) -> None:
        """Warn, once for each script, that no font has a character of a text."""
        # The first word of a letter's name is its script.
        script = unicodedata.name(character, "unknown").split()[0].split("-")[0].title()
        what = f"{script} letters"
        fonts = f"Noto Sans {script} (Debian, Ubuntu: fonts-noto-core)"
        if script.upper() in CJK:
            what, fonts = "CJK letters", "Noto Sans CJK (Debian, Ubuntu: fonts-noto-cjk)"
        elif unicodedata.category(character)[0] in "SP":
            what, fonts = "symbols", "a font of symbols (Debian, Ubuntu: fonts-symbola)"
        elif unicodedata.category(character)[0] == "C":
            what, fonts = "unassigned characters", "the font that they are made for"
        self._warn_once(
            "pictures show a stand-in for the %s of %r, which no font here has: install %s, or set "
            f"{VARIABLE} to the file of a font",
            what,
            shorten(text),
            fonts,
        )

    def warn_of_shaping(self, text: str) -> None:
        """Warn, once, that the letters of a text are drawn one by one."""
        self._warn_once(
            "pictures show the letters of %r and others unjoined: install FriBiDi (Debian, Ubuntu: "
            "libfribidi0), by which Pillow joins them",
            shorten(text),
        )

    def _warn_once(self, message: str, what: str, *arguments: str) -> None:
        key = what if arguments else message
        if key not in self._warned:
            self._warned.add(key)
            logger.warning(message, what, *arguments)


def font_book() -> FontBook:
    """Return the fonts of this machine.

    Raises:
        ValueError: If POINT_REND_FONT names a file that does not exist or is no font, or a folder
            of far too many files.
    """
    return _font_book(os.environ.get(VARIABLE, ""), tuple(font_folders()))


def font_folders() -> Iterator[str]:
    """Yield the folders in which systems keep fonts, those of the user first."""
    home = os.path.expanduser("~")
    if sys.platform == "win32":
        yield os.path.join(os.environ.get("LOCALAPPDATA", home), "Microsoft", "Windows", "Fonts")
        yield os.path.join(os.environ.get("WINDIR", r"C:\Windows"), "Fonts")
    elif sys.platform == "darwin":
        yield os.path.join(home, "Library", "Fonts")
        yield from ("/Library/Fonts", "/System/Library/Fonts")
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(home, ".local", "share")
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    for folder in (data, *shared.split(":")):
        yield os.path.join(folder, "fonts")
    yield os.path.join(home, ".fonts")
    yield os.path.join(sys.prefix, "fonts")  # of conda


def legible(text: str, instead: str | None = None) -> str:
    """Return a text as it can be drawn: in one line, of characters that some font has.

    A warning, once for each script, names what to install for the others.

    Args:
        text: Any text.
        instead: Text in place of one with letters or digits that no font has. By default each of
            these becomes its code point, such as U+8F66. Other symbols are left out.
    """
    return _as_is(text) or _legible(font_book(), text, instead)


class Run(NamedTuple):
    """A part of a line in one font and direction."""

    text: str
    font: ImageFont.FreeTypeFont
    direction: str | None  # rtl, ltr, or None for the one that Pillow finds


class Line:
    """A text in one line, in fonts that have its glyphs.

    Args:
        book: The fonts.
        text: A text that is :func:`legible`.
        size: Size of the font in pixels.

    Attributes:
        width: Its width in pixels.
        height: Height of the line in pixels, `size` for DejaVu Sans.
    """

    def __init__(self, book: FontBook, text: str, size: float) -> None:
        self._runs = _runs(book, text, size)
        self._lengths = [run.font.getlength(run.text, "L", run.direction) for run in self._runs]
        self.width = sum(self._lengths)
        lines = [sum(run.font.getmetrics()) for run in self._runs if run.font.path != _dejavu()]
        self.height = max([size, *lines])

    def draw(
        self, draw: ImageDraw.ImageDraw, center: Place, fill: str, outline: str | None = None
    ) -> None:
        """Draw the text around a place.

        Args:
            draw: Of the picture.
            center: x and y in pixels.
            fill: Color of the letters.
            outline: Color of an outline of two pixels.
        """
        stroke = 0 if outline is None else 2
        if len(self._runs) == 1:
            ((text, font, _),) = self._runs
            draw.text(
                center,
                text,
                fill,
                font=font,
                anchor="mm",
                stroke_width=stroke,
                stroke_fill=outline,
            )
            return
        if not self._runs:
            return
        ascent, descent = np.max([run.font.getmetrics() for run in self._runs], axis=0)
        for color, width in ((outline, stroke), (fill, 0)):  # no outline covers a letter
            left, baseline = center[0] - self.width / 2, center[1] + (ascent - descent) / 2
            for run, length in zip(self._runs, self._lengths, strict=True):
                if color is not None:
                    draw.text(
                        (left, baseline),
                        run.text,
                        color,
                        font=run.font,
                        anchor="ls",
                        direction=run.direction,
                        stroke_width=width,
                    )
                left += length


def line_of(text: str, size: float, longest: float | None = None) -> Line:
    """Lay out a text, which is made :func:`legible`.

    Args:
        text: Any text.
        size: Size of the font in pixels.
        longest: Width in pixels beyond which the middle of the text is left out.
    """
    return _line_of(font_book(), text, size, longest)


def families(text: str) -> list[str]:
    """Return the families of fonts for a :func:`legible` text in a figure of Matplotlib.

    Matplotlib takes each character from the first that has it; it is told of their files.
    """
    return list(dict.fromkeys(_family(font) for _, font in font_book().split(text)))


def clusters(text: str) -> list[str]:
    """Divide a text into characters with the marks, accents and joined characters that follow."""
    found: list[str] = []
    for character in text:
        follows = unicodedata.category(character).startswith("M") or character in JOINERS
        follows |= ord(character) in SKIN_COLORS
        if found and (follows or found[-1].endswith("\u200d")):
            found[-1] += character
        else:
            found.append(character)
    return found


@functools.cache
def _font_book(of_user: str, folders: Sequence[str]) -> FontBook:
    first: list[str] = []
    for name in filter(None, of_user.split(os.pathsep)):
        if os.path.isdir(name) and next(itertools.islice(_all_in(name), MAX_FILES, None), None):
            raise ValueError(
                f"{VARIABLE}: {name!r:.200} has more than {MAX_FILES} files: expected a folder of "
                "fonts"
            )
        files = _files_in(name) if os.path.isdir(name) else [name]
        if not os.path.exists(name):
            raise ValueError(f"{VARIABLE}: there is no file or folder {name!r:.200}")
        if not any(_coverage(file).size for file in files):
            raise ValueError(f"{VARIABLE}: {name!r:.200} is no outline font")
        first += files
    return FontBook([*first, _dejavu(), *itertools.chain(*map(_files_in, folders))])


def _all_in(folder: str) -> Iterator[str]:
    """Yield all files in a folder and those within."""
    return (os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names)


def _files_in(folder: str) -> list[str]:
    """List the font files in a folder and those within, plain styles first."""
    plain_name = {
        path: "".join(filter(str.isalnum, Path(path).stem.lower()))
        for path in sorted(_all_in(folder))
        if path.lower().endswith(SUFFIXES)
    }
    files = [file for file, name in plain_name.items() if not any(x in name for x in UNFIT)]
    return sorted(files, key=lambda file: any(style in plain_name[file] for style in STYLES))


@functools.cache
def _dejavu() -> str:
    import matplotlib  # slow to import, and only its font is needed

    return f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"


@functools.cache
def _family(file: str) -> str:
    """Tell Matplotlib of a font; return its family."""
    from matplotlib import font_manager, ft2font

    if file != _dejavu():
        font_manager.fontManager.addfont(file)
    return ft2font.FT2Font(file).family_name


@functools.cache
def _coverage(file: str) -> np.ndarray:
    """Return the code points that a font has, in order; none if it cannot be read or scaled."""
    from matplotlib.ft2font import FT2Font

    try:
        status = os.stat(file)
        # A pipe or a device would be read for ever, as would the rest of a file of terabytes.
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            return np.empty(0, dtype=np.uint32)
        font = FT2Font(file)
        codes = font.get_charmap().keys() if font.scalable else ()
    except (OSError, RuntimeError, ValueError):
        codes = ()
    return np.sort(np.fromiter(codes, dtype=np.uint32))


def _covers(file: str, characters: str) -> bool:
    codes = np.array([ord(character) for character in characters], dtype=np.uint32)
    return bool(np.isin(codes, _coverage(file)).all())


def _needed(text: str) -> str:
    """Leave out the characters that change others and have no glyph of their own."""
    return "".join(x for x in text if x not in JOINERS and ord(x) not in VARIATIONS)


def _as_is(text: str) -> str | None:
    """Return a short text of printable ASCII, which every machine can draw."""
    is_plain = text.isascii() and text.isprintable() and len(text) <= LONGEST
    return text if is_plain else None


def _legible(book: FontBook, text: str, instead: str | None) -> str:
    if len(text) > MAX_LOOKED_AT:  # before any work on each of its characters
        text = f"{text[: MAX_LOOKED_AT // 2]}{ELLIPSIS}{text[-MAX_LOOKED_AT // 2 :]}"
    text = _shortened(unicodedata.normalize("NFC", " ".join(text.split())))
    drawn, replaced = "", False
    for character in text:
        category = unicodedata.category(character)
        if not _needed(character):
            drawn += character
        elif category[0] == "C" and category not in ("Co", "Cn"):
            pass  # controls, and halves of characters
        elif book.font_of(character) is not None:
            drawn += character
        else:
            book.warn_of_missing(character, text)
            if category[0] in "LNC":
                replaced = True
                drawn += f" U+{ord(character):04X} "
    drawn = " ".join(drawn.split())
    if instead is not None and (replaced or not _needed(drawn)):
        return instead
    return drawn


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return _without_middle(clusters(text), LONGEST)[: 4 * LONGEST]  # however many accents


def _without_middle(parts: Sequence[str], kept: int) -> str:
    tail = kept // 4
    return "".join([*parts[: kept - tail], ELLIPSIS, *parts[len(parts) - tail :]])


@functools.lru_cache(maxsize=4096)
def _line_of(book: FontBook, text: str, size: float, longest: float | None) -> Line:
    text = _as_is(text) or _legible(book, text, None)
    line = Line(book, text, size)
    if longest is None or line.width <= longest:
        return line
    parts = clusters(text)
    fits, fits_not = 0, len(parts)
    while fits_not - fits > 1:
        kept = (fits + fits_not) // 2
        line = Line(book, _without_middle(parts, kept), size)
        fits, fits_not = (kept, fits_not) if line.width <= longest else (fits, kept)
    return Line(book, _without_middle(parts, fits), size)


def _runs(book: FontBook, text: str, size: float) -> list[Run]:
    """Divide a text by font and direction, in the order from left to right."""
    parts = book.split(text)
    directions = [unicodedata.bidirectional(character) for character in text]
    if not _shapes() and any(name in ("AL", "NSM") for name in directions):
        book.warn_of_shaping(text)
    if len(parts) <= 1 and not any(name in RIGHT_TO_LEFT for name in directions):
        return [Run(part, _font(file, size), None) for part, file in parts]
    files = itertools.chain(*([file] * len(part) for part, file in parts))
    first = next((x for x in directions if x in ("L", *RIGHT_TO_LEFT)), "L")
    is_rtl = first in RIGHT_TO_LEFT
    letters = zip(text, files, _are_rtl(directions, is_rtl), strict=True)
    groups = [list(group) for _, group in itertools.groupby(letters, key=lambda x: x[2])]
    runs = []
    for group in reversed(groups) if is_rtl else groups:
        right = group[0][2]
        of_group = [
            ("".join(x for x, _, _ in run), _font(file, size))
            for file, run in itertools.groupby(group, key=lambda x: x[1])
        ]
        for part, font in reversed(of_group) if right else of_group:
            if _shapes():
                runs.append(Run(part, font, "rtl" if right else "ltr"))
            else:
                ordered = reversed(clusters(part)) if right else part
                runs.append(Run(_needed("".join(ordered)), font, None))
    return runs


def _are_rtl(classes: Sequence[str], of_text: bool) -> list[bool]:
    """Return which characters are read from right to left.

    Numbers are read from left to right in any text, and a character without a direction, such as a
    space, as those on both sides of it if they agree, or else as the text.

    Args:
        classes: Of the characters in Unicode's bidirectional algorithm.
        of_text: Whether the text as a whole is read from right to left.
    """
    known: list[bool | None] = []
    for i, name in enumerate(classes):
        if name == "NSM" and known:
            known.append(known[-1])
        elif name in RIGHT_TO_LEFT:
            known.append(True)
        elif name in ("L", "EN", "AN") or (name == "ET" and "EN" in classes[max(0, i - 1) : i + 2]):
            known.append(False)
        else:
            known.append(None)
    found = []
    for i, value in enumerate(known):
        if value is None:
            before = next((x for x in reversed(known[:i]) if x is not None), of_text)
            after = next((x for x in known[i:] if x is not None), of_text)
            value = before if before == after else of_text
        found.append(value)
    return found


@functools.cache
def _shapes() -> bool:
    """Return whether Pillow joins and orders letters."""
    return bool(features.check("raqm"))


@functools.lru_cache(maxsize=64)
def _font(file: str, size: float) -> ImageFont.FreeTypeFont:
    engine = ImageFont.Layout.RAQM if _shapes() else ImageFont.Layout.BASIC
    font = ImageFont.truetype(file, size, layout_engine=engine)
    with contextlib.suppress(OSError, ValueError):  # it does not vary, or has no such weight
        font.set_variation_by_name("Regular")
    return font
