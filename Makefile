# Sparseflash. `make help` lists the targets; every target prints the command it runs.

BOARD ?= host
MODEL ?= $(if $(filter host host-flash linux-sbc,$(BOARD)),smollm2-135m,story)
SPARSITY ?=
METHOD ?= auto
HEAD ?= auto
PORT ?=
TEXT ?=
WINDOWS ?=
ORDER ?= file
RAM ?=
ASVD ?= 0
SPECULATE ?=
PYTHON ?= python3

VENV := .venv
PY := $(VENV)/bin/python
SF := $(VENV)/bin/sparseflash
ARGS := --board $(BOARD) --model '$(MODEL)'
PLAN := --method $(METHOD) $(if $(SPARSITY),--sparsity $(SPARSITY)) --head $(HEAD)
LINE := $(if $(PORT),--port $(PORT))
STAMP := $(VENV)/.ready
STAMP_DEV := $(VENV)/.ready-dev
PIP := $(PY) -m pip --disable-pip-version-check

.PHONY: plan report conform reference faults flash-curve cycles help demo test setup setup-boards fetch calibrate generate build flash size stack validate perplexity sparsity prices bench bench-peers chat boards models golden lint clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: BOARD=$(BOARD) MODEL=$(MODEL) METHOD=$(METHOD) SPARSITY=$(SPARSITY) HEAD=$(HEAD) PORT=$(PORT) TEXT=$(TEXT) WINDOWS=$(WINDOWS) ORDER=$(ORDER) RAM=$(RAM) ASVD=$(ASVD) SPECULATE=$(SPECULATE)"

$(STAMP): requirements.txt pyproject.toml setup.py
	sh host_tools/setup-base.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install torch==2.13.0
	$(PIP) install -r requirements.txt
	$(PIP) install --no-deps -e .
	touch $@

$(STAMP_DEV): $(STAMP) requirements-dev.txt
	$(PIP) install -r requirements-dev.txt
	touch $@

setup: $(STAMP) ## The virtual environment with pinned packages (PYTHON=python3.12 takes another)

demo: setup ## Set-up and the main job: pack, build, flash, validate, bench, chat
	$(SF) run $(ARGS) $(PLAN) $(if $(RAM),--ram $(RAM))

setup-boards: ## Compilers and emulators of the boards (apt-get; needs root or sudo)
	sh host_tools/setup-boards.sh

test: $(STAMP_DEV) setup-boards ## Set-up, compilers and emulators, and every test
	$(SF) load --model smollm2-135m --texts
	$(PY) -m pytest -q -ra -n auto --maxprocesses 4 --dist loadgroup

faults: $(STAMP_DEV) ## Every fault of the campaigns that make test samples (hours); counts go to docs/RELIABILITY.md
	SPARSEFLASH_FAULTS=all $(PY) -m pytest -q -o timeout=0 tests/faults

fetch: setup ## Downloads MODEL
	$(SF) load --model '$(MODEL)' --texts

calibrate: setup ## Measures thresholds of MODEL
	$(SF) calibrate --model '$(MODEL)'

generate: setup ## Packs MODEL and writes the C for BOARD
	$(SF) generate $(ARGS) $(PLAN) --order $(ORDER) --asvd $(ASVD) $(if $(RAM),--ram $(RAM)) $(if $(SPECULATE),--speculate $(SPECULATE))

build: setup ## Compiles what generate wrote
	$(SF) build $(ARGS)

flash: setup ## Builds and flashes BOARD (RUNNER=, HOST=, DRIVE=; DRY_RUN=1 prints the commands)
	$(SF) flash $(ARGS) $(LINE) $(if $(RUNNER),--runner $(RUNNER)) $(if $(HOST),--host $(HOST)) \
	    $(if $(DRIVE),--drive '$(DRIVE)') $(if $(DRY_RUN),--dry-run)

size: setup ## Bytes of the program for BOARD, by part and section
	$(SF) size $(ARGS)

stack: setup ## Deepest stack of the program for BOARD, against its limit
	$(SF) stack $(ARGS)

validate: setup ## Compares the device with the host, bit by bit
	$(SF) validate $(ARGS) $(LINE)

perplexity: setup ## Perplexity, KL and bytes a token of dense and sparse variants
	$(SF) perplexity --model '$(MODEL)' $(if $(filter-out auto,$(HEAD)),--head $(HEAD)) $(if $(TEXT),--text '$(TEXT)')

sparsity: setup ## Every sparsity method on one page: table, plots (WINDOWS=8 for a short look)
	$(SF) sparsity --model '$(MODEL)' $(if $(TEXT),--text '$(TEXT)') $(if $(WINDOWS),--windows $(WINDOWS))

prices: setup ## Measures what drops of MODEL cost, for METHOD=auto (long)
	$(SF) prices --model '$(MODEL)'

bench: setup ## Tokens a second and bytes a token over the link
	$(SF) bench $(ARGS) $(LINE)

bench-peers: setup ## Decode and prefill of MODEL beside llama.cpp, which it builds (TIER=, THREADS=)
	$(PY) tests/bench/peers.py --model '$(MODEL)' $(if $(TIER),--tier $(TIER)) $(if $(THREADS),--threads $(THREADS))

cycles: setup ## Cycles a token of MODEL on ast1030-evb, in a model of its core and flash
	$(PY) tests/bench/ast1030_cycles.py --model '$(MODEL)'

chat: setup ## Talks to the device
	$(SF) chat $(ARGS) $(LINE)

flash-curve: setup ## Measures what a read costs by size on BOARD (host-flash)
	$(SF) flash-curve $(ARGS)

boards: setup ## Lists the boards
	$(SF) boards

models: setup ## Lists the models
	$(SF) models

plan: setup ## The fit report of MODEL on BOARD
	$(SF) plan $(ARGS) $(PLAN) $(if $(RAM),--ram $(RAM))

report: setup ## One HTML page about MODEL on BOARD, of what was measured
	$(SF) report $(ARGS)

conform: setup ## The checks that a port of BOARD must pass
	$(SF) conform --board $(BOARD) $(LINE)

reference: setup ## Writes docs/CLI.md from the command line
	$(PY) -m sparseflash.cli.reference

golden: $(STAMP_DEV) ## Writes the examples of generated C, tests/golden, anew
	$(PY) -m pytest -q tests/codegen/test_golden.py --update-golden

lint: $(STAMP_DEV) ## ruff, mypy, clang-format; gcc -fanalyzer, clang-tidy and cppcheck where they are installed
	$(VENV)/bin/ruff check host_tools tests
	$(VENV)/bin/ruff format --check host_tools tests
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $$(find firmware tests host_tools/emulators -name '*.[ch]')
	sh tests/lint_c.sh

clean: ## Removes what was built (not the venv and the downloads)
	rm -rf build
