# Everything a person or a machine types: make lab, make serve, make test. Each works first, in any order.
PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help env weights lab serve test bench lock clean
.DELETE_ON_ERROR:

help:
	@echo "make lab     the notebooks, in JupyterLab"
	@echo "make serve   only the API, on port $(PORT)"
	@echo "make test    everything, as CI runs it"
	@echo "make bench   how fast it is, beside the lab's handler and other engines; written to benchmarks/RESULTS.md"
	@echo "make env     only the environment, in .venv"
	@echo "make lock    choose the locked versions anew, within the ranges of pyproject.toml"
	@echo "make clean   remove .venv and what the lab wrote (the weights stay)"

env: .venv/installed

# setuptools first: it builds the few packages that come as source
.venv/installed: requirements.lock pyproject.toml notebooks/.jupyterlab.json
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is $$($(PYTHON) -V): make $(MAKECMDGOALS) PYTHON=python3.13"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	sed -n '/^setuptools==/,/[^\\]$$/p' requirements.lock > .venv/setuptools.lock
	$(PIP) install --quiet --require-hashes --requirement .venv/setuptools.lock
	$(PIP) install --require-hashes --no-build-isolation --requirement requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	mkdir -p .venv/share/jupyter/lab/settings
	cp notebooks/.jupyterlab.json .venv/share/jupyter/lab/settings/overrides.json
	touch $@

weights: env
	@$(BIN)/labsupport models yolov3-tiny

# where there is no screen JupyterLab prints its address instead; root may run it, as in a container
lab: weights
	$(BIN)/jupyter lab --notebook-dir=. $(if $(DISPLAY)$(WAYLAND_DISPLAY)$(filter Darwin,$(shell uname)),,--no-browser) \
		$(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/notebooks/server.ipynb

serve: weights
	$(BIN)/labsupport serve --port $(PORT)

test: weights .venv-oracle/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest $(ARGS)

bench: weights .venv-bench/installed .venv-oracle/installed
	$(BIN)/python -m benchmarks.bench $(ARGS)

# what the server is measured beside, in an environment of its own: several hundred megabytes that nobody else needs
.venv-bench/installed: requirements-bench.lock
	$(PYTHON) -m venv --clear .venv-bench
	.venv-bench/bin/python -m pip install --disable-pip-version-check --quiet --require-hashes --requirement requirements-bench.lock
	touch $@

# what the drift helpers are checked and measured beside
.venv-oracle/installed: requirements-oracle.lock
	$(PYTHON) -m venv --clear .venv-oracle
	.venv-oracle/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --require-hashes --requirement requirements-oracle.lock
	touch $@

LOCK := .venv/uv/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	--no-emit-index-url --upgrade --quiet

lock: env
	$(BIN)/python -m pip --quiet --disable-pip-version-check install --target .venv/uv uv
	$(LOCK) pyproject.toml --extra lab --extra edge --extra test --output-file requirements.lock
	$(LOCK) pyproject.toml --extra bench --output-file requirements-bench.lock
	$(LOCK) --group oracle --output-file requirements-oracle.lock

clean:
	rm -rf .venv .venv-bench .venv-oracle *.egg-info .pytest_cache .ruff_cache
	find images_with_boxes images_uploaded -type f ! -name .gitignore -delete
