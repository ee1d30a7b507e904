# make reproduce   install, run the notebooks and the tables' workflow for PRESET on DEVICE
# make test        install, test
# make test-browser  test the page of notebook 15 in headless Chromium (Debian's package; installed when run as root)
# make lab         install, open the notebooks in JupyterLab
# make bench       install, measure speed
# make lint        install, ruff
# make lock        write requirements.lock anew from pyproject.toml
# make clean       remove .venv and caches; results and data stay

SHELL := /bin/bash
PRESET ?= mobile
DEVICE ?= cpu
CORES ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# glibc gives every freed buffer over 128 KiB back to the system and faults its pages in again on the next
# allocation; tensors of a CPU run are all of that kind. Keeping them on the heap makes a training step faster.
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 17179869184
# Each notebook starts a process; without compiled modules on the disk, each compiles torch's thousand files anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: reproduce test test-browser lab lint bench lock clean
.DEFAULT_GOAL := test

# Snakemake leads a process group, which is stopped whole when this recipe ends, make is gone (however it was killed), or
# Snakemake is: alone, Snakemake would wait for its stages, and they would outlive it.
reproduce: $(STAMP)
	@set -m; $(VENV)/bin/snakemake --cores $(CORES) --config preset=$(PRESET) device=$(DEVICE) --rerun-incomplete & group=$$!; set +m; \
	trap 'kill -TERM -- -$$group 2>/dev/null' EXIT; trap 'exit 143' INT TERM HUP; \
	while kill -0 $$PPID && kill -0 $$group; do sleep 1; done 2>/dev/null; \
	kill -0 $$PPID && wait $$group

test: $(STAMP)
	$(PY) -m pytest -q -rs --durations=8 -n 2 --dist loadgroup $(TESTS)

test-browser: $(STAMP)
	@which chromium chromium-browser google-chrome >/dev/null 2>&1 || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -q update && apt-get -qy install chromium; } || \
		{ echo "no Chromium found: sudo apt-get install chromium, then make test-browser again" >&2; exit 1; }
	$(PY) -m pytest -q -rs tests/browser

lab: $(STAMP)
	$(VENV)/bin/jupyter lab notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check riddle tests

bench: $(STAMP)
	$(PY) -m riddle.bench --preset $(PRESET)

lock: $(STAMP)
	$(VENV)/bin/uv pip compile --generate-hashes --no-emit-index-url --universal --python-version 3.11 \
		--extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .snakemake .pytest_cache .ruff_cache .hypothesis build dist

# A name on PATH can be a shim that only prints an error: the first that runs and is 3.11 or 3.12 is taken.
$(STAMP): requirements.lock requirements-wheel.lock pyproject.toml
	@set -e; \
	if ! $(PY) -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' 2>/dev/null; then \
		for python in $(PYTHON) python3.12 python3.11 python3 python \
				/usr/local/bin/python3.12 /usr/bin/python3.12 /usr/local/bin/python3.11 /usr/bin/python3.11; do \
			if $$python -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' 2>/dev/null; \
				then found=$$python; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "No Python 3.11 or 3.12 with venv found; install one, or: make PYTHON=/path/to/python3.12" >&2; exit 1; \
		fi; \
		echo "creating $(VENV) with $$found"; \
		$$found -m venv --clear $(VENV); \
	fi; \
	$(PY) -m pip install --quiet --disable-pip-version-check uv; \
	$(VENV)/bin/uv pip install --python $(PY) --require-hashes -r requirements.lock; \
	$(VENV)/bin/uv pip install --python $(PY) --no-deps --require-hashes -r requirements-wheel.lock; \
	$(VENV)/bin/uv pip install --python $(PY) --no-deps -e .; \
	touch $@
