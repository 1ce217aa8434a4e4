# Every target sets up what it needs, once. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Nobody's usage is reported to anybody; GNU make hands this to every tool.
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export ORT_DISABLE_TELEMETRY := 1
# Where torch comes from: a folder of wheels if PIP_FIND_LINKS names one, else PyTorch's own index: auto finds a GPU, cpu is small.
TORCH ?= auto
WHEELS := $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)",--torch-backend $(TORCH))
UV_VERSION := 0.13.8

.PHONY: help setup repro serve up down traffic retrainer rollout rollback drill rules demo test lint bench bench-serving bench-drift bench-rollout data-add mlflow lock clean
.PHONY: image

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-13s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/ready ## install everything into .venv (15 s to 3 min, once)

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Loopline needs Python 3.11 or newer: make setup PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode $(WHEELS) -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

repro: setup ## data to three released bundles: what is up to date is left alone (5 min)
	dvc repro

serve: setup ## the bundles on http://127.0.0.1:8080 (PORT=...)
	loopline serve models/*/bundle --port $${PORT:-8080}

up: setup ## servers, sentinel, Prometheus and Alertmanager on the loopback (ARGS="--window 5m --scrape 1")
	loopline up $(ARGS)

retrainer: setup ## take drift alerts and retrain (docs/retraining.md; LOOPLINE_RETRAINER_TOKEN is set)
	loopline retrainer $(ARGS)

down: setup ## end what `make up` started
	loopline down

rollout: setup ## a challenger takes the champion's place, or not: make rollout MODEL=text BUNDLE=folder (after make up ARGS=--gateway)
	@test -n "$(MODEL)" -a -n "$(BUNDLE)" || { echo "usage: make rollout MODEL=classifier BUNDLE=path/to/bundle [ARGS=...]"; exit 2; }
	loopline rollout start "$(MODEL)" --bundle "$(BUNDLE)" --wait $(ARGS)

rollback: setup ## the champion before this one serves again, in seconds, at any time: make rollback MODEL=text
	@test -n "$(MODEL)" || { echo "usage: make rollback MODEL=classifier"; exit 2; }
	loopline rollout rollback "$(MODEL)" $(ARGS)

traffic: setup ## replay test samples to what is up (PROFILE=clean|prior|other-domain|noisy|blur|dark|... RATE=20 SECONDS=60 MODEL=...)
	loopline traffic $(MODEL) --profile $(or $(PROFILE),clean) --rate $(or $(RATE),20) --seconds $(or $(SECONDS),60) $(ARGS)

drill: setup ## play the whole loop with real parts: drift, labels, retraining, canary, rollback (6 min; ARGS=--fast: 3 min)
	@for tool in haproxy prometheus; do command -v $$tool >/dev/null || { echo "the drill needs $$tool: apt-get install haproxy prometheus prometheus-alertmanager"; exit 1; }; done
	loopline drill $(ARGS)

rules: setup ## write monitoring/prometheus/rules.yml anew
	loopline rules

ASSETS := src/loopline/serving/pages/assets
demo: $(ASSETS)/ready ## let the demo page run models in the browser: onnxruntime-web from npm (4 MB, once)

$(ASSETS)/ready: src/loopline/serving/pages/package-lock.json
	mkdir -p .loopline/npm $(ASSETS)
	cp src/loopline/serving/pages/package*.json .loopline/npm
	npm ci --prefix .loopline/npm --ignore-scripts --no-audit --no-fund
	cp .loopline/npm/node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs $(ASSETS)
	gzip -9 --no-name --stdout .loopline/npm/node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm > $(ASSETS)/ort-wasm-simd-threaded.wasm.gz
	rm -rf .loopline/npm
	@touch $@

test: setup ## the tests
	pytest --numprocesses auto --dist loadfile $(ARGS)

lint: setup ## style, strict types, import rules
	ruff check .
	ruff format --check .
	mypy
	mypy serving/*.py
	hadolint serving/Dockerfile*
	lint-imports

image: setup $(if $(filter 0,$(DEMO)),,demo) ## the server's container image (BUNDLES="models/*/bundle" TARGET=gpu DEMO=0 BASE=...@sha256:...)
	python serving/image.py $(if $(TAG),--tag $(TAG)) $(if $(TARGET),--target $(TARGET)) $(if $(BASE),--base $(BASE)) \
		$(if $(filter 0,$(DEMO)),--no-demo) $(if $(BUNDLES),--bundles $(BUNDLES))

