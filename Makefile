# Everything a fresh machine needs: `make demo` and `make test` create .venv and install into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

MODEL ?= bundled
ADAPTER ?=
WORKERS ?= 2

.PHONY: demo test test-slow standard lint bench docs pages clean

demo: $(READY)
	$(BIN)/deltamem demo --model "$(MODEL)" $(if $(ADAPTER),--adapter "$(ADAPTER)")

test: $(READY)
	$(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -q -m "slow and not gpu"

# LangChain's standard integration suite: ChatDeltaMem in this process, then ChatOpenAI against our server.
standard: $(READY)
	$(BIN)/python -m pytest -q -m slow tests/langchain/test_standard.py
	$(BIN)/python -m pytest -q -m slow tests/serve/test_standard.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/deltamem bench

# The pages and the reference, as a site in build/site; a warning is an error.
docs: $(READY)
	$(BIN)/mkdocs build --strict --config-file .docs/mkdocs.yml

# Runs all that the pages show, and writes into them what was printed: after a new adapter.
pages: $(READY)
	$(BIN)/python -m tests.pages

$(READY): pyproject.toml constraints.txt
	@echo "installing into $(VENV), about 2.3 GB, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev --group docs
	touch $(READY)

clean:
	rm -rf $(VENV)
