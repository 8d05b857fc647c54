"""The report page: its metrics, its parts, and the input that it refuses."""

import contextlib
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from point_rend.evaluation import photographs
from point_rend.evaluation.coco_ap import METRICS, CocoAP
from point_rend.evaluation.limits import coco_limit
from point_rend.evaluation.report import matched_items, tables, training_curves
from point_rend.evaluation.report.elements import NONE, nice_ticks
from point_rend.evaluation.report.outlines import outline_path
from tests.evaluation.oracles import blob
from tests.planted_report import (
    BY_FAILURE_IN_MASK_IOU,
    BY_GAIN_IN_MASK_IOU,
    EVIL,
    FILES,
    NAMES,
    OBJECTS,
    Planted,
    planted_iou,
)

MISSING = NONE


class Parsed(HTMLParser):
    """Parser of the page: tables by caption as rows of texts, and attributes of all elements."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._rows: list[list[str]] = []
        self._text: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("caption", "th", "td"):
            self._text = []

    def handle_endtag(self, tag):
        text = "".join(self._text)
        if tag == "caption":
            self.tables[text] = self._rows
        elif tag in ("th", "td"):
            self._rows[-1].append(text)

    def handle_data(self, data):
        self._text.append(data)

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.elements if attributes.get("class") == name]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def page(planted: Planted) -> Path:
    return planted.page("--run", f"PointRend={planted.run}")


@pytest.fixture(scope="module")
def parsed(page: Path) -> Parsed:
    return Parsed(page)


def coco_metrics(planted: Planted, which: int, category: int | None = None) -> list[float]:
    """Compute AP, AP50, AP75, APs, APm and APl with pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(planted.annotations))
        found = gt.loadRes([dict(x) for x in planted.results[which]])
        evaluation = COCOeval(gt, found, "segm")
        if category is not None:
            evaluation.params.catIds = [category]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * v if v > -1 else float("nan") for v in evaluation.stats[:6]]


def written(values: list[float]) -> list[str]:
    return [MISSING if np.isnan(v) else f"{v:.1f}" for v in values]


@pytest.mark.parametrize("which", [0, 1])
def test_the_table_of_ap_equals_that_of_pycocotools(planted: Planted, parsed: Parsed, which: int):
    rows = {row[0]: row[1:] for row in parsed.tables["AP in percent"]}
    assert rows[NAMES[which]] == written(coco_metrics(planted, which))


@pytest.mark.parametrize("which", [0, 1])
def test_the_table_of_boundary_ap_equals_the_evaluation(
    planted: Planted, parsed: Parsed, which: int
):
    rows = {row[0]: row[1:] for row in parsed.tables["boundary AP in percent"]}
    metrics = CocoAP(planted.content).metrics(planted.results[which], "boundary")
    assert rows[NAMES[which]] == written([metrics[name] for name in METRICS])


def test_the_difference_is_of_the_unrounded_metrics(planted: Planted, parsed: Parsed):
    first, last = (coco_metrics(planted, which) for which in (0, 1))
    row = parsed.tables["AP in percent"][-1]
    expected = [
        MISSING if np.isnan(b - a) else f"{b - a:+.1f}" for a, b in zip(first, last, strict=True)
    ]
    assert row == ["difference", *(text.replace("-", "−") for text in expected)]


def test_the_ap_of_a_class_equals_that_of_pycocotools(planted: Planted, parsed: Parsed):
    head, *rows = parsed.tables["AP by class in percent"]
    assert head[:5] == ["class", "objects", "AP, 4×conv", "AP, PointRend", "difference"]
    assert [row[0] for row in rows] == ["star", "key", EVIL]
    assert [row[1] for row in rows] == ["3", "2", "1"]
    for category, row in enumerate(rows, start=1):
        expected = [coco_metrics(planted, which, category)[0] for which in (0, 1)]
        assert row[2:4] == written(expected)


