"""Pictures of masks and points."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from PIL import Image

from point_rend.rendering.box_masks import Crop
from point_rend.visualization.drawing import (
    GRAY,
    POINT_COLOR,
    color_of,
    draw_keypoints,
    draw_points,
    match_colors,
    overlay_masks,
    paint_labels,
    places_of_difference,
    uncertainty_picture,
    write_names,
)
from point_rend.visualization.layout import (
    Panel,
    panels_picture,
    save_animation,
    save_figure,
    save_picture,
    side_by_side,
    stack,
)
from point_rend.visualization.view import View


def image(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def square(top: int, left: int, side: int = 12) -> np.ndarray:
    mask = np.zeros((40, 60), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_a_mask_is_painted_inside_and_nothing_changes_outside() -> None:
    masks = np.stack([square(4, 4), square(20, 40)])
    colors = [(255, 0, 0), (0, 0, 255)]
    source = image()
    before = source.copy()
    plain = overlay_masks(source, masks[:0])
    picture = overlay_masks(source, masks, colors, opacity=1.0, outline=0)
    assert picture.dtype == np.uint8
    assert picture.shape == source.shape
    for mask, color in zip(masks, colors, strict=True):
        assert (picture[mask] == color).all()
    np.testing.assert_array_equal(picture[~masks.any(0)], plain[~masks.any(0)])
    np.testing.assert_array_equal(source, before)


def test_holes_are_outlined_too() -> None:
    ring = square(5, 5, 24) & ~square(11, 11, 12)
    black = np.zeros((40, 60, 3), dtype=np.uint8)
    picture = overlay_masks(black, ring[None], [(0, 0, 200)], outline=1)
    assert (picture[5, 5:29] > 180).all()
    assert (picture[10, 12:22] > 180).all()
    assert (picture[16, 16] == 0).all()


def test_only_the_window_of_a_mask_is_drawn() -> None:
    """The picture is that of masks in a window of the whole image."""
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.random((9, 10, 13), dtype=np.float32), (60, 40))
    masks = np.stack([*(noise.transpose(2, 0, 1) > 0.6), square(0, 0, 60), square(0, 0, 0)])
    masks[:5, :7] = masks[3:8, :, 22:] = False
    names = [str(number) for number in range(len(masks))]
    whole = [Crop(mask, 0, 0) for mask in masks]
    assert np.unique([Crop.of(mask).mask.shape for mask in masks], axis=0).shape[0] > 4
    picture = overlay_masks(image(), masks)
    np.testing.assert_array_equal(picture, overlay_masks(image(), whole))
    np.testing.assert_array_equal(
        write_names(picture, masks, names), write_names(picture, whole, names)
    )


def test_masks_of_another_size_and_missing_colors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 9, 9\) do not fit an image of \(40, 60\)"):
        overlay_masks(image(), np.zeros((1, 9, 9), dtype=bool))
    with pytest.raises(ValueError, match="1 masks need as many colors, got 2"):
        overlay_masks(image(), square(1, 1)[None], [GRAY, GRAY])


def test_a_class_gets_its_color_and_other_values_are_black() -> None:
    painted = paint_labels(np.array([[1, 0, 2, 255]], dtype=np.uint8), [(1, 2, 3), (4, 5, 6)])
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[[4, 5, 6], [1, 2, 3], [0, 0, 0], [0, 0, 0]]]


def test_a_box_takes_the_color_of_the_reference_it_overlaps() -> None:
    reference = np.array([[0, 0, 10, 10], [20, 20, 40, 40]], dtype=float)
    boxes = np.array([[21, 19, 41, 40], [1, 0, 10, 11], [60, 60, 70, 70]], dtype=float)
    assert match_colors(boxes, reference) == [color_of(1), color_of(0), GRAY]
    assert match_colors(boxes, reference[:0]) == [GRAY] * 3
    assert match_colors(boxes[:0], reference) == []


def test_panels_are_side_by_side_under_their_titles() -> None:
    panels = [image(), image(40, 30)]
    bare = side_by_side(panels, gap=5)
    assert bare.shape == (40, 60 + 5 + 30, 3)
    np.testing.assert_array_equal(bare[:, :60], panels[0])
    np.testing.assert_array_equal(bare[:, 65:], panels[1])
    assert (bare[:, 60:65] == 255).all()

    titled = side_by_side(panels, ["one", "7×7"], gap=5)
    head = titled.shape[0] - 40
    assert head > 0
    np.testing.assert_array_equal(titled[head:], bare)
    assert titled[:head, :60].min() < 128
    assert titled[:head, 65:].min() < 128


@pytest.mark.parametrize("title", ["7×7", "224×224, before 784 points", ""])
def test_a_title_never_reaches_the_edges_of_its_panel(title: str) -> None:
    picture = side_by_side([np.zeros((100, 90, 3), dtype=np.uint8)], [title])
    head = picture[:-100]
    assert (head[:, [0, -1]] == 255).all()
    assert (head < 128).any() == bool(title)


def test_panels_of_different_heights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one height, got \[30, 40\]"):
        side_by_side([image(30), image(40)])
    with pytest.raises(ValueError, match=r"one height, got \[\]"):
        side_by_side([])
    with pytest.raises(ValueError, match="1 panels need as many titles, got 2"):
        side_by_side([image()], ["a", "b"])


def test_rows_are_stacked() -> None:
    picture = stack([image(10, 20), image(5, 30)], gap=2)
    assert picture.shape == (17, 30, 3)
    np.testing.assert_array_equal(picture[:10, :20], image(10, 20))
    np.testing.assert_array_equal(picture[12:], image(5, 30))


def test_a_saved_picture_reads_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "new" / "picture.png"
    save_picture(path, image())
    np.testing.assert_array_equal(cv2.imread(str(path)), image())
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]
    with pytest.raises(ValueError, match=r"unknown picture format '\.nonsense'"):
        save_picture(tmp_path / "picture.nonsense", image())


def test_a_map_of_labels_reads_back_the_same(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.uint16):
        labels = np.arange(300).reshape(20, 15).astype(dtype)
        save_picture(tmp_path / "labels.png", labels)
        found = cv2.imread(str(tmp_path / "labels.png"), cv2.IMREAD_UNCHANGED)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, labels)


# Points and names


def test_a_dot_covers_only_its_disc() -> None:
    black = np.zeros((40, 60, 3), dtype=np.uint8)
    picture = draw_points(black, np.array([[20.5, 10.5], [500.0, 3.0]]), radius=4)
    y, x = np.mgrid[:40, :60]
    distance = np.hypot(x - 20, y - 10)
    assert (picture[distance < 3] == POINT_COLOR).all()
    assert not picture[distance > 7].any()
    assert not black.any()


def test_a_name_stands_where_its_mask_is_widest() -> None:
    black = np.zeros((200, 300, 3), dtype=np.uint8)
    mask = np.zeros((200, 300), dtype=bool)
    mask[100:104, 20:280] = True
    mask[40:160, 180:280] = True
    empty = np.zeros_like(mask)
    picture = write_names(black, np.stack([mask, empty]), ["gear", "nothing"])
    y, x = np.nonzero(picture.any(axis=2))
    assert abs(x.mean() - 230) < 8
    assert abs(y.mean() - 100) < 8
    assert np.ptp(x) < 100


def test_mathematical_symbols_have_glyphs_of_their_own() -> None:
    mask = np.ones((1, 40, 60), dtype=bool)
    black = np.zeros((40, 60, 3), dtype=np.uint8)
    drawn = {write_names(black, mask, [letter]).tobytes() for letter in "×βл"}
    assert len(drawn) == 3  # a font draws missing glyphs as the same box


# Uncertainty and differences


def test_less_certain_is_brighter() -> None:
    picture = uncertainty_picture(np.array([[-30.0, -4.0, -1.0, -0.2, 0.0]]))
    assert picture.dtype == np.uint8
    brightness = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)[0].astype(int)
    assert (np.diff(brightness) > 0).all()
    assert brightness[0] < 5
    assert brightness[-1] > 240


def test_the_places_of_difference_match_a_slow_search() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.integers(0, 2, (2, 30, 41))
    other[:, :20] = one[:, :20]
    ((x0, y0, x1, y1),) = places_of_difference(one, other, side=7, count=1)
    assert (x1 - x0, y1 - y0) == (7, 7)
    counts = {
        (x, y): (one != other)[y : y + 7, x : x + 7].sum() for x in range(35) for y in range(24)
    }
    assert counts[x0, y0] == max(counts.values())


def test_places_of_difference_lie_in_the_map_and_only_where_maps_differ() -> None:
    one = np.zeros((20, 30), dtype=bool)
    other = one.copy()
    assert places_of_difference(one, other, side=8, count=3) == []
    other[0, 0] = other[19, 29] = True
    found = places_of_difference(one, other, side=8, count=3)
    assert len(found) == 2
    for x0, y0, x1, y1 in found:
        assert 0 <= x0 < x1 <= 30
        assert 0 <= y0 < y1 <= 20
        assert other[y0:y1, x0:x1].sum() == 1
    assert places_of_difference(one, other, side=99, count=1) == [(0, 0, 30, 20)]
    line = places_of_difference(one[:1], other[:1], side=8, count=3)  # a picture of one row
    assert len(line) == 1


# Views


def test_a_view_of_the_entire_image_at_its_size_is_the_image() -> None:
    view = View.around((0, 0, 60, 40), 60)
    shown = view.of_image(image())
    assert view.size == (40, 60)
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown, image())


def test_cells_of_a_map_appear_as_blocks() -> None:
    cells = np.arange(6.0).reshape(1, 2, 3)
    view = View(frame=(10, 20, 40, 40), window=(10, 20, 40, 40), size=(40, 60))
    shown = view.of_map(cells)
    assert shown.dtype == np.float32
    np.testing.assert_array_equal(shown[0], np.kron(cells[0], np.ones((20, 20))))
    half = View(frame=(10, 20, 40, 40), window=(25, 20, 40, 40), size=(40, 30)).of_map(cells)
    np.testing.assert_array_equal(half, shown[:, :, 30:])


def test_a_mask_appears_as_pasted_into_the_image() -> None:
    probabilities = torch.rand(1, 14, 14, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[8.3, 5.1, 41.2, 37.7]])
    pasted = paste_masks_in_image(probabilities, box, (40, 60), threshold=0.5)[0].numpy()
    view = View(frame=tuple(box[0].tolist()), window=(0, 0, 60, 40), size=(40, 60))
    shown = view.of_map(probabilities.numpy(), "bilinear")[0] > 0.5
    assert pasted.sum() > 100
    assert (shown != pasted).mean() < 0.001  # rounding of halves


def test_points_lie_in_their_cells() -> None:
    view = View(frame=(10, 20, 40, 40), window=(0, 10, 40, 50), size=(80, 80))
    cells = np.zeros((1, 4, 4))
    cells[0, 1, 2] = 1
    (point,) = view.of_points(np.array([[2.5 / 4, 1.5 / 4]]))
    y, x = np.nonzero(view.of_map(cells)[0])
    np.testing.assert_allclose(point, (x.mean() + 0.5, y.mean() + 0.5))
    narrow = View(frame=(10, 20, 40, 40), window=(10, 20, 20, 30), size=(80, 80))
    assert narrow.of_points(np.array([[2.5 / 4, 1.5 / 4]])).shape == (0, 2)


def test_a_zoom_shows_its_part_of_the_view() -> None:
    view = View(frame=(10, 20, 40, 40), window=(0, 10, 40, 50), size=(80, 80))
    cells = np.random.default_rng(0).random((1, 5, 6))
    part = view.zoomed((20, 30, 60, 70), 40)
    np.testing.assert_allclose(part.of_map(cells), view.of_map(cells)[:, 30:70, 20:60])
    assert view.zoomed((20, 30, 60, 50), 120).size == (60, 120)


def test_empty_views_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"frame: expected x0 < x1 and y0 < y1, got \(1, 0, 1, 2\)"
    ):
        View((1, 0, 1, 2), (0, 0, 1, 1), (4, 4))
    with pytest.raises(ValueError, match=r"size: .* got \(0, 4\)"):
        View((0, 0, 1, 1), (0, 0, 1, 1), (0, 4))


# Figures and animations


def panels(count: int) -> list[Panel]:
    points = np.array([[30.0, 20.0]])
    return [Panel(image(), f"panel {i}", points, 3.0) for i in range(count)]


def test_a_picture_of_panels_has_their_points() -> None:
    picture = panels_picture([panels(2), panels(1)])
    head = picture.shape[0] // 2 - 44
    assert picture.shape == (2 * (head + 40) + 8, 128, 3)
    np.testing.assert_array_equal(picture[head : head + 40, :60], panels(1)[0].drawn())
    assert (picture[head + 20, 30] == POINT_COLOR).all()


def test_an_animation_shows_its_pictures_in_order(tmp_path: Path) -> None:
    shades = [np.full((8, 12, 3), shade, dtype=np.uint8) for shade in (0, 120, 255)]
    save_animation(tmp_path / "new" / "a.gif", shades, seconds=0.5)
    with Image.open(tmp_path / "new" / "a.gif") as found:
        assert (found.n_frames, found.size) == (3, (12, 8))
        durations = []
        for number, shade in enumerate(shades):
            found.seek(number)
            durations.append(found.info["duration"])
            np.testing.assert_array_equal(np.array(found.convert("RGB")), shade)
    assert durations == [500, 500, 1000]
    with pytest.raises(ValueError, match="pictures of one size"):
        save_animation(tmp_path / "b.gif", [shades[0], image()])


@pytest.mark.parametrize(("suffix", "start"), [("pdf", b"%PDF"), ("SVG", b"<?xml")])
def test_a_figure_is_the_same_file_every_time_and_its_points_are_vectors(
    suffix: str, start: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{name}.{suffix}" for name in ("1", "2", "none")]
    for file, epoch in zip(files, ("0", "86400"), strict=False):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)  # the date for Matplotlib
        save_figure(file, [panels(2), panels(1)])
    save_figure(files[2], [[p._replace(points=np.zeros((0, 2))) for p in panels(2)], panels(1)])
    contents = [file.read_bytes() for file in files]
    assert contents[0].startswith(start)
    assert contents[0] == contents[1]
    assert len(contents[2]) < len(contents[0])
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in files}


def test_keypoints_and_lines_between_certain_ones_are_drawn_where_they_are():
    black = np.zeros((200, 300, 3), np.uint8)
    keypoints = np.array([[[50.5, 50.5, 0.9], [250.5, 50.5, 0.9], [150.5, 150.5, 0.05]]])
    blue, green = (255, 0, 0), (0, 255, 0)
    picture = draw_keypoints(black, keypoints, [(0, 1, blue), (1, 2, green)])
    assert not black.any()
    line = picture[50, 100:200]
    assert line[:, 0].min() > 200
    assert line[:, 1:].max() == 0
    assert tuple(picture[50, 50]) == tuple(picture[50, 250]) == POINT_COLOR
    assert not picture[60:].any()  # the uncertain one and its line
    assert not draw_keypoints(black, np.zeros((0, 3, 3)), [(0, 1, blue)]).any()
