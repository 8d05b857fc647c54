"""Cityscapes' scripts with the installed NumPy."""

import json
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import name2label
from PIL import Image

from point_rend.evaluation.cityscapes_scripts import instances, pixels

CAR, ROAD = name2label["car"].id, name2label["road"].id


def test_written_matches_hold_the_planted_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the scripts write into the current folder
    ids = np.full((20, 30), ROAD, dtype=np.uint16)
    ids[2:10, 3:13] = 1000 * CAR
    found = np.zeros(ids.shape, dtype=np.uint8)
    found[4:14, 3:13] = 255
    gt = tmp_path / "a_0_0_gtFine_instanceIds.png"
    Image.fromarray(ids).save(gt)
    Image.fromarray(found).save(tmp_path / "mask.png")
    (tmp_path / "a_0_0.txt").write_text(f"mask.png {CAR} 0.5")
    args = instances.CArgs()
    vars(args).update(vars(instances.args), quiet=True, JSONOutput=False)
    args.predictionPath = str(tmp_path)
    args.gtInstancesFile = str(tmp_path / "instances.json")

    instances.evaluateImgLists([str(tmp_path / "a_0_0.txt")], [str(gt)], args)

    (match,) = json.loads((tmp_path / "matches.json").read_text()).values()
    (car,) = match["groundTruth"]["car"]
    (predicted,) = car["matchedPred"]
    assert (car["pixelCount"], predicted["pixelCount"], predicted["intersection"]) == (80, 100, 60)


@pytest.mark.parametrize("invert", [False, True])
def test_membership_is_flat_and_equals_a_loop(invert: bool) -> None:
    array, wanted = np.arange(12).reshape(3, 4) % 5, [1, 4]
    expected = [(value in wanted) != invert for row in array.tolist() for value in row]
    for module in (instances, pixels):
        assert module.np.in1d(array, wanted, invert=invert).tolist() == expected