def test_means_are_over_the_objects_that_both_models_match(parsed: Parsed):
    rows = parsed.tables["Single objects"]
    common = [planted[2:] for planted in OBJECTS if None not in planted]
    for which, count in ((0, 4), (1, 5)):
        mean = np.mean([planted_iou(smaller[which]) for smaller in common])
        assert rows[which + 1][:3] == [NAMES[which], f"{count} of 6", f"{mean:.3f}"]


def test_a_card_shows_the_planted_ious(parsed: Parsed):
    for number, (image, category, *smaller) in enumerate(OBJECTS, start=1):
        name = {1: "star", 2: "key", 3: EVIL}[category]
        rows = parsed.tables[f"metrics of {name} in {FILES[image]}, object {number}"]
        for which, row in enumerate(rows[1:3]):
            found = smaller[which] is not None
            assert row[0] == NAMES[which] + ("" if found else ": no match")
            assert row[2] == (f"{planted_iou(smaller[which]):.3f}" if found else MISSING)
        if None in smaller:
            assert len(rows) == 3
        else:
            gain = f"{planted_iou(smaller[1]) - planted_iou(smaller[0]):+.3f}"
            assert rows[3][2] == gain.replace("-", "−")


def numbers_in_order(planted: Planted, title: str) -> list[int]:
    """Return the numbers of the objects in an order of the gallery."""
    pairs = [
        matched_items.read_result(
            name,
            "style-0",
            planted.folder / f"{name}.json",
            planted.content,
            CocoAP(planted.content),
            0.5,
            coco_limit(),
        )
        for name in NAMES
    ]
    items = matched_items.match_items(matched_items.ground_truth_objects(planted.content), pairs)
    (ranking,) = [x.ranking for x in matched_items.gallery_orders(items, NAMES) if x.title == title]
    return [items[k].annotation["id"] for k in ranking]


def test_the_gallery_is_sorted_by_gain_by_loss_and_by_failure(planted: Planted):
    gains = numbers_in_order(planted, "largest gain in mask IoU first")
    assert gains == BY_GAIN_IN_MASK_IOU[:4]
    assert numbers_in_order(planted, "largest loss in mask IoU first") == gains[::-1]
    assert numbers_in_order(planted, "largest gain in Boundary IoU first") == gains
    failures = numbers_in_order(planted, "failures of PointRend: lowest mask IoU first")
    assert failures == BY_FAILURE_IN_MASK_IOU


def test_the_mean_height_of_a_precision_curve_is_ap(planted: Planted):
    precision = CocoAP(planted.content).precision(planted.results[1], "segm")
    _, ap50, ap75, *_ = coco_metrics(planted, 1)
    for threshold, expected in ((0, ap50), (5, ap75)):
        recalls, heights = zip(*tables.mean_curve(precision, threshold), strict=True)
        np.testing.assert_allclose(recalls, np.linspace(0, 1, 101))
        assert 100 * np.mean(heights) == pytest.approx(expected)


