# On a fresh machine (Debian: apt install make g++ python3-dev python3-venv): `make demo`, `make test`.
# Each target makes what it needs first: a virtual environment in .venv, torch, the build. `make` lists the targets.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
# A tool that the environment of $(PYTHON) has already is not installed again, so its folder counts too, but last.
export PATH := $(CURDIR)/$(BIN):$(PATH):$(dir $(shell command -v $(PYTHON)))

# FASTINIT_BUILD is part of a stamp's name, so that another choice of what to compile builds again.
BUILD := $(VENV)/stamps/build-$(or $(FASTINIT_BUILD),auto)
TESTED := $(VENV)/stamps/test
SOURCES := setup.py pyproject.toml $(wildcard _build_backend/*.py csrc/* csrc/*/*)

help:  ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 14

demo: $(BUILD)  ## a 1.5-billion-parameter model beside torch.nn.init, a plan, a signal, one model twice; under 30 s
	$(BIN)/python -m fastinit demo

# passive: torch's threads wait asleep. Those of two processes would else spin in each other's way, at three times the cost.
test: $(BUILD) $(TESTED)  ## the Python test suite; TESTS='-m "not slow"' leaves out what is slow
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

bench: $(BUILD) $(TESTED)  ## benchmarks, as one table of ratios and as JSON
	$(BIN)/python benchmarks/run.py

# With the Python and the torch that are there, in place: nothing is downloaded.
gpu:  ## all that needs a GPU: build, tests, sanitizer, benchmarks; writes gpu.json and gpu.txt into OUT
	PYTHONPATH="$(CURDIR):$$PYTHONPATH" $(PYTHON) benchmarks/gpu.py --all --out $(or $(OUT),build/gpu)

lint: $(VENV)/stamps/lint $(BUILD)  ## ruff, mypy and clang-format; changes nothing
	ruff check
	ruff format --check
	$(BIN)/python -m mypy
	clang-format --dry-run -Werror $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')

docs: $(VENV)/stamps/docs $(BUILD)  ## the site, in build/site; a warning is an error
	$(BIN)/python benchmarks/page.py
	$(BIN)/python benchmarks/chart.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(VENV)/stamps/lint  ## what lint would change
	ruff check --fix
	ruff format
	clang-format -i $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')

cpp:  ## the C++ tests, with CMake, in build/cpp
	cmake -S . -B build/cpp
	cmake --build build/cpp --parallel $(or $(JOBS),$(shell nproc))
	ctest --test-dir build/cpp --output-on-failure

clean:  ## remove everything that was built, and .venv
	rm -rf $(VENV) build dist *.egg-info fastinit/_C.*.so fastinit/_build_info.json
	find . -name __pycache__ -prune -exec rm -rf {} +

# The virtual environment sees the packages of $(PYTHON), and thereby its torch if there is one that will do. A venv made
# from an active venv sees only the base installation, hence the .pth file that names the folder of the torch.
$(VENV)/stamps/torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastinit needs Python 3.10 or newer")'
	@set -e; \
	if site=$$($(PYTHON) -c "$$FIND_TORCH" 2>/dev/null); then \
	  echo "making $(VENV), with the torch in $$site"; \
	  $(PYTHON) -m venv --clear --system-site-packages $(VENV); \
	  echo "$$site" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/found_torch.pth"; \
	else \
	  echo "making $(VENV), installing $(TORCH)"; \
	  $(PYTHON) -m venv --clear $(VENV); \
	  $(BIN)/python -m pip install --quiet $(TORCH); \
	fi
	@mkdir -p $(@D) && touch $@

define FIND_TORCH
import pathlib, torch
assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)
print(pathlib.Path(torch.__file__).parents[1])
endef
export FIND_TORCH

# --no-build-isolation: against the very torch that the tests import.
$(BUILD): $(VENV)/stamps/torch $(SOURCES)
	@rm -f $(VENV)/stamps/build-*
	@echo "building fastinit: compiling takes two cores about a minute, for CUDA about five"
	$(BIN)/python -m pip install --quiet 'setuptools>=77' 'pybind11>=3' ninja
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable .
	@$(BIN)/python -c 'import json; i = json.load(open("fastinit/_build_info.json")); \
	  print("compiled:", i["build"], "" if i["reason"] is None else "\nWARNING: not compiled, because: " + i["reason"])'
	@touch $@

# What an extra of pyproject.toml asks for, without building again. The demo needs none.
define EXTRAS
import importlib.metadata, sys
wanted = tuple(f'extra == "{extra}"' for extra in sys.argv[1:])
lines = [line.replace("'", '"') for line in importlib.metadata.requires("fastinit")]
print(*(line.split(";")[0].strip() for line in lines if line.endswith(wanted)), sep="\n")
endef
export EXTRAS

$(TESTED): $(VENV)/stamps/torch pyproject.toml | $(BUILD)
	@$(BIN)/python -c "$$EXTRAS" test > $@.txt
	$(BIN)/python -m pip install --quiet -r $@.txt
	@touch $@

$(VENV)/stamps/lint: $(TESTED)
	@$(BIN)/python -c "$$EXTRAS" dev > $@.txt
	$(BIN)/python -m pip install --quiet -r $@.txt
	@touch $@

$(VENV)/stamps/docs: pyproject.toml | $(BUILD)
	$(BIN)/python -m pip install --quiet 'mkdocs-material>=9.7' 'mkdocstrings[python]>=1' ruff  # for signatures
	@touch $@

.PHONY: help demo test bench gpu lint docs format cpp clean
