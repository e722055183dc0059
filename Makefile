# `make demo` and `make test` work from a bare clone: they make .venv first and leave it there.
#   PYTHON=python3.12            another interpreter (3.11 or 3.12)
#   TORCH_INDEX_URL=https://...  another index for torch, for instance the one with CPU builds
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two test processes, each with whole files: fixtures of a file or a session are made once in each. numba, BLAS and torch
# share the cores with the mill's workers; tests and the demo set threads themselves.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help install demo test test-slow test-all chaos lint clean

help:
	@echo "make demo      mine, verify, release, train briefly, score -> demo/report.html"
	@echo "make test      the fast tests;  make test-all adds the slow ones;  make chaos the seeded failures"
	@echo "make lint      ruff and mypy;   make clean removes .venv and demo/"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt infra/make_venv.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH_INDEX_URL="$(TORCH_INDEX_URL)" sh infra/make_venv.sh
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/grainmill demo --output demo

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-slow: $(STAMP)
	$(PYTEST) -m slow

test-all: test test-slow

chaos: $(STAMP)
	$(BIN)/python -m benchmarks.chaos

lint: $(STAMP)
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

clean:
	rm -rf $(VENV) demo
