"""The report page in a browser: its controls, by mouse and by keyboard, and its appearance.

The tests are skipped if Chromium is missing.
"""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.browser import DOWN, ENTER, LEFT, RIGHT, SPACE, TAB, Browser
from tests.planted_report import (
    BY_FAILURE_IN_MASK_IOU,
    BY_GAIN_IN_MASK_IOU,
    EVIL,
    NAMES,
    OBJECTS,
    Planted,
)

CONTROLS = "a[href], select, input, button, .scroll"

# Ratio of luminances, as WCAG defines it, of every text to what is behind it.
LOW_CONTRASTS = r"""
const numbers = (text) => text.match(/[\d.]+/g).map(Number);
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((v) => v / 255).map(
    (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const low = [];
let count = 0;
for (const node of document.querySelectorAll("body *:not(.stage svg *, script, title)")) {
  const own = [...node.childNodes].some((c) => c.nodeType === 3 && c.data.trim());
  if (!own || !node.getClientRects().length) continue;
  const style = getComputedStyle(node);
  let back = node;
  const color = (n) => numbers(getComputedStyle(n).backgroundColor);
  while (back.parentElement && color(back)[3] === 0) back = back.parentElement;
  const ink = numbers(node.closest("svg") ? style.fill : style.color);
  const tones = [ink, color(back)].map((c) => luminance(c.slice(0, 3))).sort((a, b) => a - b);
  const ratio = (tones[1] + 0.05) / (tones[0] + 0.05);
  count += 1;
  if (ratio < 4.5) low.push(`${node.tagName} ${node.textContent.slice(0, 30)} ${ratio}`);
}
return [count, low];
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert browser
    planted = Planted(tmp_path_factory.mktemp("planted"))
    return planted.page("--run", f"PointRend={planted.run}")


@pytest.fixture(autouse=True)
def opened(browser: Browser, page: Path) -> Iterator[None]:
    """Load the page before each test; the console must be empty afterwards."""
    browser.show(width=1440)
    browser.open(page)
    yield
    assert browser.log() == []


def choose(browser: Browser, name: str, value: str) -> None:
    browser.run(
        """const list = document.getElementById(arguments[0]);
        list.value = arguments[1];
        if (list.value !== arguments[1]) throw new Error("no such choice");
        list.dispatchEvent(new Event("change"));""",
        name,
        value,
    )


def value_of(browser: Browser, name: str, text: str) -> str:
    """Return the value of an option, given the beginning of its text."""
    return browser.run(
        """return [...document.getElementById(arguments[0]).options].find(
        (option) => option.text.startsWith(arguments[1])).value""",
        name,
        text,
    )


def visible_numbers(browser: Browser) -> list[int]:
    """Return the numbers of the objects with visible cards, in order."""
    return browser.run(
        """return [...document.querySelectorAll(".card")].filter((card) => card.offsetHeight)
        .map((card) => Number(card.querySelector("small").textContent.split(" ").pop()))"""
    )


def clips(browser: Browser) -> list[float]:
    """Return start and end of the left and right mask on the first visible card, over its width."""
    return browser.run(
        """const svg = document.querySelector(".card:not([hidden]) .stage svg");
        const box = svg.viewBox.baseVal;
        return [...svg.querySelectorAll("clipPath rect")].flatMap((rect) => {
          const style = getComputedStyle(rect);
          const [x, width] = [style.x, style.width].map(parseFloat);
          return [(x - box.x) / box.width, (x + width - box.x) / box.width];
        });"""
    )


def stage_pixels(browser: Browser) -> np.ndarray:
    """Return a screenshot of the first card's picture, (H, W, 3) uint8."""
    x, y, side = browser.run(
        """const stage = document.querySelector(".stage");
        stage.scrollIntoView({block: "center"});
        const box = stage.getBoundingClientRect();
        return [box.x, box.y, box.width]"""
    )
    shot = cv2.imdecode(np.frombuffer(browser.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    return shot[round(y) : round(y + side), round(x) : round(x + side)]


def test_at_first_the_slider_is_in_the_middle_between_baseline_and_pointrend(browser: Browser):
    assert clips(browser) == pytest.approx([0, 0.5, 0.5, 1], abs=1e-4)
    sides = browser.run(
        'return [...document.querySelectorAll(".card:first-child .side")].map((x) => x.innerText)'
    )
    assert tuple(sides) == NAMES


def test_the_slider_moves_the_split_and_what_is_seen(browser: Browser):
    middle = stage_pixels(browser)
    browser.run('document.querySelector(".view input").focus()')
    browser.press(*[LEFT] * 30)
    assert clips(browser) == pytest.approx([0, 0.2, 0.2, 1], abs=1e-4)
    moved = stage_pixels(browser)
    assert moved.shape == middle.shape
    side = len(moved)
    # By more than rounding; the ring around the slider that has the focus now ends below.
    changed = (cv2.absdiff(moved, middle) > 40)[: side // 2].any(axis=(0, 2))
    # The object of the largest gain: PointRend's mask is right, the baseline's 6 pixels short.
    assert changed[round(0.25 * side) : round(0.45 * side)].any()
    assert not changed[: round(0.18 * side)].any()
    assert not changed[round(0.53 * side) :].any()
    words = browser.run("return document.activeElement.getAttribute('aria-valuetext')")
    assert words == "4×conv up to 20 %, then PointRend"


def test_the_mouse_drags_the_split_on_the_picture(browser: Browser):
    width = stage_pixels(browser).shape[1]
    browser.drag(browser.all(".stage")[0], 0, width // 4)
    assert clips(browser)[1] == pytest.approx(0.75, abs=0.01)
    assert browser.run('return document.querySelector(".view input").value') == "75"


def test_the_filter_shows_the_objects_of_a_class(browser: Browser):
    for category in (1, 2, 3):
        choose(browser, "class", str(category))
        expected = {n for n, planted in enumerate(OBJECTS, start=1) if planted[1] == category}
        numbers = visible_numbers(browser)
        assert set(numbers) == expected
        assert len(numbers) == len(expected)
        status = browser.run('return document.getElementById("status").innerText')
        assert status == f"{len(expected)} of {len(OBJECTS)} objects shown"
    choose(browser, "class", "")
    assert len(visible_numbers(browser)) == len(OBJECTS)


def test_objects_are_filtered_by_the_models_that_match_them(browser: Browser):
    for value in ("11", "10", "01", "00"):
        choose(browser, "matched", value)
        expected = {
            number
            for number, (_, _, *smaller) in enumerate(OBJECTS, start=1)
            if "".join(str(int(x is not None)) for x in smaller) == value
        }
        assert set(visible_numbers(browser)) == expected


def test_the_gallery_is_sorted(browser: Browser):
    choose(browser, "sort", value_of(browser, "sort", "largest gain in mask IoU"))
    numbers = visible_numbers(browser)
    assert numbers[:4] == BY_GAIN_IN_MASK_IOU[:4]
    assert sorted(numbers[4:]) == sorted(BY_GAIN_IN_MASK_IOU[4:])
    choose(browser, "sort", value_of(browser, "sort", "failures of PointRend: lowest mask IoU"))
    assert visible_numbers(browser) == BY_FAILURE_IN_MASK_IOU
    choose(browser, "class", "1")
    stars = [n for n in BY_FAILURE_IN_MASK_IOU if OBJECTS[n - 1][1] == 1]
    assert visible_numbers(browser) == stars


def test_zoom_enlarges_a_part_of_the_boundary_and_can_be_reset(browser: Browser):
    sides = """return [...document.querySelectorAll(".card:first-child [data-box]")].map(
        (b) => b.dataset.box.split(" ").map(Number))"""
    whole, window = browser.run(sides)[:2]
    assert window[2] == window[3] == pytest.approx(whole[2] / 4, abs=1)
    assert whole[0] <= window[0]
    assert window[0] + window[2] <= whole[0] + whole[2]
    before = stage_pixels(browser)
    buttons = browser.all(".card:first-child .zoom button")
    view = 'return document.querySelector(".stage svg").getAttribute("viewBox")'
    browser.run("arguments[0].click()", buttons[1])
    assert [float(v) for v in browser.run(view).split()] == window
    assert clips(browser) == pytest.approx([0, 0.5, 0.5, 1], abs=1e-4)
    pressed = [browser.run("return arguments[0].getAttribute('aria-pressed')", b) for b in buttons]
    assert pressed == ["false", "true", *["false"] * (len(buttons) - 2)]
    assert (stage_pixels(browser) != before).mean() > 0.5
    browser.run("arguments[0].click()", buttons[0])
    np.testing.assert_array_equal(stage_pixels(browser), before)


def test_either_side_shows_any_model_or_the_ground_truth(browser: Browser):
    choose(browser, "right", "ground-truth")
    layers = """return Object.fromEntries([...document.querySelectorAll(
        ".card:first-child .layer")].map((layer) => [layer.dataset.layer,
        getComputedStyle(layer).display === "none" ? "none"
        : (layer.getAttribute("clip-path") ?? "whole").replace(/url\\(#|-\\d+\\)/g, "")]))"""
    assert browser.run(layers) == {"0": "left", "1": "none", "ground-truth": "right"}
    right = 'return document.querySelector(".side.right").innerText'
    assert browser.run(right) == "ground truth"
    choose(browser, "left", "ground-truth")
    assert browser.run(layers) == {"0": "none", "1": "none", "ground-truth": "whole"}


def test_the_outline_of_the_ground_truth_can_be_hidden(browser: Browser):
    shown = 'return document.querySelector(".ground-truth-outline").getClientRects().length'
    assert browser.run(shown) == 1
    browser.run('document.getElementById("outline").click()')
    assert browser.run(shown) == 0


def test_the_keyboard_reaches_every_control_and_each_shows_that_it_has_the_focus(
    browser: Browser,
):
    count = browser.run(
        f'return [...document.querySelectorAll("{CONTROLS}")].filter((c) => c.offsetHeight).length'
    )
    assert count > 5 * len(OBJECTS)
    look = f"""const c = document.activeElement, style = getComputedStyle(c);
        c.dataset.seen = "";
        return [document.querySelectorAll("[data-seen]").length, c.matches("{CONTROLS}"),
          style.outlineStyle, parseFloat(style.outlineWidth)]"""
    for number in range(1, count + 1):
        browser.press(TAB)
        assert browser.run(look) == [number, True, "solid", 3]


def test_every_control_has_a_name(browser: Browser):
    nameless = browser.run(
        f"""return [...document.querySelectorAll("{CONTROLS}, svg[role=img]")].filter((c) => !(
        c.getAttribute("aria-label") || c.closest("label")?.innerText.trim() || c.innerText?.trim()
        )).map((c) => c.outerHTML)"""
    )
    assert nameless == []


def test_the_keyboard_alone_sorts_filters_slides_and_zooms(browser: Browser):
    browser.run('document.getElementById("class").focus()')
    browser.press(DOWN)
    assert visible_numbers(browser) == [3, 1, 6]
    browser.press(TAB, TAB, DOWN, DOWN, DOWN, DOWN)
    assert visible_numbers(browser)[0] == 6
    browser.press(TAB, TAB, TAB, SPACE)
    assert browser.run('return document.getElementById("outline").checked') is False
    browser.press(TAB, RIGHT, RIGHT)
    assert clips(browser)[1] == pytest.approx(0.52, abs=1e-4)
    browser.press(TAB, TAB, ENTER)
    pressed = "return document.activeElement.getAttribute('aria-pressed')"
    assert browser.run(pressed) == "true"
    assert browser.run(
        'return document.querySelector(".card:not([hidden]) svg").matches(".zoomed")'
    )


def test_the_page_makes_no_requests_and_names_are_text(browser: Browser):
    entries = browser.run(
        """return [...performance.getEntriesByType("resource"),
        ...performance.getEntriesByType("navigation")].map((entry) => entry.name)"""
    )
    assert entries
    assert all(name.startswith(("file:", "data:")) for name in entries)
    assert browser.run("return typeof hacked") == "undefined"
    titles = browser.run(
        'return [...document.querySelectorAll(".card h3")].map((x) => x.firstChild.data)'
    )
    assert EVIL in titles


@pytest.mark.parametrize("width", [360, 1440])
def test_the_page_fits_its_window_and_wide_tables_scroll_in_their_boxes(
    browser: Browser, width: int
):
    browser.show(width=width)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    boxes = browser.run(
        """return [...document.querySelectorAll(".scroll, .card, .chart, select")].map(
        (x) => x.getBoundingClientRect()).map((box) => [box.left, box.right])"""
    )
    assert all(0 <= left <= right <= width for left, right in boxes)
    small = browser.run(
        """return [...document.querySelectorAll("p, td, th, button, select, h3, .side")].filter(
        (x) => x.offsetHeight && parseFloat(getComputedStyle(x).fontSize) < 12).length"""
    )
    assert small == 0


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark_mode(browser: Browser, scheme: str, width: int):
    browser.show(width=width, scheme=scheme)
    back = browser.run("return getComputedStyle(document.body).backgroundColor")
    brightness = np.mean([int(v) for v in back.removeprefix("rgb(").removesuffix(")").split(",")])
    assert (brightness > 128) == (scheme == "light")
    count, low = browser.run(LOW_CONTRASTS)
    assert count > 100
    assert low == []


def test_nothing_moves_by_itself(browser: Browser):
    moving = browser.run(
        """return [...document.querySelectorAll("*")].map((x) => getComputedStyle(x)).filter((s) =>
        s.animationName !== "none" || parseFloat(s.transitionDuration) > 0
        || s.scrollBehavior !== "auto").length"""
    )
    assert moving == 0


def test_a_single_result_is_compared_with_the_ground_truth(browser: Browser, tmp_path: Path):
    browser.open(Planted(tmp_path).page(results=NAMES[1:]))
    sides = browser.run(
        'return [...document.querySelectorAll(".card:first-child .side")].map((x) => x.innerText)'
    )
    assert sides == ["PointRend", "ground truth"]
    assert visible_numbers(browser)[0] in (2, 4, 6)
    choose(browser, "matched", "0")
    assert visible_numbers(browser) == [6]
