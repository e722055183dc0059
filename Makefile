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

# As on a processor without AVX-512: BLAS, oneDNN, torch and numba add in another order there. The files whose results rest
# on sums of floats; a new one belongs here.
VARIANT := ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Haswell \
	NUMBA_CPU_NAME=generic OMP_NUM_THREADS=1
NUMERIC := $(addsuffix .py,$(addprefix tests/unit/test_,adapters_and_merged atoms backbone_features boundary_net fast_labeling feature_cache \
	granular_model hierarchy image_miner image_predictor losses many_prompts maskcut mask_generator merge_patches merge_regions metrics \
	metrics_recall model_files model_scores on_patches onnx_export predictors pyramid_features refine segment_answers step torch_export \
	trunks unsamv2 validation_figures video video_scores weight_forms) \
	$(addprefix tests/,integration/test_sam2_calls integration/test_training integration/test_training_numbers \
	property/test_conquer_equals_definition property/test_run_lengths))

.PHONY: help install demo test test-variant test-slow test-all chaos lint docs clean

help:
	@echo "make demo      mine, verify, release, train briefly, score -> demo/report.html"
	@echo "make test      the fast tests;  make test-all adds those below;  make chaos the seeded failures"
	@echo "make test-slow the slow tests;  make test-variant the numeric ones as on another processor"
	@echo "make lint      ruff and mypy;   make docs builds the pages into site/"
	@echo "make clean     removes .venv, demo/ and site/"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt infra/make_venv.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH_INDEX_URL="$(TORCH_INDEX_URL)" sh infra/make_venv.sh
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/grainmill demo --output demo

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-variant: $(STAMP)
	$(VARIANT) $(PYTEST) -m "not slow" $(NUMERIC)

test-slow: $(STAMP)
	$(PYTEST) -m slow

test-all: test test-variant test-slow

chaos: $(STAMP)
	$(BIN)/python -m benchmarks.chaos

lint: $(STAMP)
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) demo site
