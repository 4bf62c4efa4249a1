# PYTHON chooses the interpreter: make test PYTHON=python3.12
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VERSION := $(shell $(or $(PYTHON),false) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv
BIN := $(VENV)/bin
# Named after the interpreter's version, so that another PYTHON makes the environment anew.
STAMP := $(VENV)/.installed-$(VERSION)
LAUNCHERS_STAMP := $(VENV)/.launchers-$(VERSION)
# What `pip install` compiles; installed anew where it has changed.
COMPILED := $(wildcard sim/compiled/*.pyx sim/compiled/*.pxd)
FIRST_LIGHT := runs/first_light
PUBLISHED := reports/published
MEASURED := calibrate/measurements/h100
# Replays of the first H100; those of another one lie beside them.
REPLAYS := calibrate/replays/h100
EVIDENCE := fit=calibrate/fits/h100_llama_3_1_8b check=calibrate/replays/h100/Llama-3.1-8B/check.csv
# The parts of the laboratory's grid that its page compares, those of its other grid, those that it follows along an axis, and its
# timelines; and where the GPU loaded adapters beside its work.
LAB_PARTS := parts bounds admission eviction prefetch
LAB_BESIDE := spread spread_bounds
LAB_AXES := swap_cost adapters skew load overlap
WITH_PREFETCH := calibrate/replays/h100/Llama-3.1-8B/32-closed-zipf-winner
LAB_TIMELINES := vllm winner
empty :=
comma := ,
# A list for Hydra: [runs/lab/a,runs/lab/b]
folders = [$(subst $(empty) $(empty),$(comma),$(addprefix runs/lab/,$(1)))]

.PHONY: help run lab test bench published lock setup

help: ## Show this list
	@grep -E '^[a-z]+:.* ## ' Makefile | sed -E 's/^([a-z]+):.* ## /  make \1\t/' | expand -t 14

run: $(STAMP) ## Which policies serve 1,000 adapters best on the shipped H100 profile, and how near to the bound (runs/quick)
	@for part in slots bounds parts; do
		$(BIN)/lorasim -m +experiment=quick_$$part > /dev/null
	done
	$(BIN)/python -m reports dir=runs/quick/slots $(EVIDENCE) out=runs/quick/report.html
	echo
	$(BIN)/python -m reports.lab dir=runs/quick/parts more=[runs/quick/bounds] overlap=$(WITH_PREFETCH) \
		out=runs/quick/lab.html
	echo "Report on slots and on how near simulations come to the GPU: runs/quick/report.html"

lab: $(STAMP) ## The same on the whole grid, with what the answer depends on (runs/lab); it goes on where it was cut
	@for part in $(LAB_PARTS) $(LAB_BESIDE) $(LAB_AXES); do
		echo "$$part"
		$(BIN)/lorasim -m +experiment=lab_$$part > /dev/null
	done
	$(BIN)/lorasim +experiment=lab_timeline hydra.run.dir=runs/lab/vllm > /dev/null
	$(BIN)/lorasim +experiment=lab_timeline +policy_set=best \
		hydra.run.dir=runs/lab/winner > /dev/null
	$(BIN)/python -m reports.lab dir=runs/lab/parts "more=$(call folders,$(filter-out parts,$(LAB_PARTS)))" \
		"beside=$(call folders,$(LAB_BESIDE))" overlap=$(WITH_PREFETCH) \
		"sensitivity=$(call folders,$(LAB_AXES))" "timelines=$(call folders,$(LAB_TIMELINES))" \
		timeline.start_s=20 timeline.length_s=5 $(or $(LAB_OUT),out=runs/lab/lab.html)

published: $(STAMP) ## Make reports/published anew, from the files in the tree
	@$(BIN)/python -m calibrate.fit
	$(BIN)/python -m calibrate.fit name=h100_llama_3_1_8b_one_piece swaps=$(MEASURED)/Llama-3.1-8B/one_piece \
		without.schedule_ms=[cache_entries_adapters]
	$(BIN)/python -m calibrate.fit name=h100_qwen3_0_6b model=qwen3_0_6b measurements=$(MEASURED)/Qwen3-0.6B
	$(BIN)/python -m calibrate.validate
	$(BIN)/python -m calibrate.validate replays=$(REPLAYS)_2/Llama-3.1-8B
	$(BIN)/python -m calibrate.validate replays=$(REPLAYS)_3/Llama-3.1-8B
	$(BIN)/python -m calibrate.validate replays=$(REPLAYS)/Qwen3-0.6B profile=h100_qwen3_0_6b
	$(BIN)/python -m calibrate.validate replays=$(REPLAYS)_3/Qwen3-0.6B profile=h100_qwen3_0_6b
	$(BIN)/python -m calibrate.fit_sleep_mode
	$(BIN)/python -m calibrate.served
	$(BIN)/python -m calibrate.served results=$(REPLAYS)/server settings.num_gpu_blocks=1920 ~runs.amortize \
		runs.vllm.host=$(REPLAYS)/Llama-3.1-8B/64-closed-uniform runs.winner.host=$(REPLAYS)/Llama-3.1-8B/64-closed-uniform-winner
	$(BIN)/python -m reports.fidelity
	$(BIN)/lorasim -m +experiment=first_light hydra.sweep.dir=$(FIRST_LIGHT)
	$(BIN)/python -m reports dir=$(FIRST_LIGHT) $(EVIDENCE) out=$(PUBLISHED)/first_light/report.html \
		pictures=$(PUBLISHED)/first_light
	cp $(FIRST_LIGHT)/sweep.csv $(PUBLISHED)/first_light/sweep.csv
	$(MAKE) --no-print-directory lab LAB_OUT="out=$(PUBLISHED)/lab/lab.html pictures=$(PUBLISHED)/lab"
	for part in $(LAB_PARTS) $(LAB_BESIDE) $(LAB_AXES); do
		cp runs/lab/$$part/sweep.csv $(PUBLISHED)/lab/$$part.csv
	done
	for experiment in forty_customers thousand_adapters llmux_time_slice hbm_budget arrival_rate; do
		$(BIN)/lorasim -m +experiment=$$experiment hydra.sweep.dir=runs/$$experiment
		mkdir -p $(PUBLISHED)/$$experiment
		find runs/$$experiment -maxdepth 1 \( -name "*.md" -o -name "*.svg" -o -name "$$experiment.json" \) \
			-exec cp {} $(PUBLISHED)/$$experiment/ \;
	done

test: setup ## Lint, type check, tests
	@$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -n auto

bench: $(STAMP) ## Time the simulator and write benchmarks/results (BENCH=--million: one million requests too)
	@$(BIN)/pytest benchmarks --override-ini=addopts= --benchmark-columns=min,median,rounds $(BENCH)

setup: $(LAUNCHERS_STAMP) ## Make .venv with all locked dependencies; test does this too, run what it needs of it

$(STAMP): pyproject.toml requirements.lock $(COMPILED)
	@fail() { echo "lorasim: error: $$1" >&2; exit 1; }
	command -v git >/dev/null || fail "git is missing; install the package git"
	[ -n "$(PYTHON)" ] || fail "Python 3.11 or newer is missing; install it, or name it with PYTHON=..."
	[ -n "$(VERSION)" ] && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| fail "PYTHON=$(PYTHON) is not Python 3.11 or newer"
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| fail "$(PYTHON) has no venv module; install the package python3-venv"
	[ -x $(BIN)/python$(VERSION) ] && [ -x $(BIN)/pip ] || $(PYTHON) -m venv --clear $(VENV)
	echo "Installing $$(grep -c == requirements.lock) locked packages into $(VENV) (Python $(VERSION)), once"
	export PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1
	$(BIN)/pip install --use-pep517 --require-hashes -r requirements.lock | awk \
		'/^Collecting/ {printf "\r%3d %-40s", ++n, $$2; fflush()} /^Installing/ {printf "\r    %-40s", "installing"} \
		END {print "\r    done" sprintf("%40s", "")}'
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -c 'import sim.compiled.engine' 2>/dev/null \
		|| echo "lorasim: no C++ compiler: simulations are slower, with the same results; install g++ and touch pyproject.toml"
	touch $@

# Ray alone is larger than all the rest together, and only tests and clusters need it.
$(LAUNCHERS_STAMP): $(STAMP) requirements-launchers.lock
	@echo "Installing the launchers for Ray, Slurm and Optuna into $(VENV), once"
	export PIP_DISABLE_PIP_VERSION_CHECK=1
	$(BIN)/pip install --quiet --use-pep517 --require-hashes -r requirements-launchers.lock
	touch $@

lock: ## Write the two requirements*.lock anew from pyproject.toml: the newest versions, exact, with hashes
	@$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check uv
	compile() {
		build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
			--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
			--custom-compile-command 'make lock' "$$@" pyproject.toml
	}
	compile --extra dev --extra ray --extra slurm --extra tune --output-file requirements-launchers.lock
	compile --extra dev --constraints requirements-launchers.lock --output-file requirements.lock
