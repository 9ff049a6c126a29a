# All set-up is here: each target makes the environment it needs in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CHECKPOINT := checkpoints/moving-shapes
DEFAULT_BUNDLE := runtime/default_bundle
PROMPT ?= a red circle moves left on a gray background
# More for cmake: NATIVE_OPTIONS=-DONNXRUNTIME_ROOT=DIR
NATIVE_OPTIONS ?=
FUZZ_SECONDS ?= 600

.PHONY: help env demo test test-slow test-gpu check format wheel check-wheel default-bundle benchmark benchmark-gpu docs clean \
	native test-native test-native-asan test-native-tsan test-native-valgrind test-native-aarch64 fuzz-native check-native

help:  ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 24

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

check: env check-native  ## Lint, types, layers, format of C and C++
	$(BIN)/python scripts/dev_links.py
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: env  ## Format the code and apply safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# clang-format 14, that of Debian 12: others break lines differently. CI has it.
CLANG_FORMAT ?= $(firstword $(foreach name,clang-format-14 clang-format,$(shell command -v $(name))))

check-native:  ## Check the format of C and C++ where clang-format 14 is installed, as in CI
	@if $(CLANG_FORMAT) --version 2>/dev/null | grep -q 'version 14\.'; then \
		git ls-files -co --exclude-standard '*.c' '*.h' '*.cpp' | \
			xargs $(CLANG_FORMAT) --style=file:runtime/native/.clang-format --dry-run -Werror; \
	else \
		echo "clang-format 14 is not installed: C and C++ files are not checked"; \
		test -z "$$CI"; \
	fi

# The tests compare with Python's runtime, so that both have the onnxruntime of the environment.
PACKAGED_ONNXRUNTIME = $(abspath $(VENV))/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.*

# $(1): a preset of runtime/native/CMakePresets.json, $(2): options, $(3): what else the script must
# have installed; what is missing is listed if cmake fails. -U: options of an earlier run go.
define build-native
	cmake -S runtime/native --preset $(1) -U 'ONNXRUNTIME_*' -DMUTOSCOPE_WERROR=ON \
		$(if $(findstring -DONNXRUNTIME_ROOT=,$(2)$(NATIVE_OPTIONS))$(findstring \
			-DONNXRUNTIME_LIBRARY=,$(2)$(NATIVE_OPTIONS)),,-DONNXRUNTIME_LIBRARY=$$(echo $(PACKAGED_ONNXRUNTIME))) \
		$(2) $(NATIVE_OPTIONS) -DPython3_EXECUTABLE=$(abspath $(BIN)/python) || \
		{ scripts/install_native_dependencies.sh --check $(3); exit 1; }
	cmake --build $(if $(filter release,$(1)),build/native,build/native-$(1))
endef

# A test that hangs ends after ten minutes.
CTEST := ctest --output-on-failure --timeout 600

native: env  ## Build libmutoscope and mutoscope-c into build/native
	$(call build-native,release)

test-native: native  ## Test libmutoscope without Python's tests (make test has those)
	$(CTEST) --test-dir build/native

test-native-asan: env  ## The same with AddressSanitizer and UndefinedBehaviorSanitizer
	$(call build-native,asan)
	$(CTEST) --test-dir build/native-asan

test-native-tsan: env  ## The same with ThreadSanitizer
	$(call build-native,tsan)
	TSAN_OPTIONS="suppressions=$(CURDIR)/runtime/native/cmake/tsan.supp halt_on_error=1" \
		setarch -R $(CTEST) --test-dir build/native-tsan -R _test

# memory_test has an operator new of its own, which valgrind leaves alone.
VALGRIND := valgrind;-q;--error-exitcode=9;--leak-check=full;--errors-for-leak-kinds=definite;--fair-sched=yes;$\
	--soname-synonyms=somalloc=nouserintercepts;--suppressions=$(CURDIR)/runtime/native/cmake/valgrind.supp

test-native-valgrind: env  ## The same with valgrind
	$(call build-native,debug,"-DMUTOSCOPE_TEST_LAUNCHER=$(VALGRIND)" -DMUTOSCOPE_TEST_TEXTS=200,--sanitizers)
	$(CTEST) --test-dir build/native-debug -R _test

# A part of them: AARCH64_TESTS=sha256_test
AARCH64_TESTS ?= .
AARCH64_ONNXRUNTIME := $(CURDIR)/build/native-dependencies/aarch64/lib/libonnxruntime.so

test-native-aarch64: env  ## Cross-build for aarch64 and run the tests with qemu; takes minutes
	$(call build-native,aarch64,-DONNXRUNTIME_LIBRARY=$(AARCH64_ONNXRUNTIME) -DMUTOSCOPE_TEST_TEXTS=200,--cross-aarch64)
	$(CTEST) --test-dir build/native-aarch64 -R '$(AARCH64_TESTS)'

fuzz-native: env  ## Run each libFuzzer target for FUZZ_SECONDS (600)
	$(call build-native,fuzz,,--sanitizers)
	set -e; for target in manifest prompts schedule tokenizer; do \
		mkdir -p build/native-fuzz/corpus/$$target; \
		build/native-fuzz/fuzz/fuzz_$$target -max_total_time=$(FUZZ_SECONDS) -timeout=10 \
			-artifact_prefix=build/native-fuzz/$$target- -print_final_stats=1 \
			build/native-fuzz/corpus/$$target build/native-fuzz/fuzz/fuzz_$${target}_seeds; \
	done

wheel: env  ## Build the wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

check-wheel: wheel  ## Install the wheel alone in a fresh environment and generate with it
	$(BIN)/python scripts/check_wheel.py dist

default-bundle: env  ## Export the checkpoint into the bundle that ships in the wheel
	$(BIN)/mutoscope export $(CHECKPOINT) -o $(DEFAULT_BUNDLE) --weights float16 \
		--scheduler euler-ancestral --scheduler dpm++2m --scheduler unipc --scheduler lcm --force
	$(BIN)/mutoscope tune $(DEFAULT_BUNDLE) --min-psnr-db 33 --num-samples 8 --no-guidance-interval --no-guidance-passes
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
	rm -rf $(VENV) .dev demo dist build runtime/native/examples/rust/target .mypy_cache .pytest_cache .ruff_cache .hypothesis
