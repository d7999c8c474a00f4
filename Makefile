# The habits of this repository. `make tour` and `make test` need nothing but Python 3.11, 3.12 or 3.13; both install first.
# Another interpreter: make setup PYTHON=python3.12. No make (Windows)? README.md has the same steps with pip.
PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2
PY      := $(VENV)/bin/python

.PHONY: help setup tour test nightly soak notebooks chapter mutants ledger book lint clean

help:
	@echo "make tour       install, draw a guided sheet of digits, run the opening chapter (start here)"
	@echo "make test       the tests but for the slow ones, every notebook, the drift check and the linter"
	@echo "make notebooks  execute the chapters that changed, or whose part of the package did; write their figures"
	@echo "make chapter    NN=12 TITLE='A question?': the skeleton of a new chapter, its checkers and its tests"
	@echo "make ledger     every numbered equation, its function, its tests; fails on an orphan"
	@echo "make mutants    plant every listed wrong formula and see the tests fail, and the chapters' own cells"
	@echo "make nightly    what is too long for every change: all of the tests, all of the wrong formulas"
	@echo "make soak       kills, damage, memory and silent servers for seven minutes: is anything lost or silently wrong?"
	@echo "make book       the web pages, in book/_build/html (needs npm, once, for MathJax)"
	@echo "make lint       ruff"
	@echo "make clean      remove what the other targets made, but for $(VENV)"

# The stamp makes setup a no-op until a declared dependency or a pinned version changes.
setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("Python 3.11, 3.12 or 3.13 is needed, \
	this is %d.%d. Name another one: make setup PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

tour: setup
	$(VENV)/bin/difflesson tour

# One thread a worker: the tests share the cores by process. A notebook's cells must stay in one worker, hence loadfile.
# What is marked nightly waits for `make nightly`; the table at the end says where the time went.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile

test: setup lint
	$(PY) -m tools.notebooks check
	$(PYTEST) -m "not nightly"

nightly: setup lint
	$(PY) -m tools.notebooks check
	$(PYTEST)
	$(PY) -m tools.mutants --workers $(WORKERS)
	$(PY) -m tools.cell_mutants --workers $(WORKERS)
	$(PY) -m tools.loose_tolerances --workers $(WORKERS)

# Bounded: every test in it ends by itself. tests/reliability/README.md says what is tried.
soak: setup
	$(PYTEST) -m nightly tests/reliability

notebooks: setup
	$(PY) -m tools.notebooks build

# A title may have quotes, backticks and dollars: it goes by the environment, so neither make nor the shell reads it.
unexport NN TITLE
chapter: export CHAPTER_NUMBER = $(value NN)
chapter: export CHAPTER_TITLE = $(value TITLE)
chapter: setup
	@$(PY) -m tools.chapter "$$CHAPTER_NUMBER" "$$CHAPTER_TITLE"

ledger: setup
	$(PY) -m tools.ledger check

mutants: setup
	$(PY) -m tools.mutants
	$(PY) -m tools.cell_mutants
	$(PY) -m tools.loose_tolerances

book: setup
	$(PY) -m book.build

lint: setup
	$(PY) -m ruff check .

clean:
	rm -rf figures/tour.png figures/sample.png book/_build build dist *.egg-info .pytest_cache .ruff_cache .hypothesis notebooks/.ipynb_checkpoints
	find difflesson tests tools book -name __pycache__ -type d -prune -exec rm -rf {} +
