# Everything needs only python3, make and a package index. Each target builds what it lacks.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
RUN := JAX_COMPILATION_CACHE_DIR=.cache/jax
# A test that hangs says where, and ends the run.
SUITE := -m pytest -n 2 --max-worker-restart 0 -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true
# The first Python of a later version that really runs; pyenv's folders are looked through as well.
NEWER := $(firstword $(foreach p,python3.12 python3.13 python3.14 $(wildcard $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python3),$(shell $(p) -c 'import sys; sys.version_info >= (3, 12) and print("$(p)")' 2>/dev/null)))

.PHONY: demo test test-newer lint bench clean

demo: $(VENV)/.plot
	$(RUN) $(PY) -m affinax demo

test: $(VENV)/.dev lint
	$(RUN) $(PY) $(SUITE)
	@$(MAKE) --no-print-directory test-newer

# The same suite on a newer Python with the newest jax, where there is one besides $(PYTHON).
test-newer:
	@if $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then \
	    echo "the suite ran on Python 3.12 or later already"; \
	elif [ -n "$(NEWER)" ]; then \
	    $(MAKE) --no-print-directory VENV=.venv-newer PYTHON=$(NEWER) .venv-newer/.dev && \
	    $(RUN)-newer .venv-newer/bin/python $(SUITE); \
	else \
	    echo "no Python 3.12 or later on this machine: the suite ran on $$($(PY) --version) alone"; \
	fi

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	rm -rf build/types && mkdir -p build/types && cp -r api build/types/affinax
	cp -r engine kernels models build/types/affinax/
	$(PY) -m basedpyright

bench: $(VENV)/.bench
	$(RUN) $(PY) -m pytest bench -s -p no:xdist

$(VENV)/.plot $(VENV)/.dev $(VENV)/.bench: $(VENV)/.%: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -e '.[$*]'
	touch $@

clean:
	rm -rf .venv .venv-newer .cache build *.egg-info
