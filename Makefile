# `make` says what there is. Everything runs in .venv, which the first call builds.
PYTHON := .venv/bin/python
ARGS :=

.PHONY: help setup demo test cuda fuzz lint
help:  ## this list
	@echo 'make TARGET, where TARGET is'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' Makefile

setup: .venv/.ready  ## build .venv (once; about 10 minutes, mostly mmcv)

demo: setup  ## train a detector with OHEM and without, compare, leave pictures
	@PYTHON=$(PYTHON) bash tools/make_demo.sh

test: setup  ## run the tests; ARGS="-k sampler" goes to pytest
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest $(ARGS) -n 2 --dist loadfile --no-loadscope-reorder

cuda: $(if $(filter .venv/%,$(PYTHON)),setup)  ## check and measure on a GPU, in ten minutes; PYTHON=python3 for yours
	@$(PYTHON) tools/check_cuda.py $(ARGS)

fuzz: setup  ## read CASES=1000 damaged files of each kind, kill commands; takes an hour
	@MMDET_OHEM_FUZZ=$(or $(CASES),1000) OMP_NUM_THREADS=1 $(PYTHON) -m pytest \
	    tests/reliability -v -s -o faulthandler_timeout=0 $(ARGS)

lint: .venv/.linter  ## ruff: rules and format
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .

# The stamps are written last, so an interrupted set-up goes on where it stopped. The
# linter has its own: to check style nobody waits for mmcv.
.venv/.linter: requirements.txt tools/setup.sh
	@bash tools/setup.sh linter
	@touch $@

# Choosing other versions runs the set-up again; an empty PINS= chooses the tested ones.
.venv/.ready: .venv/.linter pyproject.toml \
    $(if $(filter-out undefined,$(origin PINS) $(origin FORKS) \
    $(origin MMCV_FIND_LINKS)),chosen)
	@rm -f $@
	@bash tools/setup.sh
	@touch $@

.PHONY: chosen
chosen:
