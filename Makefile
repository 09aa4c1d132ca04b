# Two commands on a fresh machine with Python >= 3.11: `make demo` and `make test`.
# Both first set up .venv from constraints.txt; uv is fetched by pip when the machine has none.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

export DS_ACCELERATOR ?= $(if $(wildcard /dev/nvidia0),cuda,cpu)
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: demo test fast mutants lint setup clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet "uv==$$(sed -n 's/^uv==//p' constraints.txt)"
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable ".[test]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/megpt demo --config configs/phantom.yaml output=runs/demo

# Two processes, each a file of tests at a time; files of long tests first (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: $(STAMP) lint
	$(PYTEST)

fast: $(STAMP)
	$(PYTEST) -m "not slow"

# Faults put into the source on purpose, and whether a test notices; FILES="megpt/training/order.py" for some files.
mutants: $(STAMP)
	$(BIN)/python tests/mutation.py $(FILES)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python --progress-bar no

clean:
	rm -rf runs .pytest_cache .ruff_cache
