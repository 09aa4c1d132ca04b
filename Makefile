# Two commands on a fresh machine with Python >= 3.11: `make demo` and `make test`.
# Both first set up .venv from constraints.txt; uv is fetched by pip when the machine has none.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LOWEST := .venv-lowest
UV     := $(BIN)/uv

export DS_ACCELERATOR ?= $(if $(wildcard /dev/nvidia0),cuda,cpu)
export RAY_USAGE_STATS_ENABLED ?= 0

# Two processes, each a file of tests at a time; files of long tests first (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test fast mutants lint fmt lowest cov wheel setup clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "make %-8s %s\n", $$1, $$2}'

demo: $(STAMP) ## the whole flow on drawn films, on a CPU, in minutes
	$(BIN)/megpt demo --config configs/phantom.yaml output=runs/demo

test: $(STAMP) lint lowest ## lint, types, the lowest declared versions, and every test
	$(PYTEST)

fast: $(STAMP) ## the tests that take seconds: two minutes in all
	$(PYTEST) -m "not slow"

# Faults put into the source on purpose, and whether a test notices; FILES="megpt/training/order.py" for some files.
mutants: $(STAMP) ## put faults into the source, and count those that no test notices
	$(BIN)/python tests/mutation.py $(FILES)

lint: $(STAMP) ## style, types, spelling and prose
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python --progress-bar no
	$(BIN)/codespell
	$(BIN)/proselint --config .proselintrc.json check README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md docs

fmt: $(STAMP) ## format the code and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lowest: $(LOWEST)/.installed ## import every module with the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/python tests/import_all.py

cov: $(STAMP) ## the fast tests with line coverage
	$(BIN)/python -m pytest -m "not slow" --cov=megpt --cov=ray_jobs --cov-report=term-missing:skip-covered

wheel: $(STAMP) ## dist/megpt-*.whl
	$(UV) build --wheel --quiet --out-dir dist
	ls dist

setup: $(STAMP) ## .venv alone

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(UV) || $(BIN)/python -m pip install --quiet "uv==$$(sed -n 's/^uv==//p' constraints.txt)"
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) pip install --quiet --compile-bytecode --constraint constraints.txt --editable ".[test]"
	touch $(STAMP)

$(LOWEST)/.installed: pyproject.toml | $(STAMP)
	$(UV) venv --quiet --clear --python $(BIN)/python $(LOWEST)
	VIRTUAL_ENV=$(CURDIR)/$(LOWEST) $(UV) pip install --quiet --resolution lowest-direct --editable ".[serve]"
	touch $@

clean: ## results and caches; the environments stay
	rm -rf runs dist build .pytest_cache .ruff_cache
