# make build    set everything up in .venv/ and build configs/resnet.yaml
# make test     all tests but those that need a GPU; sees to the system packages they need first
# make test-gpu those; installs the extra `gpu` first; they fail on a machine without a GPU
# make check    ruff, mypy --strict, import-linter, and the TensorRT code against its bindings
# make bench    ratios, printed as the tables of docs/benchmarks.md
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: build test test-gpu check bench lock clean

build: $(STAMP)
	$(BIN)/python -m pipeline build configs/resnet.yaml

test: $(STAMP)
	ci/system
	ci/test

test-gpu: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[gpu]' --constraint constraints.txt
	ci/test -m gpu tests/gpu

check: $(STAMP)
	ci/check

bench: $(STAMP)
	$(BIN)/python -m tests.bench

$(STAMP): pyproject.toml constraints.txt ci/setup
	PYTHON="$(PYTHON)" ci/setup
	touch $@

# Takes the versions installed in .venv as the new lock.
lock:
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip --exclude setuptools | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) .pipeline build *.egg-info
