# Every target does its own set-up in .venv; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# GPU=1 asks for the GPU kind, GPU=0 for the CPU kind; without it the kind that is installed stays.
KIND := $(if $(GPU),$(if $(filter 0,$(GPU)),cpu,gpu),$(if $(wildcard $(VENV)/.installed-gpu),gpu,cpu))
STAMP := $(VENV)/.installed$(if $(filter gpu,$(KIND)),-gpu)
DOCS_STAMP := $(VENV)/.docs-installed
TORCH := torch==2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
CPP := server_config/onnxruntime_backend export/defensemble_ops/native
# Tests wait for processes much of the time. On two cores, two workers take half the time of one, and three are slower (351 s for 327 s).
WORKERS ?= 2
# PART=I/N runs only every N-th slow test. SLOW=1 adds all slow tests to the others.
CHOSEN := $(if $(PART),-m slow --part $(PART),$(if $(SLOW),-m 'slow or not slow'))
# A worker that has nothing left takes half of what another one still has, so that none of them waits at the end.
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install check test lint types docs demo serve bench zoo clean

# A line that begins with `##` describes a target with a variable.
help: ## List the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/\1\t\2/p; s/^## (.+[^ ])  +(.*)/\1\t\2/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "  make %-29s %s\n", $$1, $$2}'

install: $(STAMP) ## Set up .venv, Triton and its backend (GPU=1: the GPU builds of torch and ONNX Runtime, and TensorRT; GPU=0: the CPU builds again)

# PyTorch's CPU index is tried for 3 s and only used for torch: the wheel on PyPI brings 3 GB of CUDA.
$(STAMP): pyproject.toml constraints.txt server_config/triton-runtime.txt
# Without the stamp of its kind, a .venv is of the other kind (with conflicting packages) or incomplete: it is created again.
	$(PYTHON) -m venv $(if $(wildcard $(STAMP)),,--clear) $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
ifeq ($(KIND),gpu)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --extra-index-url https://pypi.nvidia.com --editable '.[gpu,dev]'
else
	@if timeout 3 $(BIN)/python -c "import urllib.request as r; r.urlopen('$(TORCH_CPU_INDEX)/torch/', timeout=3)" 2>/dev/null; then \
	  echo "torch: CPU build from $(TORCH_CPU_INDEX)"; \
	  $(BIN)/python -m pip install --quiet --no-deps --index-url $(TORCH_CPU_INDEX) $(TORCH); \
	else \
	  echo "torch: $(TORCH_CPU_INDEX) does not answer, so pip's own choice of $(TORCH)"; \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH); \
	fi
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
endif
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement server_config/triton-runtime.txt
	@if [ -z "$$CXX" ] && ! command -v c++ >/dev/null && ! command -v g++ >/dev/null && ! command -v clang++ >/dev/null; then \
	  echo "no C++ compiler on PATH: the wheel ziglang brings one"; \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt ziglang; \
	fi
	$(BIN)/python -c "from defensemble_server.runtime.backend_build import main; raise SystemExit(main())"
	@touch $(STAMP)

check: lint types test ## Run what CI runs, without the slow tests

test: $(STAMP) ## Run the tests that are not slow
## test ARGS=tests/images  Run the tests of a folder or a file
## test ARGS=FILE.py::TEST  Run one test (more options of pytest in quotes: ARGS="tests -k masks -x")
## test SLOW=1  Run the slow tests too
## test PART=2/6  Run the second of six parts of the slow tests, and nothing else
## test WORKERS=3  Run them in three processes (default two; 0 uses no extra process, so that a debugger works)
	$(PYTEST) $(CHOSEN) $(ARGS)

lint: $(STAMP) ## Check style: ruff for Python, clang-format for C++
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find $(CPP) tests/server/backend tests/ops -name '*.cc' -o -name '*.h')

types: $(STAMP) ## Check types: mypy, strict
	$(BIN)/mypy

docs: $(DOCS_STAMP) ## Build the documentation into site/; warnings and broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "built site/index.html; to search it: python3 -m http.server 8080 --directory site"

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $(DOCS_STAMP)

demo: $(STAMP) ## Train, export, serve, call and probe a small ensemble in a minute (ARGS=--keep-serving leaves the server running)
	$(BIN)/defensemble demo $(ARGS)

serve: $(STAMP) ## Serve model_repository until Ctrl-C (ARGS="--repository OTHER_FOLDER --free-ports")
	$(BIN)/defensemble serve $(ARGS)

bench: $(STAMP) ## Measure the overhead of serving over in-process calls (ARGS=--quick for a short run)
	$(BIN)/python benchmarks/serving_overhead.py $(ARGS)

zoo: $(STAMP) ## Train the unfinished networks of the zoo on CIFAR-10: hours on a CPU, resumable (ARGS=--list shows what is left)
	$(BIN)/python benchmarks/zoo_training.py $(ARGS)

clean: ## Remove the output of the other targets: .venv, caches, runs
	rm -rf $(VENV) .ci-venvs .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist runs site