bench: setup ## speed of what is worth being fast, side by side
	python -m benchmarks

bench-serving: setup .venv-peers/ready ## our server beside others, with wrk: 12 min, writes docs/benchmarks.md (ARGS=--quick: 2 min)
	@command -v wrk >/dev/null || { echo "wrk makes the load: apt-get install wrk, or your system's package of it"; exit 1; }
	python -m benchmarks.serving $(ARGS)

.venv-peers/ready: benchmarks/serving/requirements.lock | setup
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	$(BIN)/uv pip install --quiet --python .venv-peers/bin/python --compile-bytecode -r $<
	@touch $@

bench-drift: setup .venv-drift/ready ## our drift alarm beside others: 15 min, writes docs/drift-benchmark.md (ARGS=--quick: 2 min)
	OMP_NUM_THREADS=1 PYTHONPATH=src:. .venv-drift/bin/python -m benchmarks.drift $(ARGS)

bench-rollout: setup ## how often a rollout is right, by its number of requests: 1 min, writes docs/rollout-benchmark.md (ARGS=--quick)
	OMP_NUM_THREADS=1 PYTHONPATH=src:. python -m benchmarks.rollout $(ARGS)

.venv-drift/ready: benchmarks/drift/requirements.lock | setup
	@test -x .venv-drift/bin/python || $(PYTHON) -m venv .venv-drift
	$(BIN)/uv pip install --quiet --python .venv-drift/bin/python --compile-bytecode -r $<
	@touch $@

data-add: setup ## make a labelled batch the next dataset version: make data-add MODEL=classifier FROM=folder [REMOTE=name]
	@test -n "$(MODEL)" -a -n "$(FROM)" || { echo "usage: make data-add MODEL=classifier FROM=path/to/folder [REMOTE=name]"; exit 2; }
	loopline data add "$(MODEL)" "$(FROM)" $(if $(REMOTE),--remote "$(REMOTE)")

mlflow: setup ## the tracking page on http://127.0.0.1:5000
	mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}" --host 127.0.0.1 --port $${PORT:-5000}

# The image's own: the same versions, with hashes, without what a server never imports.
LOCK_IMAGE := $(BIN)/uv pip compile --quiet --no-header --no-annotate --no-emit-find-links --generate-hashes \
	--constraint requirements.lock --excludes serving/left-out.txt pyproject.toml --extra serve
lock: setup ## resolve requirements.lock anew from pyproject.toml
	@# the old lock is no preference: a plain torch in it would draw in the CUDA build
	rm -f requirements.lock
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --no-emit-find-links $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)",--torch-backend cpu) \
		pyproject.toml $(addprefix --extra ,train detect serve otel monitor dev) --output-file requirements.lock
	sed -i -E 's/^(torch(vision)?==[0-9.]+)\+cpu/\1/; /^--/d' requirements.lock
	$(LOCK_IMAGE) --output-file serving/requirements.lock
	$(LOCK_IMAGE) --excludes <(echo onnxruntime) --extra gpu --output-file serving/requirements-gpu.lock

.PHONY: new
new: setup ## a project of your own: make new NAME=churn [TASKS=classification,text TARGETS=compose TO=../churn ARGS=--defaults]
	@test -n "$(NAME)" || { echo "usage: make new NAME=churn [TASKS=... TARGETS=... TO=folder ARGS=--defaults]"; exit 2; }
	@test ! -e "$(or $(TO),../$(NAME))" || { echo "$(or $(TO),../$(NAME)) is there already: name another folder with TO=..."; exit 2; }
	@copier copy --quiet --trust --vcs-ref HEAD --data project="$(NAME)" $(if $(TASKS),--data tasks="[$(TASKS)]") \
		$(if $(filter undefined,$(origin TARGETS)),,--data targets="[$(TARGETS)]") $(ARGS) "git+file://$(CURDIR)" "$(or $(TO),../$(NAME))"
	@echo "$(or $(TO),../$(NAME)) is a project with a first commit: its README.md says what next"

clean: ## remove what the pipeline made, keep .venv, the data cache and MLflow's history
	rm -rf reports .loopline/work .loopline/timings .pytest_cache .mypy_cache .ruff_cache .hypothesis models/*/{train,export,quantize,pictures,calibrate,bundle}
