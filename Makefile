# Everything is installed into .venv by the first target that needs it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test lint format clean

help:
	@echo "make demo   fine-tune, export and verify a ResNet on real images"
	@echo "make test   lint, types and tests"
	@echo "make format let ruff format the code"
	@echo "make clean  remove what make made"

demo: $(STAMP)
	$(BIN)/reszoo demo

test: lint
	$(BIN)/pytest --numprocesses auto --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	@touch $(STAMP)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
