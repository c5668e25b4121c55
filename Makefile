# make repro              set up and run the pipeline
# make test               set up and pass the tests
# make bench              throughput beside other libraries and in other arithmetic (about half an hour)
# make soak               a small grid on 500 images; kill trainings at random moments and see that nothing is lost (about 20 minutes)
# make clean-checkpoints  show what the checkpoint store holds, and free it
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Bytecode is written even where the environment forbids it: every stage is a process that imports torch.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: repro test bench soak clean-checkpoints

repro: .git .venv/installed
	python -m stages.check
	dvc repro
	@echo "The report is reports/index.html"

test: .git .venv/installed
	ruff check .
	ruff format --check .
	mypy
	python -m pytest

bench: .git .venv/installed
	uv pip install --python .venv/bin/python --constraint requirements.txt --editable '.[bench]' || \
		python -m pip install --constraint requirements.txt --editable '.[bench]'
	dvc repro download
	python -m benchmarks.throughput
	python -m benchmarks.arithmetic

soak: .git .venv/installed
	python -m pytest --numprocesses 0 -m long
	python -m tests.soak

clean-checkpoints: .venv/installed
	python -m stages.checkpoints --free

# uv installs in parallel; where it cannot reach a package index that pip is set up for, pip does the same.
.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is `$(PYTHON) -V 2>&1`. Say which: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv --clear .venv || \
		{ echo "Python could not make a virtual environment; on Debian: apt install python3-venv"; exit 1; }
	python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	uv pip install --python .venv/bin/python --requirement requirements.txt || python -m pip install --requirement requirements.txt
	@touch $@

.git:
	@echo "This folder has no .git, and DVC needs one. Clone the repository instead of downloading an archive of it,"
	@echo "or make this a repository:  git init && git add --all && git commit --message start"
	@exit 1
