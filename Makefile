# Everything is installed into .venv by the first target that needs it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What benchmarks compare with has an environment of its own; `.peers/bin/pytest` also
# runs the tests beside torchvision, timm, MediaPipe and OpenVINO.
PEERS := .peers
PEERS_STAMP := $(PEERS)/.installed

.PHONY: help demo test lint format bench bench-all bench-quick clean

help:
	@echo "make demo   fine-tune, export and verify a ResNet on real images"
	@echo "make test   lint, types and tests"
	@echo "make bench  reszoo beside its peers; bench-quick for a first look, bench-all for more"
	@echo "make format let ruff format the code"
	@echo "make clean  remove what make made"

demo: $(STAMP)
	$(BIN)/reszoo demo

test: lint
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) $(PEERS_STAMP)
	$(BIN)/python benchmarks/bench.py --peers $(PEERS)/bin/python
	$(BIN)/python benchmarks/table.py

bench-all: $(STAMP) $(PEERS_STAMP)
	$(BIN)/python benchmarks/bench.py --all --peers $(PEERS)/bin/python
	$(BIN)/python benchmarks/table.py

bench-quick: $(STAMP) $(PEERS_STAMP)
	$(BIN)/python benchmarks/bench.py --quick --peers $(PEERS)/bin/python

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	@touch $(STAMP)

$(PEERS_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,dev,peers]"
	@touch $(PEERS_STAMP)

clean:
	rm -rf $(VENV) $(PEERS) .mypy_cache .pytest_cache .ruff_cache
