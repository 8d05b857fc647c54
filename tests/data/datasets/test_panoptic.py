"""Label maps of stuff from panoptic labels in COCO's format."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from point_rend.data.datasets.panoptic import write_stuff_labels
from tests.tiny_datasets import process_state_restored
from tests.tiny_panoptic import PanopticSet, write_panoptic


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[PanopticSet]:
    with process_state_restored():
        yield write_panoptic(tmp_path / "data")


def label_maps(tiny: PanopticSet) -> dict[str, np.ndarray]:
    folder = Path(MetadataCatalog.get(tiny.name).sem_seg_root)
    return {x.name: cv2.imread(str(x), cv2.IMREAD_UNCHANGED) for x in sorted(folder.iterdir())}


def test_label_maps_are_those_drawn_beside_the_panoptic_labels(tiny: PanopticSet) -> None:
    drawn = label_maps(tiny)
    kept, lost = drawn
    folder = Path(MetadataCatalog.get(tiny.name).sem_seg_root)
    (folder / lost).unlink()
    before = (folder / kept).stat()
    done = write_stuff_labels(tiny.name)
    assert done == (folder, 1, 1)
    assert (folder / kept).stat() == before
    found = label_maps(tiny)
    assert found.keys() == drawn.keys()
    assert {*np.unique(drawn[lost]).tolist()} == {0, 1, 2, 255}
    for name, labels in drawn.items():
        assert found[name].dtype == np.uint8
        assert np.array_equal(found[name], labels)


@pytest.mark.parametrize(
    ("color", "message"),
    [
        ((9, 9, 9), r"001\.png has pixels of segments that the JSON file does not list"),
        (None, r"001\.png"),
    ],
)
def test_labels_that_cannot_be_used_are_named_and_give_no_map(
    tiny: PanopticSet, color: tuple[int, int, int] | None, message: str
) -> None:
    folder = Path(MetadataCatalog.get(tiny.name).sem_seg_root)
    (folder / "001.png").unlink()
    file = tiny.folder / "001.png"
    if color is None:
        file.write_bytes(file.read_bytes()[:99])
    else:
        image = cv2.imread(str(file))
        image[0, 0] = color
        cv2.imwrite(str(file), image)
    with pytest.raises(ValueError, match=message):
        write_stuff_labels(tiny.name)
    assert [x.name for x in folder.iterdir()] == ["000.png"]


def test_stuff_of_an_unknown_category_is_refused(tiny: PanopticSet) -> None:
    ids = MetadataCatalog.get(tiny.name).stuff_dataset_id_to_contiguous_id
    name = f"{tiny.name}_other"
    known = MetadataCatalog.get(tiny.name).as_dict()
    del known["name"]
    known["stuff_dataset_id_to_contiguous_id"] = {k: v for k, v in ids.items() if k != 200}
    MetadataCatalog.get(name).set(**known)
    DatasetCatalog.register(name, list)
    with pytest.raises(ValueError, match="its metadata have no stuff of category 200"):
        write_stuff_labels(name)
