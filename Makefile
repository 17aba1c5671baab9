# Few verbs, and two of them do all the set-up: `make app` and `make test`. Needs Python 3.11 or newer and pip.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
WORKERS ?= 2
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install app lab test check format docs notebooks gallery bench speed models size clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

install: $(VENV)/.installed ## install the package into .venv, in place

app: install ## open the app on the embedded models   (make app ARGS="--port 7861")
	$(BIN)/workbench app $(ARGS)

lab: install ## open the tutorial notebooks in JupyterLab
	$(BIN)/workbench lab $(ARGS)

test: $(VENV)/.installed-test ## install what is missing and run every test, notebooks included
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.installed-test ## lint
	$(BIN)/ruff check .

format: $(VENV)/.installed-test ## format and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

size: install ## count lines: members, platform, by folder
	$(BIN)/python -m tests.size $(ARGS)

docs: install ## write the pages and the stub that follow from declarations
	$(BIN)/python docs/make_reference.py

notebooks: $(VENV)/.installed-test ## execute the notebooks again, ready to commit
	$(BIN)/python tests/normalise_notebooks.py

gallery: install ## write the gallery of capsules again
	$(BIN)/python docs/make_gallery.py

bench: install ## measure decoding speed; rows go to benchmarks/results/
	$(BIN)/python benchmarks/decoding.py $(ARGS)

speed: $(VENV)/.installed-test ## time the kernels beside their floors and baselines   (make speed ARGS=--quick)
	$(BIN)/python benchmarks/kernel_speed.py $(ARGS)

models: install ## train the embedded models again (resumable; hours on a CPU)
	for stage in tokenizer target target-long draft export; do $(BIN)/python -m workbench.training $$stage $(ARGS) || exit 1; done

clean: ## remove caches and build outputs, keep .venv
	rm -rf build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing into $(VENV) (some minutes the first time) ..."
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing into $(VENV) (some minutes the first time) ..."
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.installed
