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

.PHONY: help setup repro serve up down traffic retrainer rollout deploy canary verify rollback drill rules demo test lint bench bench-serving bench-drift bench-rollout bench-capacity bench-kills data-add mlflow lock clean
.PHONY: image sbom sign whoami lint-delivery tools ci difference challenge promote retrain push pull

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

repro: setup ## data to three released bundles: what is up to date is left alone (6 min; MODEL=text: one; ARGS=--force: nothing is)
	dvc repro $(ARGS) $(if $(MODEL),package@$(MODEL))
	@loopline results $(MODEL)

serve: setup ## the bundles on http://127.0.0.1:8080 (MODEL=text: one; PORT=...)
	loopline serve models/$(or $(MODEL),*)/bundle --port $${PORT:-8080}

up: setup ## servers, sentinel, Prometheus and Alertmanager on the loopback (ARGS="--window 5m --scrape 1")
	loopline up $(ARGS)

retrainer: setup ## take drift alerts and retrain (docs/retraining.md; LOOPLINE_RETRAINER_TOKEN is set)
	loopline retrainer $(ARGS)

down: setup ## end what `make up` or `make deploy` started (TARGET=compose: the containers)
	loopline down $(if $(TARGET),--target $(TARGET))

rollout: setup ## a challenger takes the champion's place, or not: make rollout MODEL=text BUNDLE=folder (after make up ARGS=--gateway)
	@test -n "$(MODEL)" -a -n "$(BUNDLE)" || { echo "usage: make rollout MODEL=classifier BUNDLE=path/to/bundle [ARGS=...]"; exit 2; }
	loopline rollout start "$(MODEL)" --bundle "$(BUNDLE)" --wait $(ARGS)

# Where to: process, compose or kubernetes. `make image` has a TARGET of its own.
PLACE = --target $(or $(TARGET),process) $(if $(BUNDLES),--bundle $(BUNDLES)) $(if $(IMAGE),--image $(IMAGE)) \
	$(if $(OVERLAY),--overlay serving/kubernetes/overlays/$(OVERLAY))
deploy: setup ## put bundles into service (TARGET=process|compose|kubernetes BUNDLES="models/*/bundle" IMAGE=... OVERLAY=staging ARGS=--rolling)
	loopline deploy $(PLACE) $(ARGS)

canary: setup ## give a new bundle a share of the traffic: make canary BUNDLES=folder (TARGET=... ARGS=--wait: the judge decides)
	loopline canary $(PLACE) $(ARGS)

verify: setup ## is what is served what the bundles say: hash, golden answers, health (TARGET=...)
	loopline verify $(PLACE) $(ARGS)

rollback: setup ## what served before serves again, in seconds, at any time: make rollback MODEL=text (TARGET=...)
	loopline rollback $(MODEL) $(PLACE) $(ARGS)

traffic: setup ## replay test samples to what is up (PROFILE=clean|prior|other-domain|noisy|blur|dark|... RATE=20 SECONDS=60 MODEL=...)
	loopline traffic $(MODEL) --profile $(or $(PROFILE),clean) --rate $(or $(RATE),20) --seconds $(or $(SECONDS),60) $(ARGS)

drill: setup ## play the whole loop with real parts: drift, labels, retraining, canary, rollback (6 min; ARGS=--fast: 3 min)
	@for tool in haproxy prometheus; do command -v $$tool >/dev/null || { echo "the drill needs $$tool: apt-get install haproxy prometheus prometheus-alertmanager"; exit 1; }; done
	loopline drill $(ARGS)

rules: setup ## write Prometheus' rules anew, as a file and for the Prometheus operator
	loopline rules
	loopline rules --operator --out serving/kubernetes/monitoring/rules.yaml

ASSETS := src/loopline/server/pages/assets
demo: $(ASSETS)/ready ## let the demo page run models in the browser: onnxruntime-web from npm (4 MB, once)

$(ASSETS)/ready: src/loopline/server/pages/package-lock.json
	mkdir -p .loopline/npm $(ASSETS)
	cp src/loopline/server/pages/package*.json .loopline/npm
	npm ci --prefix .loopline/npm --ignore-scripts --no-audit --no-fund
	cp .loopline/npm/node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs $(ASSETS)
	gzip -9 --no-name --stdout .loopline/npm/node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm > $(ASSETS)/ort-wasm-simd-threaded.wasm.gz
	rm -rf .loopline/npm
	@touch $@

