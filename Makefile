# Everything is installed into .venv by the first target that needs it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
# The libraries that benchmarks compare with have an environment of their own;
# `.peers/bin/pytest` also runs the tests that need torchvision, timm, MediaPipe or OpenVINO.
PEERS := .peers
PEERS_STAMP := $(PEERS)/.installed
DOCS := .docs
DOCS_STAMP := $(DOCS)/.installed

.PHONY: help demo browser dist test-dist docs test test-slow test-all lint format bench bench-all bench-quick stress \
  saved-models clean

help:
	@echo "make demo        fine-tune, export and verify a ResNet on real images"
	@echo "make browser     fetch what the tests of reszoo web need: Chromium, npm's packages"
	@echo "make dist        build wheel and sdist: dist/"
	@echo "make test-dist   install both into clean environments of Python 3.11, 3.12 and 3.13"
	@echo "make docs        build the documentation site: site/index.html"
	@echo "make test        check format, lint and types, run the tests that are not slow"
	@echo "make test-slow   run the slow tests"
	@echo "make test-all    check format, lint and types, run all tests"
	@echo "make format      format the code"
	@echo "make bench       compare with other libraries: half an hour"
	@echo "make bench-quick the same in a few minutes; bench-all measures more in an hour"
	@echo "make stress MINUTES=30 ONLY=\"kills faults mutations defects good_exports\""
	@echo "                 kill, let calls fail, damage files, plant defects and export correctly;"
	@echo "                 runs add up: benchmarks/results/"
	@echo "make saved-models DATA=CIFAR10"
	@echo "                 export saved_models/resnet20-cifar10 again"
	@echo "make clean       remove the environments and caches"

demo: $(STAMP)
	$(BIN)/reszoo demo

# Debian's Chromium, and the runtimes that sites are made of; tests fetch nothing.
browser: $(STAMP)
	command -v chromium || { apt-get update && apt-get install --yes chromium; }
	RESZOO_HOME=.browser $(BIN)/reszoo web saved_models/resnet20-cifar10 \
	  --vendor --overwrite --output .browser/site

dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m pip install --quiet "hatchling>=1.27"
	$(BIN)/python -m hatchling build

test-dist: dist
	$(BIN)/python tests/clean_install.py

# Sources are parsed and commands asked for their options, so that only mkdocs and typer
# are installed. After that nothing is fetched, neither while building nor while reading.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet
	@echo "site/index.html: $$(find site -name '*.html' | wc -l) pages"

# Else each of the processes that tests start would compile the sources anew.
test test-slow test-all: export PYTHONDONTWRITEBYTECODE =

test: lint
	$(PYTEST) -m "not slow"

test-slow: $(STAMP)
	$(PYTEST) -m slow

test-all: lint
	$(PYTEST)

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

stress: $(STAMP)
	$(BIN)/python stress/run.py $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ONLY),--only $(ONLY))

# DATA is CIFAR-10 as JPEG files, a folder with train/ and test/.
saved-models: $(STAMP)
	@test -d "$(DATA)/train" || { echo "make saved-models DATA=FOLDER: DATA needs CIFAR-10 as JPEG files in train/ and test/"; exit 2; }
	$(BIN)/reszoo export reszoo/bundled/resnet20-cifar10.safetensors \
	  --formats saved_model,tflite,tflite-int8,onnx --calibration "$(DATA)" \
	  --output saved_models/resnet20-cifar10 --overwrite

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	@touch $(STAMP)

$(PEERS_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,dev,peers]"
	@touch $(PEERS_STAMP)

$(DOCS_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	  print(*project['optional-dependencies']['docs'], sep='\n')" > $(DOCS)/requirements.txt
	$(DOCS)/bin/python -m pip install --quiet --constraint constraints.txt --requirement $(DOCS)/requirements.txt
	@touch $(DOCS_STAMP)

clean:
	rm -rf $(VENV) $(PEERS) $(DOCS) site .mypy_cache .pytest_cache .ruff_cache
