# make demo, make test: the whole set-up, then the run. CONTRIBUTING.md has the other targets.
# make gpu: on a machine with an NVIDIA GPU, into the environment that is there (tools/gpu.sh).
#
# PYTHON   the interpreter that the environment is made with; with VENV= (empty), the one that is used
# VENV     the environment: made if it does not exist, completed if something is missing
# PIP_ARGS more arguments for pip, such as an index with CPU builds of torch
# WORKERS  processes that `make test` runs tests in; 0 for none but its own

PYTHON   ?= python3
VENV     ?= .venv
PIP_ARGS ?=
WORKERS  ?= auto

PY := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
# Which interpreter was set up is remembered beside it, or under its own name.
STATE := $(if $(VENV),$(VENV),build/$(subst /,_,$(shell command -v $(PYTHON))))
READY := $(STATE)/.xmemk-ready
C_SOURCES := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh tests/cuda_emulation/* tests/cpu_cross/* tests/ptx/interp/core/*)
CLANG_FORMAT := $(PY) -c 'import clang_format; clang_format.clang_format()'
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.* csrc/*/*.*)

.PHONY: demo test quick bench gpu aot ptx soak sanitize sanitize-threads lint format wheel hub docs clean

demo: $(READY)
	$(PY) -m xmemk demo

test: $(READY)
	$(PY) -m pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal --min-passed=$(or $(MIN_PASSED),$(shell cat tests/min-passed)) $(PYTEST_ARGS)

# What a change in the core needs, in about a minute: every op and backend on the CPU, the memory, the structure.
# Left out is what compiles, interprets Triton, or runs out of memory in processes of its own.
QUICK := tests/ops tests/reference tests/memory tests/repo/test_architecture.py tests/repo/test_house.py \
	$(addprefix --ignore=tests/,ops/test_compile.py ops/test_out_of_memory.py ops/test_validate.py memory/test_memory_graph.py) \
	-k "not opcheck and not compiled and not inductor"

quick: $(READY)
	$(PY) -m pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal -q -m "not slow" $(PYTEST_ARGS) $(QUICK)

# The tests of the C++ operators under gcc's address and undefined-behaviour sanitizers: a build of its own in
# build/sanitize, from where they run, so that it is found before the one in place.
SANITIZED := build/sanitize
SANITIZE  := -fsanitize=address,undefined -fno-sanitize-recover=undefined
RUNTIMES  = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libubsan.so)
CPU_TESTS := affinity_topk consolidate evict_lfu gather_tokens hint large_terms_cpu memory_read memory_read_backward_cpu memory_read_cpu \
	potentiate readout_topk select_prototypes

sanitize: $(READY)
	CFLAGS="$(SANITIZE) -fno-omit-frame-pointer -g1" LDFLAGS="$(SANITIZE)" $(PY) setup.py --quiet build \
		--build-lib $(SANITIZED) --build-temp $(SANITIZED)-objects
	cd $(SANITIZED) && LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0:protect_shadow_gap=0 \
		$(if $(VENV),$(abspath $(PY)),$(PY)) -m pytest -p no:cacheprovider -m "not slow" $(PYTEST_ARGS) \
		$(CPU_TESTS:%=$(CURDIR)/tests/ops/test_%.py)

# The reads under gcc's thread sanitizer, on threads of our own: it does not know how OpenMP's wait for one another.
RACED := build/sanitize-threads
RACES := -fsanitize=thread

sanitize-threads: $(READY)
	CFLAGS="$(RACES) -DXMEMK_STD_THREADS -fno-omit-frame-pointer -g1" LDFLAGS="$(RACES)" $(PY) setup.py --quiet build \
		--build-lib $(RACED) --build-temp $(RACED)-objects
	cd $(RACED) && LD_PRELOAD="$(shell $(CXX) -print-file-name=libtsan.so)" TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1 \
		OMP_NUM_THREADS=1 PYTHONPATH=. $(if $(VENV),$(abspath $(PY)),$(PY)) $(CURDIR)/tests/support/threaded_reads.py

gpu:
	sh tools/gpu.sh "$(PY)"

# Every launch of the Triton kernels, compiled for every architecture; no GPU is needed. AOT="--arch 90 --only topk"
aot: $(READY)
	$(PY) -m xmemk.kernels.aot $(AOT)

# The compiled kernels run as PTX on the CPU, every case and architecture. PTX="--arch 90 --only topk"
ptx: $(READY)
	$(PY) tests/ptx/run.py $(PTX)

lint: $(STATE)/.xmemk-lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) tools/typecheck.py
	$(CLANG_FORMAT) --dry-run --Werror $(C_SOURCES)

format: $(STATE)/.xmemk-lint
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(CLANG_FORMAT) -i $(C_SOURCES)

# Every op beside its peers by pytest-benchmark, a table each. BENCH="-k read --benchmark-autosave"
bench: $(READY)
	$(PY) -m pytest -q --benchmark-columns=median,iqr,min,rounds --benchmark-sort=min $(BENCH) tests/benchmarks/bench_ops.py

soak: $(READY)
	$(PY) benchmarks/studies/soak.py

# What is released, into dist/: sdist, CPU wheel, pure wheel; each wheel tried in an environment of its own.
wheel: $(READY)
	sh tools/wheels.sh "$(PY)"

# The layout for the Hugging Face Kernel Hub, into build/hub.
hub: $(READY)
	$(PY) tools/hub.py build/hub

# The documentation site, into build/site; a warning is an error.
docs: $(STATE)/.xmemk-docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

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

$(STATE)/.xmemk-docs: $(READY)
	sh tools/setup.sh "$(PYTHON)" "$(VENV)" docs "$(PIP_ARGS)"
	touch $@
