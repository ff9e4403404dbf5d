# make demo, make test: all the set-up, then the run. See CONTRIBUTING.md for the others.
#
# PYTHON   the interpreter the environment is made with; or, with VENV= (empty), the one to use as it is
# VENV     the environment: made if it does not exist, else used with what it has, without a network if it has all
# PIP_ARGS more arguments for pip, such as an index with CPU builds of torch

PYTHON   ?= python3
VENV     ?= .venv
PIP_ARGS ?=

PY := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
# Which interpreter was set up is remembered beside it, or under its own name.
STATE := $(if $(VENV),$(VENV),build/$(subst /,_,$(shell command -v $(PYTHON))))
READY := $(STATE)/.xmemk-ready
C_SOURCES := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu)
CLANG_FORMAT := $(PY) -c 'import clang_format; clang_format.clang_format()'
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.* csrc/*/*.*)

.PHONY: demo test soak lint format wheel clean

demo: $(READY)
	$(PY) -m xmemk demo

test: $(READY)
	$(PY) -m pytest --min-passed=$(or $(MIN_PASSED),$(shell cat tests/min-passed)) $(PYTEST_ARGS)

lint: $(STATE)/.xmemk-lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(CLANG_FORMAT) --dry-run --Werror $(C_SOURCES)

format: $(STATE)/.xmemk-lint
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(CLANG_FORMAT) -i $(C_SOURCES)

soak: $(READY)
	$(PY) benchmarks/soak.py

wheel: $(READY)
	$(PY) -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf build dist out xmemk/*.so *.egg-info

# Packages first, then the extension: an installed torch is what it is built against, hence no build isolation.
$(READY): $(SOURCES) constraints.txt tools/setup.sh
	sh tools/setup.sh "$(PYTHON)" "$(VENV)" dev "$(PIP_ARGS)"
	mkdir -p $(STATE)
	touch $@

$(STATE)/.xmemk-lint: $(READY)
	sh tools/setup.sh "$(PYTHON)" "$(VENV)" lint "$(PIP_ARGS)"
	touch $@
