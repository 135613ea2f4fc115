# Everything a person or a machine types: make lab, make serve, make test. Any of them may come first.
PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin
# Python keeps what it compiled, even where the machine sets this: the tests start hundreds of processes
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help env weights lab serve browser check test lessons figures bench lock clean
.DELETE_ON_ERROR:

help:
	@echo "make lab      the notebooks, in JupyterLab"
	@echo "make serve    only the API, on port $(PORT)"
	@echo "make browser  TensorFlow.js, for the page /browser; needs npm"
	@echo "make check    format, types and the quick tests: about a minute, for every change"
	@echo "make test     everything, as CI runs it"
	@echo "make lessons  every lesson in JupyterLab, in order, in a real browser; it takes minutes"
	@echo "make figures  draw the lessons' diagrams, notebooks/figures, from docs/figures"
	@echo "make bench    how fast it is, beside the lab's handler and other engines; written to benchmarks/RESULTS.md"
	@echo "make env      only the environment, in .venv"
	@echo "make lock     choose the locked versions anew, within the ranges of pyproject.toml"
	@echo "make clean    remove .venv and the lab's pictures (the weights and the log stay)"

env: .venv/installed

# Before all else, with pip: setuptools, which builds the few packages that come as source, and uv, which installs the rest
# in a quarter of pip's time. Where uv fails (no wheel for this machine, settings that only pip reads), pip goes on.
FIRST := setuptools uv
NEW = $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	{ echo "Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is $$($(PYTHON) -V): make $(MAKECMDGOALS) PYTHON=python3.13"; exit 1; }; \
	$(PYTHON) -m venv --clear $(1) && \
	for name in $(FIRST); do sed -n "/^$$name==/,/[^\\]$$/p" requirements.lock; done > $(1)/first.lock && \
	$(1)/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes --requirement $(1)/first.lock
# $(1) is the environment, $(2) the lock file, $(3) options
INSTALL = echo "installing $(2) into $(1)"; uv=$(1)/bin/uv; [ -x $$uv ] || uv=$(BIN)/uv; \
	env VIRTUAL_ENV=$(CURDIR)/$(1) $$uv pip install --quiet --require-hashes $(3) --requirement $(2) || \
	{ echo "uv could not, pip will: it takes some minutes"; \
	$(1)/bin/python -m pip install --disable-pip-version-check --quiet --require-hashes $(3) --requirement $(2); }
OURSELVES = $(1)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --editable .

.venv/installed: requirements.lock pyproject.toml notebooks/.jupyterlab.json
	@$(call NEW,.venv)
	@$(call INSTALL,.venv,requirements.lock,--no-build-isolation)
	@$(call OURSELVES,.venv)
	mkdir -p .venv/share/jupyter/lab/settings
	cp notebooks/.jupyterlab.json .venv/share/jupyter/lab/settings/overrides.json
	touch $@

weights: env
	@$(BIN)/labsupport models yolov3-tiny

