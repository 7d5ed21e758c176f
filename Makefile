# make lab       post-train the shipped model with SFT, then RLVR; before and after
# make test      everything that guards the project
# make notebook  open the lessons in Jupyter
# make notebooks rebuild the lessons from their scripts and execute them
# make bench     measure the engine beside TRL, transformers and PEFT; writes docs/benchmarks.md

PYTHON ?= python3
INSTALL = -m pip install --quiet --disable-pip-version-check
PIP = .venv/bin/python $(INSTALL)
NEW_ENOUGH = $(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, $(PYTHON) is {v.major}.{v.minor}")'
# On a Linux machine where the default index would bring the CUDA build of torch:
#   make lab TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
TORCH = $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.txt)
SCALE ?= laptop

.PHONY: lab test style types lessons notebook notebooks bench install clean

lab: .venv/lab
	.venv/bin/posttrain lab --scale $(SCALE)

# Types and lessons are checked side by side: each keeps one core busy.
test: .venv/dev
	$(MAKE) --jobs=2 style types lessons
	.venv/bin/pytest -n 2 --dist loadfile
	.venv/bin/python tools/weave.py --smoke

style: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/dev
	.venv/bin/mypy

lessons: .venv/dev
	.venv/bin/python tools/weave.py --check
	.venv/bin/python tools/tables.py --check

notebook: .venv/lab
	.venv/bin/jupyter notebook methods

notebooks: .venv/lab
	SCALE=$(SCALE) .venv/bin/python tools/weave.py --run

# An environment of its own, because the peers are pinned too. BENCH="--quick" tries every cell.
BENCH ?=
bench: .venv-bench/done
	.venv-bench/bin/python -m benchmarks.run $(BENCH)

install: .venv/lab

# torch comes first and alone: anything else that asks for it would take the newest build.
.venv/bin/python:
	$(NEW_ENOUGH)
	$(PYTHON) -m venv .venv

.venv-bench/done: benchmarks/requirements.txt requirements.txt pyproject.toml
	$(NEW_ENOUGH)
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python $(INSTALL) $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	.venv-bench/bin/python $(INSTALL) -r benchmarks/requirements.txt
	touch $@

.venv/lab: .venv/bin/python requirements.txt pyproject.toml
	$(PIP) $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PIP) -r requirements.txt
	touch $@

.venv/dev: .venv/lab requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv .venv-bench build runs
