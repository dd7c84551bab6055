# Two commands: `make demo` and `make test`. Each sets up what it needs in .venv, once.
#   PYTHON=python3.12   the Python to make .venv with
#   UV=no               install with plain pip instead of uv
#   HASHES=yes          install only files whose hashes requirements-hashes.txt has: all that is pinned, then mmrope itself
#   ADVISORIES=folder   for `make audit`: a copy of github.com/pypa/advisory-database, instead of asking the package index
#   DEVICE=cpu          where the demo runs; by default on a GPU if there is one
#   SECONDS=60          how long `make fuzz` looks for what breaks; five minutes by default

PYTHON ?= python3
UV ?= yes
HASHES ?= no
DEVICE ?= auto
SECONDS ?= 300
BIN := .venv/bin

ifeq ($(UV),no)
PIP = $(BIN)/python -m pip install
else
PIP = $(BIN)/uv pip install --python $(BIN)/python
COMPILE = --compile-bytecode
endif
ifeq ($(HASHES),yes)
# from wheels alone, since what builds a source distribution has no hash; nor has a folder: mmrope comes last, built with what is there
INSTALL = $(PIP) --only-binary :all: --require-hashes --requirement requirements-hashes.txt && $(PIP) --no-deps --no-build-isolation
else
INSTALL = $(PIP) --constraint constraints.txt
endif

.PHONY: help demo test fuzz lowest proof check check-all gpu references samples constraints licences audit clean

help:
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/'

demo: .venv/demo  ## ids, pictures and a small model on real photographs and a video
	$(BIN)/python scripts/demo.py --device $(DEVICE)

test: .venv/dev .venv/kernels check  ## every test, after `make check`, a process a core
	$(BIN)/python -m pytest -n auto --dist worksteal

fuzz: .venv/dev  ## looks for untrusted files, tokenizers, configs, segments and conversations that break their laws (Linux on x86-64)
	$(BIN)/python scripts/fuzz.py --seconds $(SECONDS)

proof: .venv/dev .venv/kernels  ## every long proof whole, in the background: about a day; out/proof has what is done
	mkdir -p out/proof
	nohup nice $(BIN)/python scripts/proof.py > out/proof/output 2>&1 &

lowest: .venv-lowest/ready  ## the tests that need no upstream, with the lowest versions that pyproject.toml allows
	MMROPE_LOWEST=1 .venv-lowest/bin/python -m pytest -n auto --dist worksteal -W ignore::DeprecationWarning \
		-W 'ignore:Attempted to insert a get_attr Node:UserWarning' -W 'ignore:Node:UserWarning' -W 'ignore:Additional:UserWarning' \
		-W ignore::pytest.PytestUnraisableExceptionWarning  # an upstream's file, open where its test was skipped

check: .venv/dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

check-all: check  ## the same, and the types for every Python that mmrope runs on
	for version in 3.11 3.12 3.13 3.14; do $(BIN)/pyright --pythonpath $(BIN)/python --pythonversion $$version || exit 1; done

gpu: .venv/dev  ## scripts/gpu.py, which needs no .venv: the kernel's tests and bench on a GPU; then the models' tests on it
	PYTHONPATH=. $(BIN)/python scripts/gpu.py
	MMROPE_REQUIRE_GPU=1 $(BIN)/python -m pytest -m gpu --ignore tests/encodings/test_gpu.py

references: .venv/dev  ## make tests/references anew from the installed upstreams
	$(BIN)/python scripts/make_references.py

samples: .venv/dev  ## make the photographs and the video in samples anew
	$(BIN)/python scripts/make_samples.py

# typer 0.29 loads pydantic at every start: `mmrope ids` would take 0.37 s instead of 0.22 s
constraints: .venv/base  ## pin the newest versions, and the hashes of their files
	echo 'typer<0.29' | $(BIN)/uv pip compile pyproject.toml --extra dev --constraint - --universal --python-version 3.10 \
		--prerelease disallow --no-header --no-annotate --upgrade --output-file constraints.txt
	$(BIN)/uv pip compile constraints.txt --no-deps --universal --python-version 3.10 --prerelease disallow \
		--no-header --no-annotate --generate-hashes --upgrade --output-file requirements-hashes.txt

licences: .venv/dev  ## make the tables of docs/licences.md anew from what is installed
	$(BIN)/python scripts/audit.py licences

audit: licences  ## the same; then known vulnerabilities of what is pinned, or that they could not be looked up
	$(BIN)/python scripts/audit.py vulnerabilities $(ADVISORIES)  # 3: there are some; 4: not everything could be looked up

clean:
	rm -rf .venv .venv-lowest out

# --- set-up: stamps in .venv, made anew when the versions change

.venv/base: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "mmrope needs Python 3.10 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
ifneq ($(UV),no)
ifeq ($(HASHES),yes)
	sed -n '/^uv==/,/[^\\]$$/p' requirements-hashes.txt > .venv/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement .venv/uv.txt
else
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
endif
endif
	@touch $@

.venv/demo: .venv/base pyproject.toml
	$(INSTALL) -e '.[cli,viz,vlm,decord]' -e small
	@touch $@

# of what pyproject.toml names itself the lowest versions, of what that needs the newest; but matplotlib 3.8 uses what pyparsing 3.3
# warns of, and tests run scripts with warnings as errors
.venv-lowest/ready: .venv/base pyproject.toml small/pyproject.toml
	$(BIN)/python -m venv --clear .venv-lowest
	$(BIN)/uv pip install --python .venv-lowest/bin/python --resolution lowest-direct $(COMPILE) -e '.[test]' -e small 'pyparsing>=3.2,<3.3'
	@touch $@

# beside the environment, for tests/adapters/test_replace.py alone: a transformers and a kernels that it takes
.venv/kernels: tests/adapters/overlay.txt | .venv/dev
	rm -rf .venv/overlay
	$(PIP) --target .venv/overlay --no-deps --require-hashes --requirement tests/adapters/overlay.txt
	@touch $@

.venv/dev: .venv/base pyproject.toml
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the tests compare with transformers 5.24, which needs Python 3.11 or newer: make clean, then make PYTHON=python3.12 test")'
	$(INSTALL) $(COMPILE) -e '.[dev]' -e small  # tests start Python a hundred times: with all of torch to compile, 4 s later each
	@touch $@ .venv/demo
