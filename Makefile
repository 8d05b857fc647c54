# Everything runs in .venv, which the first target that needs it sets up (tools/setup_venv.sh).
# Python 3.11 to 3.14 and a package index are the only requirements.
#
#   make PYTHON=/path/to/python3.13 ...        use this Python, not the first suitable one
#   make VENV=.venv-3.13 ...                   use another environment than .venv
#   make DETECTRON2=<requirement or path> ...  use this Detectron2 (see tools/install_detectron2.py)
#   make test ARGS="-k sampling"               more arguments for pytest

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help demo demo-semantic notebook test test-pythons lint type format venv clean

help:
	@echo "make demo            train a small PointRend on drawn shapes, evaluate it, write pictures"
	@echo "make demo-semantic   the same for semantic segmentation, on street scenes"
	@echo "make notebook        execute the tutorial and save it with its results"
	@echo "make test            run the tests"
	@echo "make test-pythons    run the core tests on every other Python of this machine"
	@echo "make lint            check style, format and spelling"
	@echo "make type            check the types"
	@echo "make format          format the sources"
	@echo "make venv            set up .venv; the other targets do so when needed"
	@echo "make clean           remove .venv and caches, keep the results in output/"

venv:
	@VENV="$(VENV)" sh tools/setup_venv.sh

demo: venv
	$(BIN)/pointrend demo $(ARGS)

demo-semantic: venv
	$(BIN)/pointrend demo-semantic $(ARGS)

notebook: venv
	$(BIN)/python tools/dev/run_notebook.py notebooks/tutorial.ipynb $(ARGS)

# One thread in each of a few processes is faster than many threads on small tensors.
test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
		--no-loadscope-reorder $(ARGS)

test-pythons: venv
	$(BIN)/python tools/dev/check_pythons.py

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

type: venv
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