def test_the_page_is_self_contained(page: Path, parsed: Parsed):
    text = page.read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    links = [a[key] for _, a in parsed.elements for key in ("src", "href") if key in a]
    assert all(link and link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    assert sum(tag == "image" for tag, _ in parsed.elements) == len(OBJECTS)
    (policy,) = [a["content"] for _, a in parsed.elements if "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy


def test_names_stay_text(parsed: Parsed):
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("script") == 1
    assert not {"img", "i"} & set(tags)
    assert not any(key.startswith("on") for _, attributes in parsed.elements for key in attributes)


def test_the_number_of_objects_is_limited_and_the_rest_counted(planted: Planted):
    page = planted.page("--items", "3")
    cards = Parsed(page).with_class("card")
    assert len(cards) == 3
    text = page.read_text(encoding="utf-8")
    assert "3 of 6 objects are on this page" in text
    assert "3 are left out (--items)" in text


def test_items_are_selected_from_each_order_in_turn():
    assert matched_items.select_items([[4, 1, 2], [3, 4, 0], [4]], 3) == {4, 3, 1}
    assert matched_items.select_items([[4, 1, 2], []], 10) == {1, 2, 4}
    assert matched_items.select_items([], 3) == set()


def test_a_single_result_is_compared_with_the_ground_truth(planted: Planted):
    parsed = Parsed(planted.page(results=NAMES[1:]))
    assert [row[0] for row in parsed.tables["AP in percent"]] == ["", "PointRend"]
    assert len(parsed.tables["AP by class in percent"][0]) == 4
    selected = [a["value"] for tag, a in parsed.elements if tag == "option" and "selected" in a]
    assert selected[-2:] == ["0", "ground-truth"]
    assert len(parsed.with_class("card")) == len(OBJECTS)


def test_without_photographs_the_page_has_plain_gray(planted: Planted, monkeypatch):
    monkeypatch.setattr(photographs, "read_view", lambda *_: pytest.fail("an image was read"))
    parsed = Parsed(planted.page("--without-photographs"))
    assert len(parsed.with_class("card")) == len(OBJECTS)


def test_an_empty_result_file_is_accepted(planted: Planted):
    planted.write("nothing.json", [])
    parsed = Parsed(planted.page(results=("nothing", "PointRend")))
    assert parsed.tables["AP in percent"][1][:2] == ["nothing", "0.0"]
    assert parsed.tables["Single objects"][1] == ["nothing", "0 of 6", MISSING, MISSING]


# Parts


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((4, 5), dtype=bool),
        np.ones((4, 5), dtype=bool),
        np.indices((6, 7)).sum(axis=0) % 2 == 0,  # pixels that touch at their corners
        np.random.default_rng(0).random((12, 9)) < 0.6,
        blob(np.random.default_rng(2), 40, 50, 15),
    ],
)
def test_an_outline_encloses_the_pixels_of_its_mask_and_no_others(mask: np.ndarray):
    height, width = mask.shape
    crossings = np.zeros((height, width), dtype=int)  # with a ray from each pixel to the left
    for loop in outline_path(mask, (10, 20)).split("M")[1:]:
        start, moves = re.fullmatch(r"(\d+ \d+)((?:[hv]-?\d+)+)z", loop).groups()
        x, y = first = [int(v) for v in start.split()]
        for direction, length in re.findall(r"([hv])(-?\d+)", moves):
            if direction == "h":
                x += int(length)
            else:
                ends = sorted((y - 20, y - 20 + int(length)))
                crossings[ends[0] : ends[1], x - 10 :] += 1
                y += int(length)
        assert [x, y] == first
    np.testing.assert_array_equal(crossings % 2 == 1, mask)


@pytest.mark.parametrize("end", [1e-7, 0.02, 0.3, 1.0, 7, 99, 270_000])
def test_ticks_are_few_evenly_spaced_and_reach_the_end(end: float):
    ticks = nice_ticks(end)
    assert ticks[0] == 0
    assert 3 <= len(ticks) <= 6
    assert ticks[-2] < end <= ticks[-1] * 1.001
    np.testing.assert_allclose(np.diff(ticks), ticks[1])


def test_without_a_positive_value_an_axis_ends_at_one():
    assert nice_ticks(0.0) == nice_ticks(float("nan")) == [0.0, 1.0]


def test_repeated_iterations_and_a_truncated_last_line_are_handled(tmp_path: Path):
    records = [
        {"iteration": 0, "total_loss": 5, "loss_mask": 1, "time": 3, "lr": 0.1},
        {"iteration": 1, "total_loss": 4, "loss_mask": float("nan"), "segm/AP": 3.0},
        {"iteration": 1, "total_loss": 3, "loss_mask": 0.5},
    ]
    lines = "\n".join(map(json.dumps, records))
    (tmp_path / "metrics.json").write_text(f'{lines}\n{{"iteration": 2, "tot')
    curves = training_curves.read_training(tmp_path).curves
    assert curves == {"total_loss": [(0, 5), (1, 3)], "loss_mask": [(0, 1), (1, 0.5)]}


