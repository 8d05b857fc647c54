"""The tutorial notebook: executed in small, and as it is committed, with its results."""

import base64
import re
import subprocess
import sys
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.tiny_datasets import load_script

run_notebook = load_script("tools/dev/run_notebook.py")

NOTEBOOK = REPOSITORY / "notebooks" / "tutorial.ipynb"
SMALL = ["IMAGE_SIDE=64", "NUM_TRAIN=4", "NUM_VAL=2", "ITERATIONS=3", "MIN_SCORE=0.0", "INSTANCE=0"]
MAX_BYTES = 800_000
PANEL, GAP = 150, 8  # of the figure of all instances

Results = dict[str, list[nbformat.NotebookNode]]


@pytest.fixture(scope="module")
def committed() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    folder = tmp_path_factory.mktemp("tutorial")
    file = folder / "tutorial.ipynb"
    values = [*SMALL, f"OUTPUT={folder / 'output'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        run_notebook.main([str(NOTEBOOK), "--output", str(file), "--set", *values])
    return nbformat.read(file, as_version=4)


@pytest.fixture(scope="module", params=["committed", "executed"])
def results(request: pytest.FixtureRequest) -> Results:
    """Outputs of each cell."""
    notebook = request.getfixturevalue(request.param)
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def printed(results: Results, cell: str) -> list[str]:
    (stream,) = results[cell]
    assert stream.name == "stdout"
    return stream.text.splitlines()


def picture(results: Results, cell: str) -> np.ndarray:
    (encoded,) = [
        value
        for output in results[cell]
        for kind, value in output.data.items()
        if kind.startswith("image/")
    ]
    return cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR)


def scores(results: Results) -> dict[str, dict[str, float]]:
    header, *rows = printed(results, "scores")
    columns = re.split(r"\s{2,}", header.strip())
    table = {}
    for row in rows:
        name, *numbers = re.split(r"\s{2,}", row)
        table[name] = dict(zip(columns, map(float, numbers), strict=True))
    return table


def test_no_cell_writes_to_stderr(results: Results) -> None:
    assert len(results) >= 18
    for cell, outputs in results.items():
        for output in outputs:
            assert output.output_type != "error", cell
            assert output.get("name") != "stderr", cell


@pytest.mark.parametrize(
    "cell",
    [
        *("look-at-data", "losses", "predictors", "every-instance", "differences"),
        *("rendering", "maps", "training-points", "flowers"),
    ],
)
def test_every_figure_is_there(results: Results, cell: str) -> None:
    shown = picture(results, cell)
    assert min(shown.shape[:2]) > 80
    assert np.unique(shown).size > 100


def test_every_instance_is_shown_two_in_a_row(results: Results) -> None:
    height, width = picture(results, "every-instance").shape[:2]
    assert width == 6 * PANEL + 5 * GAP
    title = 24
    rows, rest = divmod(height + GAP, title + PANEL + GAP)
    assert rest == 0
    assert 1 <= rows <= 4


def test_the_rendering_predicts_as_many_points_in_each_step(results: Results) -> None:
    lines = [line.split()[:2] for line in printed(results, "numbers")]
    assert lines == [[f"{side}×{side}", str(28**2)] for side in (28, 56, 112, 224)]


def test_the_flower_is_that_of_the_dense_grid_for_a_sixteenth_of_its_points(
    results: Results,
) -> None:
    _, *rows, dense = printed(results, "flower")
    assert dense.split()[-2:] == [str(224**2), "0"]
    table = [[int(number.rstrip("²")) for number in row.split()] for row in rows]
    points = {side: count for side, count, _ in table}
    # Grids that the points of a step cover are left out, but for the last of them.
    assert points == {7: 6 * 7**2, 14: 5 * 14**2, 28: 4 * 28**2, 56: 3 * 56**2}
    wrong = [count for _, _, count in table]
    assert wrong == sorted(wrong, reverse=True)
    assert wrong[0] > 100
    assert dict(zip(points, wrong, strict=True))[28] == 0
    assert points[28] == 224**2 / 16


def test_the_scores_are_a_table_of_percentages(results: Results) -> None:
    table = scores(results)
    assert list(table) == ["coarse 7×7", "PointRend"]
    for row in table.values():
        assert list(row) == ["AP", "AP50", "AP75", "boundary AP"]
        assert all(0 <= score <= 100 for score in row.values())


def test_the_committed_results_are_those_of_the_committed_cells(
    committed: nbformat.NotebookNode,
) -> None:
    advice = "a cell was changed: make notebook"
    assert committed.metadata[run_notebook.SOURCES] == run_notebook.sources_hash(committed), advice
    cells = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_the_committed_results_support_the_text(committed: nbformat.NotebookNode) -> None:
    results = {cell.id: cell.outputs for cell in committed.cells if cell.cell_type == "code"}
    coarse, fine = scores(results).values()
    assert fine["AP"] > coarse["AP"]
    assert fine["boundary AP"] > coarse["boundary AP"]


def test_the_committed_notebook_is_small_and_names_no_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text.encode()) < MAX_BYTES
    outside_pictures = re.sub(r'"image/(jpeg|png)": ".*"', "", text)
    assert not re.search(r"/(home|root|tmp|work|usr|Users)/|site-packages", outside_pictures)
    assert "iopub" not in outside_pictures  # times of execution


@pytest.mark.parametrize("folder", [REPOSITORY, NOTEBOOK.parent])
def test_the_clone_is_found_from_its_top_and_from_the_notebooks(
    committed: nbformat.NotebookNode, folder: Path
) -> None:
    (setup,) = (cell.source for cell in committed.cells if cell.id == "setup")
    done = subprocess.run(
        [sys.executable, "-c", f"{setup}\nprint(ROOT)"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(REPOSITORY)
