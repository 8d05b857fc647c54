"""The built-in data set."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from pycocotools.coco import COCO

from point_rend.data.shapes.__main__ import main
from point_rend.data.shapes.coco import Split, annotate, generate, trace_polygons
from point_rend.data.shapes.outlines import CLASSES, SHAPES
from point_rend.data.shapes.scene import SUPERSAMPLING, Scene, draw_scene, rasterize

SIZE = (128, 160)


def scenes(count: int = 12) -> list[Scene]:
    return [draw_scene(np.random.default_rng([7, i]), SIZE) for i in range(count)]


def planted(*figures: np.ndarray, label: int = 0) -> Scene:
    """A scene of given masks, from back to front."""
    owners = np.full([side * SUPERSAMPLING for side in figures[0].shape], -1, dtype=np.int8)
    for i, figure in enumerate(figures):
        owners[np.kron(figure, np.ones((SUPERSAMPLING, SUPERSAMPLING), dtype=bool))] = i
    image = np.zeros((*figures[0].shape, 3), dtype=np.uint8)
    return Scene(image, [label] * len(figures), owners)


def as_mask(segmentation: dict | list, size: tuple[int, int]) -> np.ndarray:
    if isinstance(segmentation, dict):
        return mask_util.decode(segmentation).astype(bool)
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(segmentation, *size))) > 0


def disc(radius: float, center: tuple[float, float] = (20, 24), side: int = 48) -> np.ndarray:
    y, x = np.mgrid[:side, :side] + 0.5
    return (y - center[0]) ** 2 + (x - center[1]) ** 2 < radius**2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Split]:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return generate(folder, num_train=8, num_val=3, image_size=SIZE, seed=3)


def everything_below(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_visible_masks_are_disjoint() -> None:
    for scene in scenes():
        masks = scene.masks
        assert masks.dtype == bool
        assert masks.shape == (len(scene.classes), *SIZE)
        assert masks.sum(axis=0).max() <= 1


def test_the_masks_are_where_the_image_shows_the_objects() -> None:
    rng = np.random.default_rng(0)
    square = [[np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])]]
    stamp = rasterize(square, np.array([[20.0, 0, 30], [0, 20.0, 24]]), (48, 64))
    assert stamp is not None
    assert stamp.block == (slice(14, 34), slice(20, 40))
    assert stamp.subpixels.all()
    edge = 0
    for scene in (draw_scene(rng, SIZE) for _ in range(6)):
        smooth = scene.image.astype(float).mean(axis=2)
        step = np.abs(np.diff(smooth, axis=1))
        labels = np.max(scene.masks * (1 + np.arange(len(scene.classes)))[:, None, None], axis=0)
        border = np.diff(labels, axis=1) != 0
        edge += step[border].mean() > 2 * step[~border].mean()
    assert edge >= 5


def test_a_front_object_occludes_the_one_behind() -> None:
    scene = planted(disc(12), disc(6, (20, 40)))
    full = disc(12)
    assert not (scene.masks[0] & disc(6, (20, 40))).any()
    np.testing.assert_array_equal(scene.masks[0], full & ~disc(6, (20, 40)))


def test_a_ring_is_an_rle_with_its_hole_and_a_disc_is_a_polygon() -> None:
    ring = disc(14) & ~disc(7)
    (annotation,) = annotate(planted(ring), image_id=1, first_id=1)
    assert set(annotation["segmentation"]) == {"size", "counts"}
    np.testing.assert_array_equal(as_mask(annotation["segmentation"], ring.shape), ring)
    assert annotation["area"] == ring.sum()

    (annotation,) = annotate(planted(disc(14)), image_id=1, first_id=1)
    assert isinstance(annotation["segmentation"], list)
    assert len(annotation["segmentation"]) == 1


def test_an_object_cut_in_two_has_two_polygons() -> None:
    bar = np.zeros((48, 48), dtype=bool)
    bar[:, 22:27] = True
    back, front = annotate(planted(disc(14), bar), image_id=5, first_id=11)
    assert len(back["segmentation"]) == 2
    assert len(front["segmentation"]) == 1
    assert [back["id"], front["id"]] == [11, 12]
    assert back["image_id"] == front["image_id"] == 5


def test_polygons_agree_with_the_visible_mask_up_to_boundary_pixels() -> None:
    seen = wrong = right = 0
    for scene in scenes():
        for annotation, mask, i in zip(
            annotate(scene, image_id=1, first_id=1), scene.masks, range(99), strict=False
        ):
            if isinstance(annotation["segmentation"], dict):
                continue
            seen += 1
            share = (scene.owners == i).reshape(SIZE[0], SUPERSAMPLING, SIZE[1], SUPERSAMPLING)
            share = share.mean(axis=(1, 3))
            differs = as_mask(annotation["segmentation"], SIZE) != mask
            # Certain pixels: the object fills the pixel with all neighbors, or none of them.
            padded = np.pad(share, 1, mode="edge")
            around = [padded[y : y + SIZE[0], x : x + SIZE[1]] for y in range(3) for x in range(3)]
            clear = (np.min(around, axis=0) == 1) | (np.max(around, axis=0) == 0)
            assert not (differs & clear).any()
            wrong += differs.sum()
            right += mask.sum()
    assert seen > 20
    assert wrong < 0.04 * right


def test_a_hole_smaller_than_a_pixel_does_not_count() -> None:
    subpixels = np.kron(disc(14), np.ones((SUPERSAMPLING, SUPERSAMPLING))).astype(bool)
    middle = slice(80, 82)
    subpixels[middle, middle] = False
    polygons = trace_polygons(subpixels)
    assert polygons is not None
    assert len(polygons) == 1


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_one_connected_object_that_fills_its_frame(name: str) -> None:
    for seed in range(5):
        figure = SHAPES[name](np.random.default_rng(seed))
        stamp = rasterize(figure, np.array([[40.0, 0, 60], [0, 40.0, 60]]), (120, 120))
        assert stamp is not None
        rows, columns = stamp.block
        assert 60 <= max(rows.stop - rows.start, columns.stop - columns.start) <= 100
        polygons = trace_polygons(stamp.subpixels)
        assert polygons is None or len(polygons) == 1
        if name in ("gear", "ring", "key"):
            assert polygons is None


def test_the_json_is_coco_and_agrees_with_pycocotools(dataset: dict[str, Split]) -> None:
    for split, count in (("train", 8), ("val", 3)):
        coco = COCO(str(dataset[split].json_file))
        content = json.loads(dataset[split].json_file.read_text())
        assert set(content) == {"info", "licenses", "images", "annotations", "categories"}
        assert len(content["images"]) == count
        assert [category["name"] for category in content["categories"]] == list(CLASSES)
        ids = [annotation["id"] for annotation in content["annotations"]]
        assert ids == list(range(1, len(ids) + 1))
        for annotation in content["annotations"]:
            rle = coco.annToRLE(annotation)
            assert annotation["area"] == mask_util.area(rle)
            assert annotation["bbox"] == mask_util.toBbox(rle).tolist()
            assert annotation["iscrowd"] == 0
            assert (content["images"][0]["height"], content["images"][0]["width"]) == SIZE


def test_polygons_and_rle_occur_in_one_set(dataset: dict[str, Split]) -> None:
    content = json.loads(dataset["train"].json_file.read_text())
    kinds = Counter(type(annotation["segmentation"]) for annotation in content["annotations"])
    assert kinds[dict] >= 5
    assert kinds[list] >= 5


def test_detectron2_loads_every_instance(dataset: dict[str, Split]) -> None:
    name = "shapes_loaded_by_test"
    split = dataset["train"]
    content = json.loads(split.json_file.read_text())
    records = load_coco_json(str(split.json_file), str(split.image_root), name)
    MetadataCatalog.remove(name)
    loaded = [annotation for record in records for annotation in record["annotations"]]
    assert len(records) == 8
    assert all(Path(record["file_name"]).is_file() for record in records)
    assert len(loaded) == len(content["annotations"])
    assert all("segmentation" in annotation for annotation in loaded)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    dataset: dict[str, Split], tmp_path: Path
) -> None:
    first = everything_below(dataset["train"].image_root.parent)
    generate(tmp_path / "again", num_train=8, num_val=3, image_size=SIZE, seed=3)
    assert everything_below(tmp_path / "again") == first
    generate(tmp_path / "other", num_train=8, num_val=3, image_size=SIZE, seed=4)
    other = everything_below(tmp_path / "other")
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first)


def test_a_larger_set_begins_with_the_smaller_one(
    dataset: dict[str, Split], tmp_path: Path
) -> None:
    split = generate(tmp_path / "less", num_train=2, num_val=1, image_size=SIZE, seed=3)["train"]
    for name in ("000001.jpg", "000002.jpg"):
        same = dataset["train"].image_root / name
        assert (split.image_root / name).read_bytes() == same.read_bytes()


def test_an_identical_set_is_reused_untouched(tmp_path: Path) -> None:
    arguments = {"num_train": 2, "num_val": 1, "image_size": (64, 64), "seed": 0}
    first = generate(tmp_path / "shapes", **arguments)
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "shapes").rglob("*"))]
    manifest = json.loads((tmp_path / "shapes" / "shapes.json").read_text())
    assert manifest == {  # as in the first version
        "generator": "point_rend.data.shapes 1",
        "train": 2,
        "val": 1,
        "image_size": [64, 64],
        "seed": 0,
    }
    assert generate(tmp_path / "shapes", **arguments) == first
    assert times == [path.stat().st_mtime_ns for path in sorted((tmp_path / "shapes").rglob("*"))]


def test_a_directory_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"mine is not empty.*choose another"):
        generate(tmp_path / "mine", num_train=1, num_val=1, image_size=(64, 64))
    assert everything_below(tmp_path / "mine") == {"thesis.txt": b"years of work"}

    generate(tmp_path / "shapes", num_train=1, num_val=1, image_size=(64, 64))
    with pytest.raises(FileExistsError, match=r"'seed': 0.*'seed': 1"):
        generate(tmp_path / "shapes", num_train=1, num_val=1, image_size=(64, 64), seed=1)
    (tmp_path / "shapes" / "val" / "000001.jpg").unlink()
    with pytest.raises(FileExistsError, match=r"lacks 1 of its files, such as val.000001.jpg"):
        generate(tmp_path / "shapes", num_train=1, num_val=1, image_size=(64, 64))


def test_an_interrupted_generation_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("point_rend.data.shapes.coco.draw_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "shapes", num_train=1, num_val=1, image_size=(64, 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "train split needs at least 1 image, got 0"),
        ({"num_val": -1}, "val split needs at least 1 image, got -1"),
        ({"image_size": (64, 20)}, r"at least 64 pixels, got \(64, 20\)"),
        ({"seed": -3}, "must not be negative, got -3"),
    ],
)
def test_impossible_numbers_are_refused(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(tmp_path / "shapes", **arguments)


def test_the_command_line_writes_the_requested_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = ["--train", "1", "--val", "1", "--size", "64", "96", "--seed", "2"]
    main(["--output", str(tmp_path / "shapes"), *numbers])
    assert "instances_val.json" in capsys.readouterr().out
    content = json.loads((tmp_path / "shapes/annotations/instances_val.json").read_text())
    assert (content["images"][0]["height"], content["images"][0]["width"]) == (64, 96)
    with pytest.raises(SystemExit) as refusal:
        main(["--output", str(tmp_path / "shapes"), "--train", "2"])
    assert refusal.value.code == 2
    assert "holds the data set" in capsys.readouterr().err
