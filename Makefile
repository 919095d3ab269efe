# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0

.PHONY: browser demo test lint bench caffe-check fuzz fuzz-programs fuzz-parsers fuzz-folds kill-test mutation
.PHONY: limits clean docs

demo: $(VENV)/.demo
	$(BIN)/python -m bnfold.demo

test: $(VENV)/.dev browser
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The tests of the report page run in Chromium. Where it cannot be installed, they are skipped.
browser:
	@command -v chromedriver >/dev/null \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq >/dev/null \
	&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	chromium chromium-driver >/dev/null; } \
	|| echo "no Chromium: the tests of the report page in a browser are skipped"

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

# The documentation as a site, in site/; any warning fails (with --quiet none would be seen).
docs: .venv-docs/.ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict

.venv-docs/.ready: requirements/docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet -r requirements/docs.txt
	touch $@

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.fold_time
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.runtimes
	$(BIN)/python -m benchmarks.merging
	$(BIN)/python -m benchmarks.merging --others
	$(BIN)/python -m benchmarks.article
	$(BIN)/python -m benchmarks.coverage
	$(BIN)/python -m benchmarks.coverage --table
	$(BIN)/python -m benchmarks.onnx_exports
	$(BIN)/python -m benchmarks.onnx_patterns
	$(BIN)/python -m benchmarks.onnx_files

# Random networks in every frontend: make fuzz N=10000 SEED=0
SEED ?= 0
fuzz: N ?= 10000
fuzz: $(VENV)/.dev
	$(BIN)/python -m benchmarks.fuzz --networks $(N) --seed $(SEED)

# Random Python around random networks, in eager mode: make fuzz-programs N=5000 SEED=0
fuzz-programs: N ?= 5000
fuzz-programs: $(VENV)/.dev
	$(BIN)/python -m benchmarks.programs --programs $(N) --seed $(SEED)

# Needs a real Caffe: see docs/benchmarks/caffe_models.md.
caffe-check: $(VENV)/.dev
	$(BIN)/python -m benchmarks.caffe_layers
	$(BIN)/python -m benchmarks.caffe_check

# Coverage-guided, one process after the other; each ends with its figures.
RUNS ?= 1000000
SECONDS_EACH ?= 600
fuzz-parsers: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet -r requirements/fuzz.txt
	for target in prototxt caffemodel onnx; do \
	    $(BIN)/python -m tests.fuzz $$target --runs $(RUNS) || exit 1; done

fuzz-folds: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet -r requirements/fuzz.txt
	for target in caffe onnx-fold; do \
	    $(BIN)/python -m tests.fuzz $$target --runs $(RUNS) --seconds $(SECONDS_EACH) || exit 1; done

# Kills the command while it writes.
kill-test: N ?= 500
kill-test: $(VENV)/.dev
	$(BIN)/python -m tests.hard_stops --kills $(N)

# Breaks every line of the laws on purpose: see docs/reliability.md.
mutation: $(VENV)/.dev
	$(BIN)/python -m benchmarks.mutation --workers 2

limits: $(VENV)/.dev
	$(BIN)/python -m benchmarks.limits

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e ".[torch]"
	touch $@

$(VENV)/.dev: $(VENV)/.demo requirements/dev.txt requirements/docs.txt requirements/no-deps.txt
	$(BIN)/python -m pip install --quiet -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/no-deps.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-docs site out .pytest_cache .mypy_cache .ruff_cache build dist
