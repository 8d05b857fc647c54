"""Copies of images: planted ones are found, others are not, and no pair is lost to the buckets."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from point_rend.data.checks.image_files import ImageRecord
from point_rend.inspection import duplicates
from point_rend.inspection.duplicates import Copies, ImageFile, find_copies, read_files
from point_rend.utils.pixel_format import PLAIN, PixelFormat


def photograph(seed: int, side: int = 160) -> np.ndarray:
    """An image (side, side, 3) of smooth random colors."""
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def read(paths: list[Path], pixel_format: PixelFormat = PLAIN) -> list[tuple[str, ImageFile]]:
    records = [ImageRecord(str(path), k, None, None, ()) for k, path in enumerate(paths)]
    files = read_files(records, pixel_format)
    return [(path.name, file) for path, file in zip(paths, files, strict=True)]


def write(folder: Path, **images: np.ndarray) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name.replace('_', '.')}" for name in images]
    for path, image in zip(paths, images.values(), strict=True):
        cv2.imwrite(str(path), image)
    return paths


def test_planted_copies_are_counted_and_nothing_else(tmp_path: Path) -> None:
    one, two = photograph(1), photograph(2)
    train = write(tmp_path / "train", a_png=one, b_png=two, c_png=photograph(3), d_png=one)
    smaller = cv2.resize(one, (96, 96), interpolation=cv2.INTER_AREA)
    brighter = cv2.convertScaleAbs(two, alpha=0.9, beta=20)
    others = {"i_jpg": photograph(5), "j_png": photograph(5)}
    test = write(
        tmp_path / "test",
        e_jpg=smaller,
        f_jpg=brighter,
        g_png=one,
        h_png=photograph(4),
        **others,
    )
    found = find_copies(read(train), read(test))
    assert found == Copies(
        exact_between=1,
        near_between=2,
        exact_train=1,
        near_train=0,
        exact_test=0,
        near_test=1,
        between=[
            ("a.png", "g.png", "exact"),
            ("a.png", "e.jpg", "near"),
            ("b.png", "f.jpg", "near"),
        ],
        within=[("a.png", "d.png", "exact"), ("i.jpg", "j.png", "near")],
    )


def test_forty_different_photographs_are_no_copies(tmp_path: Path) -> None:
    paths = write(tmp_path / "all", **{f"{k}_png": photograph(100 + k, 64) for k in range(40)})
    found = find_copies(read(paths[:20]), read(paths[20:]))
    assert found == Copies(0, 0, 0, 0, 0, 0, [], [])


def test_images_without_structure_are_copies_only_of_their_own_shade(tmp_path: Path) -> None:
    """All flat images have the same gradients; their small pictures agree but for brightness."""
    ramp = np.linspace(0, 60, 96, dtype=np.uint8)
    slope = np.broadcast_to(ramp[:, None, None], (96, 96, 3)).copy()  # no gradient along rows
    flat = np.full((96, 96, 3), 90, np.uint8)
    shades = {"darker_png": flat - 50, "same_png": cv2.resize(flat, (48, 48))}
    paths = write(tmp_path / "all", flat_png=flat, slope_png=slope, **shades)
    hashes = [file.gradients for _, file in read(paths)]
    assert hashes == [0, 0, 0, 0]
    found = find_copies(read(paths[:1]), read(paths[1:]))
    assert (found.near_between, found.near_test) == (1, 0)
    assert found.between == [("flat.png", "same.png", "near")]


@pytest.mark.parametrize("bucket", [4096, 7])
def test_the_buckets_lose_no_pair_within_the_limit(
    bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pairs of hashes, counted by Python's own integers."""
    rng = np.random.default_rng(5)
    base = [int(x) for x in rng.integers(0, 1 << 63, 40, dtype=np.int64)]
    hashes = [*base]
    for origin in base[:30]:
        bits = rng.choice(64, int(rng.integers(1, 8)), replace=False)
        hashes.append(origin ^ sum(1 << int(bit) for bit in bits))
    small = np.full((16, 16), 7, np.uint8)
    files = [ImageFile("", bytes([k]), x, small) for k, x in enumerate(hashes)]
    expected = {
        later
        for later in range(len(hashes))
        for earlier in range(later)
        if (hashes[later] ^ hashes[earlier]).bit_count() <= duplicates.MAX_BITS
    }
    assert 5 < len(expected) < 30
    monkeypatch.setattr(duplicates, "MAX_BUCKET", bucket)
    found = {later for later, _ in duplicates._near_pairs(files)}
    assert found == expected


def test_broken_files_are_named_with_their_fault(tmp_path: Path) -> None:
    (good,) = write(tmp_path / "x", good_jpg=photograph(6))
    cut, text, lost = (tmp_path / "x" / name for name in ("cut.jpg", "text.jpg", "lost.jpg"))
    content = good.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    text.write_text("no image")
    found = dict(read([good, cut, text, lost]))
    assert found["good.jpg"].fault == ""
    assert "truncated" in found["cut.jpg"].fault
    assert found["text.jpg"].fault == "is not an image, but a text"
    assert found["lost.jpg"].fault == "does not exist"
    assert find_copies([*found.items()], []) == Copies(0, 0, 0, 0, 0, 0, [], [])


def test_arrays_of_many_channels_are_compared_too(tmp_path: Path) -> None:
    values = np.random.default_rng(7).integers(0, 4000, (8, 8), dtype=np.uint16)
    large = cv2.resize(values, (64, 64), interpolation=cv2.INTER_LINEAR)
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    for path, image in zip(paths, (large, large[:, ::-1]), strict=True):
        np.save(path, np.stack([image] * 5, axis=2))
    copy = tmp_path / "c.npy"
    copy.write_bytes(paths[0].read_bytes())
    found = find_copies(
        read(paths, PixelFormat("BGR", 5, 12)), read([copy], PixelFormat("BGR", 5, 12))
    )
    assert found[:6] == (1, 0, 0, 0, 0, 0)
