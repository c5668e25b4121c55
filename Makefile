# make repro              set up .venv, run the pipeline, write reports/index.html
# make test               set up .venv and pass the tests
# make bench              throughput beside other libraries and in other arithmetic (about an hour)
# make soak              kill trainings at random moments and fail every write, and see that nothing is lost (long)
# make test-cluster       run docs/cluster.md, line by line, on a Slurm of its own, and kill what runs there (long)
# make clean-checkpoints  show what the checkpoint store holds, and free it
#
# Another Python: make PYTHON=python3.12 repro. Another build of torch: UV_TORCH_BACKEND=cpu make repro (or cu126, ...).
PYTHON ?= python3
outside := $(PATH)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# A user's settings that would put other packages into .venv or in front of it.
unexport PYTHONHOME PYTHONPATH PYTHONSAFEPATH PIP_PREFIX PIP_TARGET
export PIP_USER := 0
# Bytecode is written even where the environment forbids it: every stage is a process that imports torch.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help repro test bench soak test-cluster clean-checkpoints repository

help:
	@sed -n 's/^# make/make/p' Makefile

repro: repository .venv/installed
	dvc repro
	@echo "The report is reports/index.html"

test: repository .venv/installed
	ruff check .
	ruff format --check .
	mypy
	python -m pytest

bench: repository .venv/installed
	uv pip install --python .venv/bin/python $(call packages,bench) || \
		.venv/bin/python -m pip install $(call packages,bench)
	dvc repro download
	python -m benchmarks.throughput
	python -m benchmarks.arithmetic
	python -m benchmarks.sizes
	python -m benchmarks.methods
	python -m benchmarks.step

soak: repository .venv/installed
	python -m tests.soak
	python -m tests.faults

test-cluster: repository .venv/installed
	python -m tests.cluster

clean-checkpoints: .venv/installed
	python -m stages.checkpoints --free

# DVC is content with a folder of another repository, a worktree or a submodule.
repository:
	@git rev-parse --git-dir > /dev/null || { echo "DVC needs a git repository, and git finds none here (its reason is above):" \
		"clone this one instead of downloading an archive, or: git init && git add --all && git commit --message start"; exit 1; }

# The packages and this code itself. The lock is a constraint, so that its CUDA libraries come only with a torch that wants them.
packages = --constraint requirements.txt --editable '.[$(1)]'

# .venv/installed says where, from which lock and with which Python .venv was made, or that it is unfinished. A .venv that does not
# fit is made anew: the lock or the folder is another one (its programs hold absolute paths), or PYTHON asks for another Python.
# Only a real folder with this mark is ever emptied.
identity := import sys; print(*sys.version_info[:2], sys.base_prefix)
base := $(shell PATH='$(outside)' $(PYTHON) -I -c \
	'import sys; assert (3, 11) <= sys.version_info < (3, 14); print(sys._base_executable)' 2> /dev/null)
python := $(if $(filter file,$(origin PYTHON)),.venv/bin/python,$(base))
lock := $(shell cksum < requirements.txt)
ifneq ($(CURDIR) $(lock) $(shell '$(python)' -I -c '$(identity)' 2> /dev/null),$(shell cat .venv/installed 2> /dev/null))
.PHONY: .venv/installed
endif

# Without an NVIDIA GPU uv takes the build of torch that has no CUDA libraries (5 GB), where it can reach the index that has it.
# With one, a .venv of that build is made anew. Systems other than Linux have one build.
gpu := $(shell { [ -e /proc/driver/nvidia ] || command -v nvidia-smi || [ "$$(uname)" != Linux ]; } > /dev/null && echo yes)
ifneq ($(and $(gpu),$(wildcard .venv/lib/*/site-packages/torch-*+cpu.dist-info)),)
ifndef UV_TORCH_BACKEND
.PHONY: .venv/installed
endif
endif

# Where uv cannot be had, or cannot reach a package index that pip is set up for, pip does the same.
.venv/installed:
	@[ -n '$(base)' ] || { echo "Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is `PATH='$(outside)' $(PYTHON) -V 2>&1 | head -n 1`." \
		"Say which: make PYTHON=python3.11"; exit 1; }
	@[ -z "$$(ls -A .venv/ 2> /dev/null)" ] || { [ -f .venv/installed ] && [ ! -L .venv ]; } || { \
		echo "make did not make this .venv, or it is a link, and so it is left alone: move it away (mv .venv other) and make again," \
		"or install into it yourself: source .venv/bin/activate && pip install -c requirements.txt -e . && dvc repro"; exit 1; }
	@mkdir -p .venv && echo unfinished > .venv/installed
	@find .venv -mindepth 1 -maxdepth 1 ! -name installed -exec rm -rf {} +
	@'$(base)' -m venv .venv || \
		{ echo "Python could not make a virtual environment; on Debian: apt install python3-venv"; exit 1; }
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 uv==0.13.9 || echo "No uv: pip does the same, only slower."
	@if [ -z "$(gpu)$$UV_TORCH_BACKEND" ] && UV_HTTP_RETRIES=0 UV_HTTP_CONNECT_TIMEOUT=5 UV_HTTP_TIMEOUT=10 uv pip install --quiet \
		--python .venv/bin/python --dry-run --no-deps --torch-backend cpu -c requirements.txt torch torchvision 2> /dev/null; \
	then export UV_TORCH_BACKEND=cpu; fi; \
	command -v uv > /dev/null && uv pip install --python .venv/bin/python $(call packages,test) || \
		.venv/bin/python -m pip install $(call packages,test) || { \
		echo "The packages could not be installed; the reason is above. If no package index can be reached: name yours with" \
		"PIP_INDEX_URL and UV_DEFAULT_INDEX, or a folder of wheels with PIP_FIND_LINKS, then make again."; exit 1; }
	@printf '%s\n' "$(CURDIR) $(lock) $$(.venv/bin/python -I -c '$(identity)')" > .venv/installed