test: setup ## the tests
	env -u MAKEFLAGS -u ARGS pytest --numprocesses $(or $(WORKERS),auto) --dist loadfile --no-loadscope-reorder $(ARGS) # a make that a test calls is not given ours

.PHONY: score
score: setup ## the ML Test Score, from the report of `make test ARGS="--junitxml=.loopline/tests.xml"` (ARGS=--write)
	python scripts/ml_test_score.py $(ARGS)

lint: setup lint-delivery ## style, strict types, import rules, workflows
	ruff check .
	ruff format --check .
	mypy
	mypy serving/*.py
	lint-imports

GITHUB := .github
lint-delivery: setup ## Dockerfiles, shell scripts, workflows, and what GitHub and editors read (2 s)
	hadolint serving/Dockerfile*
	shellcheck $$(git ls-files --cached --others --exclude-standard | xargs grep -lE '^#!.*\b(ba)?sh$$')
	check-jsonschema --builtin-schema vendor.github-workflows $(GITHUB)/workflows/*.yml
	check-jsonschema --builtin-schema vendor.github-actions $(GITHUB)/actions/*/action.yml
	check-jsonschema --builtin-schema vendor.dependabot $(GITHUB)/dependabot.yml
	check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	check-jsonschema --builtin-schema vendor.compose-spec serving/compose.yaml
	zizmor --quiet --offline --pedantic --strict-collection $(GITHUB)

tools: ## programs that the tests and the drill want beside Python: Debian's packages, where they are missing
	scripts/tools

ci: ## what a clean clone must pass, all of it, the README's own commands too (40 min)
	.ci/run

difference: setup ## metrics and parameters beside another revision: BASE=origin/main make difference (reports/difference.md)
	@scripts/difference

challenge: setup ## register the bundles and weigh them against the champions, changing neither (reports/challenge.md; MODEL=...)
	@scripts/challenge $(MODEL)

promote: setup ## register the bundles; those that win against their champions take their place (MODEL=...)
	@scripts/challenge --promote $(MODEL)

retrain: setup ## the journal's labels become data, a model is trained and weighed: MODEL=text RUN=id make retrain (JOURNAL=folder or URL)
	@scripts/retrain

# LOOPLINE_DVC_REMOTE in the environment names another remote than the clone's own: s3://bucket/path, ssh://host/path, a folder.
REMOTE = $(if $(LOOPLINE_DVC_REMOTE),@dvc remote add --quiet --local --force --default shared "$$LOOPLINE_DVC_REMOTE")
push: setup ## data and models to the DVC remote (LOOPLINE_DVC_REMOTE=s3://bucket/path)
	$(REMOTE)
	dvc push

pull: setup ## data and models of this revision from the DVC remote (LOOPLINE_DVC_REMOTE=s3://bucket/path)
	$(REMOTE)
	dvc pull

image: setup $(if $(filter 0,$(DEMO)),,demo) ## the server's container image (BUNDLES="models/*/bundle" TARGET=gpu DEMO=0 BASE=...@sha256:...)
	python serving/image.py $(if $(TAG),--tag $(TAG)) $(if $(TARGET),--target $(TARGET)) $(if $(BASE),--base $(BASE)) \
		$(if $(filter 0,$(DEMO)),--no-demo) $(if $(BUNDLES),--bundles $(BUNDLES))

sbom: setup ## what is in the image, as CycloneDX for vulnerability scanners (IMAGE=loopline OUT=.loopline/sbom.cdx.json)
	python serving/sbom.py $(if $(IMAGE),--image $(IMAGE)) $(if $(LOCK),--lock $(LOCK)) $(if $(OUT),--out $(OUT))

