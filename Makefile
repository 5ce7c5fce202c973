# Everything a fresh machine needs: `make demo` and `make test` create .venv and install into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow standard lint bench clean

demo: $(READY)
	$(BIN)/deltamem demo

test: $(READY)
	$(BIN)/python -m pytest -q

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

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	touch $(READY)

clean:
	rm -rf $(VENV)
