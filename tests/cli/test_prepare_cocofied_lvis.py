"""`pointrend prepare-cocofied-lvis` on tiny LVIS files."""

import json
from pathlib import Path

import pytest

from point_rend.cli import prepare_cocofied_lvis
from tests.tiny_lvis import write_lvis_v1


def test_existing_files_are_prepared_and_omissions_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = write_lvis_v1(tmp_path)
    before = source.read_text()
    prepare_cocofied_lvis.main([str(tmp_path)])
    output = capsys.readouterr().out
    target = tmp_path / "lvis_v1_val_cocofied.json"
    assert f"{target}: 2 images, 3 annotations of 79 classes" in output
    assert "lvis_v1_val.json has no category for COCO's: hot dog" in output
    assert "1 images of lvis_v1_val.json were left out: they are not of COCO's val2017" in output
    assert [x["image_id"] for x in json.loads(target.read_text())["annotations"]] == [7, 9, 9]
    assert source.read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {source.name, target.name}


def test_v0_5_is_prepared_likewise(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_lvis_v1(tmp_path).rename(tmp_path / "lvis_v0.5_val.json")
    prepare_cocofied_lvis.main([str(tmp_path)])
    assert "lvis_v0.5_val_cocofied.json: 2 images" in capsys.readouterr().out


def test_a_folder_without_lvis_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        prepare_cocofied_lvis.main([str(tmp_path)])
    assert stop.value.code == 2
    assert "there is no lvis_v0.5_val.json or lvis_v1_val.json in" in capsys.readouterr().err


def test_a_file_that_is_cut_off_is_an_error_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = write_lvis_v1(tmp_path)
    source.write_text(source.read_text()[:-100])
    with pytest.raises(SystemExit) as stop:
        prepare_cocofied_lvis.main([str(tmp_path)])
    assert stop.value.code == 2
    assert "lvis_v1_val.json is truncated or not JSON" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
