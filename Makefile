# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0

.PHONY: demo test lint bench fuzz caffe-check clean

demo: $(VENV)/.demo
	$(BIN)/python -m bnfold.demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.fold_time
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.coverage
	$(BIN)/python -m benchmarks.coverage --table
	$(BIN)/python -m benchmarks.onnx_exports
	$(BIN)/python -m benchmarks.onnx_patterns
	$(BIN)/python -m benchmarks.onnx_files

# Random networks in every frontend: make fuzz N=10000 SEED=0
N ?= 10000
SEED ?= 0
fuzz: $(VENV)/.dev
	$(BIN)/python -m benchmarks.fuzz --networks $(N) --seed $(SEED)

# Needs a real Caffe: see docs/benchmarks/caffe_models.md.
caffe-check: $(VENV)/.dev
	$(BIN)/python -m benchmarks.caffe_layers
	$(BIN)/python -m benchmarks.caffe_check

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e ".[torch]"
	touch $@

$(VENV)/.dev: $(VENV)/.demo requirements/dev.txt requirements/no-deps.txt
	$(BIN)/python -m pip install --quiet -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/no-deps.txt
	touch $@

clean:
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache build dist
