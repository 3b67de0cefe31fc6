# Everything from a fresh clone: `make run` is the first thing to try.
#
# PYTHON=python3.12 make run   chooses the interpreter of the environment in .venv
# VENV=/path make test         chooses another environment

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: help run test faults lint docs studies bench browser clean

VENV ?= .venv
RESULTS ?= results/quickstart
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# One thread each: cases are spread over processes, and a sum's bits depend on how many threads share it.
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export MKL_NUM_THREADS := 1

help:
	@echo "make run      install into $(VENV), run scenarios/quickstart, print the tables, write the report"
	@echo "make test     the tests"
	@echo "make faults   the 25 trials of what may go wrong in a batch; K='1 10' for some, KILLS=5 for fewer kills"
	@echo "make lint     ruff and mypy"
	@echo "make docs     the documentation, in docs/_build/html"
	@echo "make studies  the published claims, measured again; K=s50 for one of them"
	@echo "make bench    the kernels beside their peers and the machine's limits, in a minute"
	@echo "make browser  look at the report in headless chromium"
	@echo "make clean    delete what make built; results stay"

run: $(VENV)/.installed
	$(BIN)/worldsim run scenarios/quickstart --out $(RESULTS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --dist worksteal

faults: $(VENV)/.installed
	$(BIN)/python tests/faults $(K) $(if $(KILLS),--kills $(KILLS)) $(if $(SEED),--seed $(SEED))

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

studies: $(VENV)/.installed
	$(BIN)/python -m studies $(if $(K),-k $(K))

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/kernels.py --quick

browser: $(RESULTS)/report.html
	$(BIN)/python tests/browser/check.py $(RESULTS)/report.html

$(RESULTS)/report.html:
	$(MAKE) run

clean:
	rm -rf $(VENV) build dist docs/_build docs/reference/generated .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find worldsim kernels plugins tests studies benchmarks -name __pycache__ -prune -exec rm -rf {} +

# The stamps depend on pyproject.toml: a new entry point is seen only after installing again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo "worldsim needs Python 3.11 or later; none was found: PYTHON=... make" >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 11) else f"worldsim needs Python 3.11 or later; $(PYTHON) is {v}")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[report,test]'
	touch $@

$(VENV)/.lint: $(VENV)/.installed
	$(PIP) -e '.[report,test,lint]'
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) -e '.[report,test,docs]'
	touch $@
