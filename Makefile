# The only door to this project: `make help` lists what it does. Plain commands for a system without make are in README.md.
PYTHON ?= python3
VENV   := .venv
ifeq ($(OS),Windows_NT)
BIN    := $(VENV)/Scripts
else
BIN    := $(VENV)/bin
endif
# Without compiling what may never be imported: that takes longer than unpacking it.
PIP    := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
SITE   := _build/html/index.html
PDF    := _build/html/batch-size-measured.pdf
PAGES  := $(wildcard _config.yml _toc.yml index.md) $(shell find book chapters src -type f -not -path '*/__pycache__/*' -not -path '*/.ipynb_checkpoints/*')
# Two processes test on two cores. One thread each, for the chapters' matrices are small: more threads only wait for each
# other, and where something else runs beside them they wait long.
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: book pdf test lab execute register experiments bench portable firefox speed lint clean help
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

book: $(SITE) ## build the book as HTML (sets up .venv the first time) and print where it is
	@echo "The book is at file://$(CURDIR)/$(SITE)"

pdf: $(PDF) ## print the whole book as one PDF (needs Chromium) and say where it is
	@echo "The PDF is at file://$(CURDIR)/$(PDF)"

test: $(VENV)/.test lint ## package, every notebook, the built site in a browser, style: everything CI checks
	BATCHLAB_CHROMIUM="$$($(BIN)/python tests/browser.py)" \
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder

lab: $(VENV)/.lab ## open the chapters in JupyterLab (the clinic is in book; it and chapter 14 need the extra tools)
	$(BIN)/jupyter lab --notebook-dir . --FileContentsManager.preferred_dir=chapters

execute: $(VENV)/.tools ## run every notebook in place and store its outputs (make execute CHAPTERS=chapters/01-*.ipynb for one)
	$(BIN)/python book/_ext/chapters.py execute $(CHAPTERS)

register: $(VENV)/.book ## write the ledger's new tests into its register, before they are measured
	$(BIN)/python book/_ext/ledger.py register

experiments: export OMP_NUM_THREADS = $(WORKERS)
experiments: $(VENV)/.lab ## store anew the rows that are stale (make experiments EXPERIMENTS=experiments/03-*.py for one)
	$(BIN)/python experiments/make.py $(EXPERIMENTS)

bench: $(VENV)/.bench ## run the benchmarks, one table a script
	@for script in sweep instruments gpu; do $(BIN)/python benchmarks/$$script.py || exit 1; done

portable: $(VENV)/.test ## the package's tests and two notebooks as older processors would run them, the C kernel watched
	PYTHON=$(BIN)/python WORKERS=$(WORKERS) bash tests/portable.sh

firefox: $(SITE) ## look at every page in Firefox (needs Firefox and npm)
	@test -d _build/npm/node_modules/puppeteer-core || npm install --silent --prefix _build/npm puppeteer-core@24
	NODE_PATH=_build/npm/node_modules node tests/firefox.mjs _build/html

speed: $(SITE) ## Lighthouse on every page, as a telephone (needs Chromium and npm, and a quiet machine)
	@test -x _build/npm/node_modules/.bin/lighthouse || npm install --silent --prefix _build/npm lighthouse@12.8.2
	$(BIN)/python benchmarks/site.py --lighthouse _build/npm/node_modules/.bin/lighthouse

lint: $(VENV)/.test ## style of code and notebooks, spelling, and which module may import which
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m codespell_lib
	$(BIN)/lint-imports --no-logo

clean: ## remove what was built; .venv stays
	rm -rf _build .pytest_cache .ruff_cache .hypothesis

# A build with warnings is no build; always from a clean directory, since Sphinx repeats no warning for a page it kept.
$(SITE): $(VENV)/.book $(PAGES)
	@rm -rf _build/html _build/.doctrees
	@$(BIN)/jupyter-book build . --warningiserror --nitpick --keep-going --quiet >/dev/null || { rm -f $@; exit 1; }
	@touch $@

$(PDF): $(VENV)/.pdf $(SITE)
	@BATCHLAB_CHROMIUM="$$($(BIN)/python tests/browser.py)" $(BIN)/python book/_ext/paper.py

# The pages show stored outputs, so they need neither torch nor what else the package computes with.
$(VENV)/.book: pyproject.toml constraints.txt book/requirements.txt
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) --requirement book/requirements.txt
	$(PIP) --no-deps --editable .
	@touch $@

$(VENV)/.pdf: $(VENV)/.book
	$(PIP) pikepdf playwright
	@touch $@

$(VENV)/.test: $(VENV)/.book
	$(PIP) --editable ".[test]"
	@touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) --editable ".[bench]"
	@touch $@

$(VENV)/.tools: $(VENV)/.book
	$(PIP) --editable ".[tools]"
	@touch $@

$(VENV)/.lab: $(VENV)/.book
	$(PIP) --editable ".[lab]"
	@touch $@
