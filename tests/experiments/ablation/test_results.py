"""Saved metrics and their provenance."""

import os
from pathlib import Path

import pytest

from point_rend.experiments.ablation.results import (
    Provenance,
    digest,
    load_metrics,
    provenance_of,
    save_metrics,
)
from tests.experiments.ablation.tiny import evaluation_options, semantic_options
from tests.tiny_datasets import POINTREND

PROVENANCE = Provenance(
    ["--config-file", "a.yaml"], {"config a.yaml": "c0", "MODEL.WEIGHTS a.pth": "f1"}
)


def test_metrics_are_read_back_and_those_of_an_unfinished_run_are_none(tmp_path: Path):
    file = tmp_path / "run.json"
    assert load_metrics(file, PROVENANCE) is None
    for metrics in ({"segm/AP": 1.5, "bbox/AP": -1.0}, None):
        save_metrics(file, PROVENANCE, metrics)
        assert load_metrics(file, PROVENANCE) == metrics


def test_metrics_of_other_options_are_refused(tmp_path: Path):
    save_metrics(tmp_path / "run.json", PROVENANCE, {})
    with pytest.raises(ValueError, match=r"measured with other options, --config-file a\.yaml: ex"):
        load_metrics(tmp_path / "run.json", PROVENANCE._replace(options=[]))


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({"config a.yaml": "c1"}, "other contents of config a.yaml: expected"),
        ({"config a.yaml": "c1", "MODEL.WEIGHTS a.pth": ""}, "a.yaml and MODEL.WEIGHTS a.pth"),
        ({"annotations b.json of b": "b0"}, "other contents of annotations b.json of b: expected"),
    ],
)
def test_metrics_of_other_contents_are_refused_with_their_names(
    tmp_path: Path, inputs: dict[str, str], named: str
):
    file = tmp_path / "run.json"
    other = PROVENANCE._replace(inputs=PROVENANCE.inputs | inputs)
    for saved, present in ((PROVENANCE, other), (other, PROVENANCE)):
        save_metrics(file, saved, {})
        with pytest.raises(ValueError, match=named):
            load_metrics(file, present)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"options": [', "is truncated or not JSON"),
        ("{}", "is not a result of this version of the ablation: expected a JSON object with opt"),
        ("[]", "is not a result"),
        ('{"options": [], "figures": {}}', "is not a result"),
        ('{"options": "x", "inputs": {}, "figures": {}}', "is not a result"),
        ('{"options": [1], "inputs": {}, "figures": {}}', "is not a result"),
        ('{"options": [], "inputs": [], "figures": {}}', "is not a result"),
        ('{"options": [], "inputs": {}, "figures": [1]}', "is not a result"),
        ('{"options": [], "inputs": {}, "figures": {"segm/AP": "1"}}', "is not a result"),
    ],
)
def test_a_file_of_other_content_is_refused(tmp_path: Path, text: str, message: str):
    file = tmp_path / "side14_points196.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"side14_points196\.json {message}"):
        load_metrics(file, Provenance([], {}))


def test_label_maps_are_annotations(tmp_path: Path):
    options = semantic_options(tmp_path)
    labels = Path(options[5])
    before = provenance_of(options, training=True).inputs
    next(labels.rglob("*.png")).unlink()
    after = provenance_of(options, training=True).inputs
    assert [x for x in after if after[x] != before[x]] == [f"annotations {labels} of tiny"]


def test_the_provenance_follows_contents_and_not_times_or_folders(tmp_path: Path):
    options = evaluation_options(tmp_path)
    provenance = provenance_of(options, training=False)
    json_file, weights = options[options.index("tiny") + 1], options[-1]
    assert list(provenance.inputs) == [
        f"config {POINTREND}",
        f"MODEL.WEIGHTS {weights}",
        f"annotations {json_file} of tiny",
    ]
    os.utime(weights, (1, 1))
    os.utime(json_file, (1, 1))
    moved = provenance_of([*options, "OUTPUT_DIR", "elsewhere"], training=False)
    assert moved.inputs == provenance.inputs
    Path(json_file).write_text(Path(json_file).read_text() + " ")
    changed = provenance_of(options, training=False).inputs
    assert [x for x in changed if changed[x] != provenance.inputs[x]] == list(changed)[2:]


def test_the_digest_of_a_folder_follows_its_files_and_their_names(tmp_path: Path):
    assert digest(tmp_path / "nowhere") == ""
    found = []
    for name, text in (("a/b", "1"), ("a/b", "2"), ("c", "1"), ("c", "")):
        file = tmp_path / "labels" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        found.append(digest(tmp_path / "labels"))
    assert len(set(found)) == 4
    file.unlink()
    assert digest(tmp_path / "labels") == found[1]