sign: setup ## a signature beside each bundle, which servers can demand (KEY=private.pem, or KEYLESS=1; BUNDLES="models/*/bundle")
	loopline sign $(or $(BUNDLES),models/*/bundle) $(if $(KEY),--key $(KEY)) $(if $(KEYLESS),--keyless)

whoami: setup ## from a live server back to data and code, link by link (URL=http://127.0.0.1:8080 IMAGE=... ARGS=...)
	loopline whoami $(or $(URL),http://127.0.0.1:8080) $(if $(IMAGE),--image $(IMAGE)) $(ARGS)

bench: setup ## speed of what is worth being fast, side by side
	python -m benchmarks

bench-serving: setup .venv-peers/ready ## our server beside others, with wrk: 12 min, writes docs/benchmarks.md (ARGS=--quick: 2 min)
	@command -v wrk >/dev/null || { echo "wrk makes the load: apt-get install wrk, or your system's package of it"; exit 1; }
	python -m benchmarks.serving $(ARGS)

.venv-peers/ready: benchmarks/serving/requirements.lock | setup
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	$(BIN)/uv pip install --quiet --python .venv-peers/bin/python --compile-bytecode -r $<
	@touch $@

bench-drift: setup .venv-drift/ready ## our drift alarm beside others: 50 min, writes docs/drift-benchmark.md (ARGS=--quick: 2 min)
	OMP_NUM_THREADS=1 PYTHONPATH=src:. .venv-drift/bin/python -m benchmarks.drift $(ARGS)

bench-rollout: setup ## how often a rollout is right, by its number of requests: 1 min, writes docs/rollout-benchmark.md (ARGS=--quick)
	OMP_NUM_THREADS=1 PYTHONPATH=src:. python -m benchmarks.rollout $(ARGS)

bench-capacity: setup ## what `loopline plan` predicts beside what a server does: 10 min, writes docs/capacity.md
	python -m benchmarks.capacity $(wildcard models/*/bundle) --docs docs/capacity.md $(ARGS)

bench-kills: setup ## the drill ten times, with five kills at random moments in each, and what must hold afterwards (35 min)
	PYTHONPATH=src:. python -m benchmarks.kills $(ARGS)

.venv-drift/ready: benchmarks/drift/requirements.lock | setup
	@test -x .venv-drift/bin/python || $(PYTHON) -m venv .venv-drift
	$(BIN)/uv pip install --quiet --python .venv-drift/bin/python --compile-bytecode -r $<
	@touch $@

data-add: setup ## make a labelled batch the next dataset version: make data-add MODEL=classifier FROM=folder [REMOTE=name]
	@test -n "$(MODEL)" -a -n "$(FROM)" || { echo "usage: make data-add MODEL=classifier FROM=path/to/folder [REMOTE=name]"; exit 2; }
	loopline data add "$(MODEL)" "$(FROM)" $(if $(REMOTE),--remote "$(REMOTE)")

mlflow: setup ## the tracking page on http://127.0.0.1:5000
	@# One worker, and no runner of jobs: those are for evaluations of language models, and are ten processes.
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --workers 1 \
		--backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}" --host 127.0.0.1 --port $${PORT:-5000}

# The image's own: the same versions, with hashes, without what a server never imports.
LOCK_IMAGE := $(BIN)/uv pip compile --quiet --no-header --no-annotate --no-emit-find-links --generate-hashes \
	--constraint requirements.lock --excludes serving/left-out.txt pyproject.toml --extra serve
lock: setup ## resolve requirements.lock anew from pyproject.toml
	@# the old lock is no preference: a plain torch in it would draw in the CUDA build
	rm -f requirements.lock
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --no-emit-find-links $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)",--torch-backend cpu) \
		pyproject.toml $(addprefix --extra ,train detect serve otel monitor sign dev) --output-file requirements.lock
	sed -i -E 's/^(torch(vision)?==[0-9.]+)\+cpu/\1/; /^--/d' requirements.lock
	$(LOCK_IMAGE) --output-file serving/requirements.lock
	$(LOCK_IMAGE) --excludes <(echo onnxruntime) --extra gpu --output-file serving/requirements-gpu.lock

.PHONY: new
new: setup ## a project of your own: make new NAME=churn [TASKS=classification,text TARGETS=compose TO=../churn ARGS=--defaults]
	@template/new $(ARGS) # it reads NAME, TASKS, TARGETS and TO from the environment, whatever signs are in them

clean: ## remove what the pipeline made, keep .venv, the data cache and MLflow's history
	rm -rf reports .loopline/work .loopline/timings .pytest_cache .mypy_cache .ruff_cache .hypothesis models/*/{train,export,quantize,pictures,calibrate,bundle}