def test_a_folder_without_metrics_has_no_curves(tmp_path: Path):
    assert training_curves.read_training(tmp_path) == ({}, None, None)


def write_training(folder: Path, *more: dict) -> Path:
    """Write the metrics of a training of three evaluations, the second of which is the best."""
    folder.mkdir()
    aps, losses, left = (20.0, 30.5, 25.0), (2.0, 1.5, 1.75), (1, 1, 0)
    evaluations = [
        {
            "iteration": 10 * number + 9,
            "total_loss": 3 - number,
            "segm/AP": aps[number],
            "segm/AP50": 2 * aps[number],
            "ema/segm/AP": aps[number] + 1,
            "validation/total_loss": losses[number],
            "best/segm/AP": max(aps[: number + 1]),
            "best/iteration": 19 if number else 9,
            "best/patience_left": left[number],
        }
        for number in range(3)
    ]
    lines = [json.dumps(line) for line in [*evaluations, *more]]
    (folder / "metrics.json").write_text("\n".join(lines) + "\n")
    return folder


def test_the_best_evaluation_and_the_end_are_read(tmp_path: Path):
    ended = training_curves.read_training(write_training(tmp_path / "ended"))
    assert ended.best == ("segm/AP", 30.5, 19)
    assert ended.stop == 29
    shown = ["total_loss", "validation/total_loss", "ema/segm/AP", "segm/AP"]
    assert list(ended.curves) == shown
    expected = (
        "run: best segm/AP 30.5 after iteration 19; ended after iteration 29, out of patience."
    )
    assert training_curves.decisions_of("run", ended) == expected
    later = {"iteration": 39, "total_loss": 1}
    longer = training_curves.read_training(write_training(tmp_path / "longer", later))
    assert longer.best == ended.best
    assert longer.stop is None


def test_a_best_metric_is_shown_whatever_its_name(tmp_path: Path):
    records = [
        {"iteration": k, "segm/AP50": k, "best/segm/AP50": k, "best/iteration": k} for k in (1, 2)
    ]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, records)))
    assert list(training_curves.read_training(tmp_path).curves) == ["segm/AP50"]


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("loss_mask", ("loss_mask", "", "")),
        ("validation/loss_mask", ("loss_mask", ", validation", "dot")),
        ("validation/a/b/total_loss", ("total_loss", ", validation on a/b", "dot")),
        ("ema/validation/total_loss", ("total_loss", ", validation, averaged", "ring")),
        ("ema/segm/AP", ("segm/AP", ", averaged", "ring")),
        ("val/segm/AP", ("val/segm/AP", "", "dot")),
        ("validation/segm/AP", ("validation/segm/AP", "", "dot")),
    ],
)
def test_losses_on_test_sets_and_averaged_weights_join_the_charts_of_the_others(key, place):
    assert training_curves.place_of(key) == place


def test_the_page_marks_the_best_evaluation_and_the_end(planted: Planted, tmp_path: Path):
    folder = write_training(tmp_path / "run")
    parsed = Parsed(planted.page("--run", f"PointRend={folder}"))
    text = planted.page("--run", f"PointRend={folder}").read_text(encoding="utf-8")
    assert "PointRend: best segm/AP 30.5 after iteration 19; ended after iteration 29" in text
    assert "best: 30.5 at 19" in text
    charts = [a["aria-label"] for tag, a in parsed.elements if a.get("aria-label")]
    names = "total_loss: PointRend, PointRend, validation"
    assert any(label.endswith(f"total_loss over iteration, {names}") for label in charts)
    circles = Counter(a["class"] for tag, a in parsed.elements if tag == "circle")
    # Of each kind one is in the legend.
    assert circles["dot style-0"] == 3 + 3 + 1
    assert circles["ring style-0"] == 3 + 1
    assert circles["best style-0"] == 1 + 1
    assert sum(a.get("class") == "end" for _, a in parsed.elements) == 1 + 1