# where there is no screen JupyterLab prints its address instead; root may run it, as in a container
lab: weights
	$(BIN)/jupyter lab --notebook-dir=. $(if $(DISPLAY)$(WAYLAND_DISPLAY)$(filter Darwin,$(shell uname)),,--no-browser) \
		$(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/notebooks/index.ipynb

# where there is no environment yet, one with what the server needs: a tenth of the lab's
SERVER := $(if $(wildcard .venv/installed),.venv,.venv-serve)
serve: $(SERVER)/installed
	$(SERVER)/bin/labsupport serve --port $(PORT)

.venv-serve/installed: deploy/docker/server.lock
	@$(call NEW,.venv-serve)
	@$(call INSTALL,.venv-serve,$<,)
	@$(call OURSELVES,.venv-serve)
	touch $@

# npm brings it, checked against package-lock.json; what the page needs of it goes beside the page, and the rest away
TFJS := labsupport/serving/static/browser/tfjs
browser: $(TFJS)

$(TFJS): package.json package-lock.json
	@command -v npm >/dev/null || { echo "npm is needed, which comes with Node.js (nodejs.org, or apt-get install npm): then make browser"; exit 1; }
	npm ci --ignore-scripts --no-audit --no-fund
	rm -rf $(TFJS) $(TFJS).partial
	mkdir $(TFJS).partial
	cp node_modules/@tensorflow/tfjs-core/dist/tf-core.es2017.min.js \
		node_modules/@tensorflow/tfjs-backend-wasm/dist/tf-backend-wasm.es2017.min.js \
		node_modules/@tensorflow/tfjs-backend-wasm/dist/*.wasm \
		node_modules/@tensorflow/tfjs-backend-webgl/dist/tf-backend-webgl.es2017.min.js $(TFJS).partial
	rm -rf node_modules
	mv $(TFJS).partial $@

# what a crash leaves, one file for each process: in which test it was, and where each thread (conftest.py)
CRASH := $(CURDIR)/.pytest_crash
# three processes, also on two cores, because many tests wait; one runs a file in order, and files that take long come first
PROCESSES := --numprocesses 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# the first time mypy reads everything; tests/conftest.py names what takes long; no quick test needs schemathesis
QUICK := not slow and not browser and not system and not cluster
check: weights
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m pytest -p no:schemathesis --numprocesses 3 --dist loadfile --quiet -m "$(QUICK)" tests

# without npm the page's tests are skipped, unless LAB_REQUIRE_BROWSER asks for them
test: weights .venv-oracle/installed $(if $(shell command -v npm),browser)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@rm -f $(CRASH)*; status=0; LAB_CRASH=$(CRASH) $(BIN)/python -m pytest $(PROCESSES) $(ARGS) || status=$$?; \
		for crash in $(CRASH)*; do [ ! -s $$crash ] || { \
			echo "these tests did not come to their end:"; cat $$crash; [ $$status != 0 ] || status=1; }; done; \
		rm -f $(CRASH)*; exit $$status

# make test opens only the first three there, and runs the others without a browser
lessons: weights $(if $(shell command -v npm),browser)
	LAB_EVERY_LESSON=1 LAB_REQUIRE_BROWSER=1 $(BIN)/python -m pytest -k the_lessons_in_jupyterlab tests/test_browser.py

# the standard library draws them
figures:
	$(PYTHON) docs/figures/pictures.py

bench: weights .venv-bench/installed .venv-oracle/installed
	$(BIN)/python -m benchmarks.bench $(ARGS)

# what the server is measured beside, in an environment of its own: several hundred megabytes that nobody else needs
.venv-bench/installed: requirements-bench.lock | .venv/installed
	$(PYTHON) -m venv --clear .venv-bench
	@$(call INSTALL,.venv-bench,requirements-bench.lock,)
	touch $@

# what the drift helpers are checked and measured beside
.venv-oracle/installed: requirements-oracle.lock | .venv/installed
	$(PYTHON) -m venv --clear .venv-oracle
	@$(call INSTALL,.venv-oracle,requirements-oracle.lock,--no-deps)
	touch $@

LOCK := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	--no-emit-index-url --upgrade --quiet
# the container takes the versions that the tests ran with
IMAGE := deploy/docker
ALIKE := --constraint requirements.lock --overrides $(IMAGE)/overrides.txt

lock: env
	$(LOCK) pyproject.toml --extra lab --extra edge --extra onnx --extra scale --extra aws --extra test --output-file requirements.lock
	$(LOCK) pyproject.toml --extra bench --output-file requirements-bench.lock
	$(LOCK) --group oracle --output-file requirements-oracle.lock
	$(LOCK) pyproject.toml $(IMAGE)/server.in $(ALIKE) --output-file $(IMAGE)/server.lock

clean:
	rm -rf .venv .venv-bench .venv-oracle .venv-serve *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache node_modules $(TFJS)
	find images_with_boxes images_uploaded -type f ! -name .gitignore -delete
