# `make quickstart` and `make test` do everything from a fresh clone: they create .venv and install the suite first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
INSTALLED_DEEPSPEED := .venv/.installed-deepspeed

# tests never reach for a network
export TOKENIZERS_PARALLELISM := false
test test-slow: export HF_HUB_OFFLINE := 1
test test-slow: export OMP_NUM_THREADS := 1

.PHONY: install quickstart test test-slow lint format clean

install: $(INSTALLED)

# runs again only when the requirements have changed
$(INSTALLED): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@

# only the slow tests need it
$(INSTALLED_DEEPSPEED): $(INSTALLED)
	$(BIN)/python -m pip install --editable '.[dev,deepspeed]'
	touch $@

quickstart: $(INSTALLED)
	$(BIN)/python recipes/quickstart.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

test-slow: $(INSTALLED_DEEPSPEED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv outputs build *.egg-info
