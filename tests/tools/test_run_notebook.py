"""The script that executes notebooks, on notebooks of a few lines."""

from pathlib import Path

import nbformat
import pytest

from tests.tiny_datasets import load_script

run_notebook = load_script("tools/dev/run_notebook.py")


@pytest.fixture(autouse=True)
def _name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["run_notebook.py"])


def write(folder: Path, *sources: str) -> Path:
    """Write a notebook with these cells; the first has the parameters."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    file = folder / "notebook.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), file)
    return file


def test_results_are_written_and_metadata_are_reproducible(tmp_path: Path) -> None:
    file = write(
        tmp_path, "SIDE = 7", "import os\nprint(2 * SIDE, os.path.exists('notebook.ipynb'))"
    )
    before = run_notebook.sources_hash(nbformat.read(file, as_version=4))
    run_notebook.main([str(file)])
    done = nbformat.read(file, as_version=4)
    assert done.cells[1].outputs[0].text == "14 True\n"
    assert [cell.execution_count for cell in done.cells] == [1, 2]
    assert [dict(cell.metadata) for cell in done.cells] == [{"tags": ["parameters"]}, {}]
    assert set(done.metadata) == {"kernelspec", "language_info", run_notebook.SOURCES}
    assert done.metadata[run_notebook.SOURCES] == before
    assert run_notebook.sources_hash(done) == before
    done.cells.append(nbformat.v4.new_markdown_cell("Text does not matter."))
    assert run_notebook.sources_hash(done) == before
    done.cells[1].source += "\n"
    assert run_notebook.sources_hash(done) != before


def test_given_parameters_override_those_of_the_notebook(tmp_path: Path) -> None:
    file = write(tmp_path, "SIDE = 7\nNAME = 'a'", "print(SIDE, NAME)")
    untouched = file.read_bytes()
    output = tmp_path / "new" / "done.ipynb"
    run_notebook.main([str(file), "--output", str(output), "--set", "SIDE=28", "NAME=output/b"])
    done = nbformat.read(output, as_version=4)
    assert done.cells[-1].outputs[0].text == "28 output/b\n"
    assert done.cells[1].id == "injected-parameters"
    assert file.read_bytes() == untouched


def test_a_failing_cell_leaves_the_file_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, "SIDE = 7", "print(SIDE)", "SIDE / 0")
    untouched = file.read_bytes()
    with pytest.raises(SystemExit) as end:
        run_notebook.main([str(file)])
    assert end.value.code == run_notebook.FAILED
    error = capsys.readouterr().err
    assert "ZeroDivisionError" in error
    assert error.endswith(f"error: {file} does not run\n")
    assert file.read_bytes() == untouched
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["notebook.ipynb", "--set", "SIZE=3"], "--set SIZE: the notebook's parameters are SIDE"),
        (["missing.ipynb"], "there is no notebook missing.ipynb"),
        (["text.ipynb"], "text.ipynb is not a notebook"),
        (["list.ipynb"], "list.ipynb is not a notebook"),
        (["notebook.ipynb", "--set", "SIDE"], "expected NAME=VALUE, got 'SIDE'"),
        (["notebook.ipynb", "--output", "."], "--output . cannot be written: it is a folder"),
        (["notebook.ipynb", "--output", "list.ipynb/a"], "written: list.ipynb is not a folder"),
    ],
)
def test_user_errors_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    write(tmp_path, "SIDE = 7")
    (tmp_path / "text.ipynb").write_text("# Text\n")
    (tmp_path / "list.ipynb").write_text("[1]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_notebook, "execute", None)
    with pytest.raises(SystemExit) as end:
        run_notebook.main(arguments)
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in line
    assert message in line


def test_a_notebook_without_parameters_has_none() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("SIDE = 7")])
    with pytest.raises(ValueError, match="--set SIDE: the notebook has no parameters"):
        run_notebook.with_parameters(notebook, {"SIDE": 3})
    assert run_notebook.with_parameters(notebook, {}) == notebook
