# All set-up is here: each target makes the environment it needs in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CHECKPOINT := checkpoints/moving-shapes
DEFAULT_BUNDLE := runtime/default_bundle
PROMPT ?= a red circle moves left on a gray background

.PHONY: help env demo test test-slow test-gpu check format wheel check-wheel default-bundle benchmark benchmark-gpu docs clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

env: $(VENV)/.complete  ## Make the development environment in .venv

# torch first and from the constraints file: any other request for it can bring several GB.
$(VENV)/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: env  ## Export the shipped checkpoint and write a video to demo/
	mkdir -p demo
	$(BIN)/mutoscope export $(CHECKPOINT) -o demo/bundle --force
	$(BIN)/mutoscope generate "$(PROMPT)" --bundle demo/bundle --seed 7 -o demo/video.mp4 --force
	$(BIN)/mutoscope generate "$(PROMPT)" --bundle demo/bundle --seed 7 -o demo/video.gif --force
	@echo "Look at demo/video.mp4 and demo/video.gif"

test: env  ## Run the test suite, one process for each core (what CI runs)
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: env  ## Run the tests that take minutes each
	$(BIN)/python -m pytest -m slow

test-gpu: env  ## Run the tests that need an NVIDIA GPU, as far as this machine can
	$(BIN)/python -m pytest -m gpu tests/gpu

check: env  ## Lint, types, layers
	$(BIN)/python scripts/dev_links.py
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: env  ## Format the code and apply safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: env  ## Build the wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

check-wheel: wheel  ## Install the wheel alone in a fresh environment and generate with it
	$(BIN)/python scripts/check_wheel.py dist

default-bundle: env  ## Export the checkpoint into the bundle that ships in the wheel
	$(BIN)/mutoscope export $(CHECKPOINT) -o $(DEFAULT_BUNDLE) --weights float16 \
		--scheduler euler-ancestral --scheduler dpm++2m --scheduler unipc --scheduler lcm --force
	$(BIN)/mutoscope verify $(DEFAULT_BUNDLE) --checkpoint $(CHECKPOINT)

benchmark: env  ## Measure the components, prompt accuracy, clips against diffusers, the sampler
	$(BIN)/mutoscope bench
	$(BIN)/python -m benchmarks.prompt_accuracy --bundle $(DEFAULT_BUNDLE)
	$(BIN)/python -m benchmarks.against_diffusers --checkpoint $(CHECKPOINT)
	$(BIN)/python -m benchmarks.sampler_overhead

benchmark-gpu: env  ## Measure all that runs on this machine's GPU, beside PyTorch
	$(BIN)/python -m benchmarks.gpu --checkpoint $(CHECKPOINT) --record

docs: env  ## Write docs/cli.md from the commands' own help
	$(BIN)/python scripts/write_cli_docs.py

clean:  ## Remove what the other targets made
	rm -rf $(VENV) .dev demo dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
