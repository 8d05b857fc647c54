"""AP and boundary AP of Cityscapes, against the published scripts and a slow definition."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cityscapesscripts.evaluation.instances2dict import instances2dict
from cityscapesscripts.helpers.labels import labels, name2label
from PIL import Image

from point_rend.evaluation.cityscapes_ap import CityscapesAP, Prediction
from point_rend.evaluation.cityscapes_scripts import instances as scripts
from tests.evaluation.oracles import blob, boundary_iou, worse

VOID = [label.id for label in labels if label.ignoreInEval]
CLASSES = ("car", "person", "rider")
NAMES = {name2label[name].id: name for name in CLASSES}
ROAD, CARAVAN = name2label["road"].id, name2label["caravan"].id
SIZE = (120, 160)

Scene = tuple[np.ndarray, list[Prediction]]


def scene(seed: int, *, only_objects: bool = False) -> Scene:
    """Return instance ids (H, W) with objects, groups, void and specks, and diverse predictions."""
    rng = np.random.default_rng(seed)
    ids = np.full(SIZE, ROAD, dtype=np.uint16)
    found = []

    def predict(mask: np.ndarray, label: int) -> None:
        found.append(Prediction(label, round(float(rng.random()), 2), mask))

    if not only_objects:
        ids[blob(rng, *SIZE, 30)] = CARAVAN
    for number in range(6):
        for label in NAMES:
            kind = "object" if only_objects else rng.choice(["object", "object", "group", "speck"])
            mask = blob(rng, *SIZE, 4 if kind == "speck" else 16)
            ids[mask] = label if kind == "group" else 1000 * label + number
            for _ in range(int(rng.integers(0, 3))):
                predict(worse(rng, mask), label)
    predict(blob(rng, *SIZE, 20), CARAVAN)
    for label in NAMES:
        predict(np.zeros(SIZE, dtype=bool), label)
        predict(ids == CARAVAN, label)
        predict(ids == label, label)
    return ids, found


def metrics(scenes: list[Scene], *, boundaries: bool) -> dict[str, float]:
    evaluation = CityscapesAP(NAMES, VOID, boundaries=boundaries)
    for ids, found in scenes:
        evaluation.add(found, ids)
    return evaluation.metrics()


def official_matches(scenes: list[Scene], folder: Path) -> tuple[dict[str, Any], Any]:
    """Let the scripts match predictions in files, as users do."""
    args = scripts.CArgs()
    vars(args).update(vars(scripts.args), instLabels=list(CLASSES), quiet=True)
    args.predictionPath = str(folder)
    matches = {}
    for number, (ids, found) in enumerate(scenes):
        gt = folder / f"{number}_instanceIds.png"
        Image.fromarray(ids).save(gt)
        lines = []
        for k, (label, score, mask) in enumerate(found):
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{number}_{k}.png")
            lines.append(f"{number}_{k}.png {label} {score}")
        (folder / f"{number}.txt").write_text("\n".join(lines))
        instances = instances2dict([str(gt)], False)
        known = scripts.filterGtInstances(next(iter(instances.values())), args)
        predictions = scripts.readPredInfo(str(folder / f"{number}.txt"), args)
        ours, theirs = scripts.assignGt2Preds(known, Image.open(gt), predictions, args)
        matches[str(gt)] = {"groundTruth": ours, "prediction": theirs}
    return matches, args


def official_figures(matches: dict[str, Any], args: Any) -> dict[str, float]:
    averages = scripts.computeAverages(scripts.evaluateMatches(matches, args), args)
    by_class = {f"AP-{name}": averages["classes"][name]["ap"] for name in CLASSES}
    found = {"AP": averages["allAp"], "AP50": averages["allAp50%"]} | by_class
    return {name: 100 * float(figure) for name, figure in found.items()}


@pytest.mark.parametrize("seed", range(4))
def test_mask_ap_equals_that_of_the_published_scripts(seed: int, tmp_path: Path) -> None:
    scenes = [scene(10 * seed + number) for number in range(3)]
    expected = official_figures(*official_matches(scenes, tmp_path))
    result = metrics(scenes, boundaries=False)
    assert result == pytest.approx(expected, rel=1e-12)
    assert 5 < result["AP"] < 90


@pytest.mark.parametrize("seed", range(2))
def test_boundary_ap_equals_that_of_the_scripts_given_the_smaller_ious(
    seed: int, tmp_path: Path
) -> None:
    scenes = [scene(100 + 10 * seed + number, only_objects=True) for number in range(2)]
    matches, args = official_matches(scenes, tmp_path)

    def lower(first: dict[str, Any], second: dict[str, Any], overlap: float) -> None:
        """Return the intersection of a pair that gives the scripts a certain overlap."""
        pixels = first["pixelCount"] + second["pixelCount"]
        second["intersection"] = overlap * pixels / (1 + overlap)

    for (ids, found), match in zip(scenes, matches.values(), strict=True):
        counted = [x for x in found if x.label in NAMES and x.mask.any()]
        for name in CLASSES:
            # The scripts number the predictions of all classes in the order of their files.
            for prediction in match["prediction"][name]:
                for gt in prediction["matchedGt"]:
                    mask = counted[prediction["predID"]].mask
                    lower(prediction, gt, boundary_iou(mask, ids == gt["instID"], 0.005))
            for gt in match["groundTruth"][name]:
                for prediction in gt["matchedPred"]:
                    mask = counted[prediction["predID"]].mask
                    lower(gt, prediction, boundary_iou(mask, ids == gt["instID"], 0.005))
    result = metrics(scenes, boundaries=True)
    assert result == pytest.approx(official_figures(matches, args), rel=1e-9)
    assert result["AP"] < metrics(scenes, boundaries=False)["AP"]


def test_the_ground_truth_scores_100_and_a_class_without_objects_nan() -> None:
    ids = np.full(SIZE, ROAD)
    ids[10:40, 20:60] = 1000 * name2label["car"].id
    ids[60:90, 80:140] = 1000 * name2label["person"].id + 1
    found = [Prediction(int(x) // 1000, 0.9, ids == x) for x in np.unique(ids) if x >= 1000]
    for boundaries in (False, True):
        result = metrics([(ids, found)], boundaries=boundaries)
        expected = {"AP": 100, "AP50": 100, "AP-car": 100, "AP-person": 100, "AP-rider": math.nan}
        assert result == pytest.approx(expected, nan_ok=True)


def test_without_predictions_ap_is_0() -> None:
    ids, _ = scene(0)
    assert metrics([(ids, [])], boundaries=True)["AP"] == 0


def test_without_images_all_metrics_are_nan() -> None:
    assert all(math.isnan(figure) for figure in metrics([], boundaries=True).values())


def test_images_may_be_added_to_several_objects_and_merged() -> None:
    scenes = [scene(number) for number in range(3)]
    first, second = (CityscapesAP(NAMES, VOID, boundaries=True) for _ in range(2))
    for number, (ids, found) in enumerate(scenes):
        (first if number else second).add(found, ids)
    first.update(second)
    assert first.metrics() == pytest.approx(metrics(scenes, boundaries=True))


def test_masks_of_another_size_are_refused() -> None:
    evaluation = CityscapesAP(NAMES, VOID, boundaries=False)
    with pytest.raises(ValueError, match=r"\(120, 160\), got \(60, 80\)"):
        evaluation.add(
            [Prediction(26, 0.5, np.ones((60, 80), dtype=bool))], np.zeros(SIZE, dtype=int)
        )
