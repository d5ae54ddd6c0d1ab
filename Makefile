# Set-up happens by itself: a machine needs Python 3.11 or newer, pip and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
KERNELS := $(wildcard cgnn/kernels/*.c)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow bench format notebooks data constraints clean

demo: .venv/.demo          ## train on the embedded crystals, predict, write pictures into runs/demo
	rm -rf runs/demo
	$(BIN)/python examples/demo.py --output runs/demo

test: .venv/.dev           ## what CI runs: lint, types, tests, notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not network"
	$(BIN)/python -m pytest -n 2 --nbmake --nbmake-timeout=300 notebooks

test-slow: .venv/.dev      ## the long ones: kill and resume at random, large mutations, memory at 100,000 crystals
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow and not network"

bench: .venv/.dev          ## every benchmark, then the tables and the figure of benchmarks/README.md
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/run.py --readme

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: .venv/.dev      ## execute the notebooks and store their output
	$(BIN)/python -m pytest --nbmake --overwrite notebooks

data: .venv/.demo          ## make the embedded data set again
	$(BIN)/python data/make_elasticity_emt.py

constraints: .venv/.dev    ## write the versions that are installed
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > constraints.txt

clean:
	rm -rf .venv runs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache

# torch first and alone: a range in another package's metadata could otherwise fetch a build with gigabytes of CUDA.
.venv/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --constraint constraints.txt torch
	touch $@

.venv/.demo: .venv/.torch pyproject.toml setup.py $(KERNELS)
	$(PIP) --constraint constraints.txt --editable ".[demo]"
	touch $@

.venv/.dev: .venv/.torch pyproject.toml setup.py $(KERNELS)
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	touch $@ .venv/.demo