@pytest.mark.parametrize("count", [1, 399, 400, 401, 1000])
def test_long_curves_are_averaged_over_equal_pieces(count: int):
    points = [(float(k), float(k * k)) for k in range(count)]
    short = training_curves.averaged(points)
    length = -(-count // 400)
    assert len(short) == -(-count // length) <= 400
    assert short[0] == tuple(np.mean(points[:length], axis=0))


# Bad input


def refusal(planted: Planted, capsys: pytest.CaptureFixture, *options: str, **changes) -> str:
    with pytest.raises(SystemExit) as stop:
        planted.page(*options, **changes)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert ": error: " in error
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (("nowhere",), r"result file does not exist: .*nowhere.json"),
        (("other",), r"other.json: result 0 is about image 99, which the annotations do not have"),
        (("truth",), r"truth.json: expected a list of results"),
        (("boxes",), r"boxes.json: result 0 has no 'segmentation'"),
        (("PointRend", "PointRend"), r"--results: the name 'PointRend' is given 2 times"),
        (("PointRend", "4×conv", "boxes"), r"--results: expected one or two, got 3"),
    ],
)
def test_invalid_results_are_named(planted, capsys, results, message):
    planted.write("other.json", [planted.results[0][0] | {"image_id": 99}])
    box = {k: v for k, v in planted.results[0][0].items() if k != "segmentation"}
    planted.write("boxes.json", [box])
    assert re.search(message, refusal(planted, capsys, results=results))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--items", "0"), "--items: expected 1 or more, got 0"),
        (("--run", "nowhere"), "run folder nowhere does not exist"),
        (("--run", "lr=0.02=a"), "run folder 0.02=a does not exist"),
        (("--run", "a=b", "--run", "a=c"), "--run: the name 'a' is given 2 times, expected once"),
        (("--image-root", "nowhere"), "--image-root: there is no folder nowhere"),
        (("--annotations", "nowhere.json"), "nowhere.json"),
    ],
)
def test_an_invalid_option_is_named(planted, capsys, options, message):
    assert message in refusal(planted, capsys, *options)


def test_annotations_that_are_not_coco_are_named(planted, capsys):
    other = planted.write("list.json", [])
    error = refusal(planted, capsys, "--annotations", str(other))
    assert "list.json is not in COCO's instances format" in error


def test_an_object_without_a_mask_is_named(planted, capsys):
    content = json.loads(json.dumps(planted.content))
    del content["annotations"][2]["segmentation"]
    bare = planted.write("bare.json", content)
    error = refusal(planted, capsys, "--annotations", str(bare))
    assert re.search(r"annotation 3 of image 2 \(.*\): no segmentation", error)


def test_a_missing_image_and_one_of_another_size_are_named(planted, capsys, tmp_path):
    for name in FILES.values():
        cv2.imwrite(str(tmp_path / name), np.zeros((50, 100, 3), np.uint8))
    options = ("--image-root", str(tmp_path))
    expected = r"is of \(height, width\) \(50, 100\), expected \(100, 100\) as in the annotations"
    assert re.search(expected, refusal(planted, capsys, *options))
    for file in tmp_path.iterdir():
        file.unlink()
    assert re.search(r"there is no image .*\.png", refusal(planted, capsys, *options))


def test_a_broken_line_of_metrics_is_named(planted, capsys, tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 0}\nnonsense\n{"iteration": 1}\n')
    error = refusal(planted, capsys, "--run", str(tmp_path))
    assert "metrics.json: line 2 is not a JSON object with an iteration: nonsense" in error


def test_an_error_leaves_no_files(planted, capsys, tmp_path):
    output = tmp_path / "new.html"
    refusal(planted, capsys, "--output", str(output), "--items", "0")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_folder_is_named_before_the_work(planted, capsys, monkeypatch):
    monkeypatch.setattr("point_rend.evaluation.report.page.build_report", None)
    error = refusal(planted, capsys, "--output", str(planted.images))
    expected = f"--output {planted.images} cannot be written: it is a folder, expected a file"
    assert expected in error
