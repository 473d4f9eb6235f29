# The two commands of a newcomer are `make demo` and `make test`; the rest is for work on the project.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PY := .venv/bin/python
# Tests that run side by side; a process that holds torch needs 1 GiB.
WORKERS ?= 2
# Out of the source tree, but kept: an import of torch takes twice as long when all of it is compiled anew.
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/pycache
unexport PYTHONDONTWRITEBYTECODE

.PHONY: bench-foresight bench-ablation bench-operator bench-aisimulate setup-aisimulate bench-adapter bench-transfer bench-router bench-engine bench-accuracy bench-agreement bench-validation bench-planner test-gpu bench-gpu setup-gpu help setup demo demo-down quickstart test test-fast lint unit programs integration cluster e2e lock generate release drawings coverage test-long test-fuzz test-liveness test-tracing test-engines test-faults test-times test-dashboards test-rollouts test-fabric test-scaler
help:           ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup:          ## .venv with everything pinned
	@scripts/setup

demo: setup     ## a real Kubernetes, the operator, one CR, a chat answer, both pools scaling
	@$(PY) e2e/demo.py

demo-down: setup ## remove everything that demo made (the build cache stays)
	@$(PY) e2e/demo.py down

quickstart: setup ## the same resource as processes on this machine, without a cluster
	@.venv/bin/disagg local -f examples/quickstart.yaml --ask "What does os.path.join do?"

# On a new machine Kubernetes is compiled first: that takes both cores for minutes.
PROGRAMS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/disagg/e2e/programs

test: setup     ## everything: lint, types, import rules, unit, integration, end to end
	@test -d "$(PROGRAMS)" || $(MAKE) --no-print-directory cluster
	@echo "lint, unit and integration tests run while the cluster starts; each part is shown when it has ended" >&2
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target cluster lint integration unit coverage
	@$(MAKE) --no-print-directory e2e

test-fast: setup ## the quick part (six minutes of two cores)
	@$(MAKE) --no-print-directory lint
	@$(PY) -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow and not apiserver and not e2e and not long and not engines"

test-long: setup ## properties with ten times the examples, faults at every point and at any two (three minutes of two cores)
	@status=0; HYPOTHESIS_PROFILE=long $(PY) -m pytest -q -n $(WORKERS) --dist worksteal --timeout 3600 -m "(hypothesis or long) and not apiserver and not e2e and not engines" \
	    --ignore tests/serving/test_liveness.py --ignore tests/serving/test_links.py --ignore tests/serving/test_jaeger.py --deselect tests/router/test_fuzz.py::test_real_processes_are_none_the_worse_for_it --junitxml .cache/long.xml || status=$$?; \
	  $(PY) scripts/long_form.py .cache/long.xml benchmarks/results/long.md "Properties with many examples, and faults at any two points" "make test-long"; \
	  exit $$status

test-fuzz: setup ## 20,000 requests of all kinds to real processes: answers, memory, and the time of other clients (half an hour; an idle machine)
	@status=0; HYPOTHESIS_PROFILE=long $(PY) -m pytest -q -m long tests/router/test_fuzz.py -o junit_family=xunit1 --junitxml .cache/fuzz.xml || status=$$?; \
	  $(PY) scripts/long_form.py .cache/fuzz.xml benchmarks/results/fuzz.md "Fuzzing of the served API" "make test-fuzz"; \
	  exit $$status

test-liveness: setup ## how soon silent and hanging workers are noticed, and 30 minutes in which nobody may look dead (an hour, on an idle machine)
	@status=0; $(PY) -m pytest -q --timeout 3600 -m long tests/serving/test_liveness.py tests/serving/test_links.py -o junit_family=xunit1 --junitxml .cache/liveness.xml || status=$$?; \
	  $(PY) scripts/long_form.py .cache/liveness.xml benchmarks/results/liveness.md "Liveness of workers" "make test-liveness"; \
	  exit $$status

test-engines: setup ## the adapter on real vLLM engines of two versions (installs them into the user's cache: 1 GB of downloads each)
	@for version in 0.32.0 0.31.0; do $(PY) e2e/engines/vllm/install.py $$version >/dev/null; done
	@status=0; $(PY) -m pytest -q --timeout 1800 -m engines --junitxml .cache/engines.xml || status=$$?; \
	  $(PY) scripts/long_form.py .cache/engines.xml benchmarks/results/engines.md "Real vLLM engines behind adapters" "make test-engines"; \
	  exit $$status

test-faults: setup programs ## faults of the control plane at a real API server, also those that take minutes
	@status=0; $(PY) -m pytest -q --timeout 1800 -m apiserver tests/integration/test_api_faults.py tests/integration/test_kill_faults.py tests/integration/test_resource_faults.py \
	    tests/integration/test_crd_faults.py tests/integration/test_clock_faults.py tests/integration/test_prometheus_faults.py \
	    tests/integration/test_kill_drains.py tests/integration/test_restored_store.py --junitxml .cache/faults.xml || status=$$?; \
	  $(PY) scripts/long_form.py .cache/faults.xml benchmarks/results/faults.md "Faults of the control plane" "make test-faults"; \
	  exit $$status

test-times: setup programs ## how soon refusals and failures are told, what comes is seen, and a dead leader is replaced (ten minutes, on an idle machine)
	@status=0; $(PY) -m pytest -q --timeout 1800 -m apiserver tests/integration/test_promised_times.py -o junit_family=xunit1 --junitxml .cache/times.xml || status=$$?; \
	  $(PY) scripts/long_form.py .cache/times.xml benchmarks/results/times.md "What the operator does in time" "make test-times"; \
	  exit $$status

test-dashboards: setup programs ## every query of every dashboard, asked of a real Prometheus that scrapes real processes under load (five minutes)
	@$(PY) -m pytest -q --timeout 1800 -m apiserver tests/integration/test_dashboards.py

test-rollouts: setup cluster ## rollouts, canaries, drains, zero, deletion and the upgrade of 0.1.0, on a real kubelet under load (half an hour)
	@status=0; $(PY) -m pytest -q --timeout 1800 -m "e2e and long" tests/e2e/test_rollouts.py tests/e2e/test_lifecycle.py tests/e2e/test_upgrade_under_load.py --junitxml .cache/rollouts.xml || status=$$?; \
	  $(PY) scripts/long_form.py .cache/rollouts.xml benchmarks/results/rollouts.md "Rollouts and upgrades under load" "make test-rollouts"; \
	  exit $$status

test-fabric: setup cluster ## KV by NIXL between processes, network namespaces and pods, with peers that die or freeze, also under load (five minutes)
	@status=0; $(PY) -m pytest -q --timeout 900 tests/worker/nixl tests/e2e/test_nixl.py --junitxml .cache/fabric.xml || status=$$?; \
	  $(PY) scripts/long_form.py .cache/fabric.xml benchmarks/results/fabric.md "KV by NIXL" "make test-fabric"; \
	  exit $$status

test-scaler: setup cluster ## a DisaggScaler beside KEDA on real LeaderWorkerSets, whose controllers are built first (an hour; 20 minutes more to build)
	@status=0; $(PY) -m pytest -q --timeout 2400 -m "e2e and long" tests/e2e/test_scaler.py -o junit_family=xunit1 --junitxml .cache/scaler.xml || status=$$?; \
	  $(PY) scripts/long_form.py .cache/scaler.xml benchmarks/results/scaler.md "A DisaggScaler beside KEDA" "make test-scaler"; \
	  exit $$status

test-tracing: setup ## traces of real processes in a real Jaeger, which is built first (2 GB)
	@e2e/cluster build jaeger
	@$(PY) -m pytest -q --timeout 600 -m long tests/serving/test_jaeger.py

lint: setup
	@echo "--- lint"
	@.venv/bin/ruff check . && .venv/bin/ruff format --check -q . || { echo "run: .venv/bin/ruff format ."; exit 1; }
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache >/tmp/lint-imports.$$$$ || { cat /tmp/lint-imports.$$$$; exit 1; }
	@$(PY) scripts/check_house.py
	@$(PY) scripts/check_engine_names.py
	@$(PY) scripts/generate.py --check
	@$(PY) scripts/check_pure.py

unit: setup
	@echo "--- unit"
	@$(PY) -m pytest -q -n $(WORKERS) --dist worksteal -m "not apiserver and not e2e and not long and not engines"

coverage: setup ## the branches of PURE modules that their own tests run through; 95 % at least
	@echo "--- coverage"
	@$(PY) scripts/check_coverage.py

# Before the cluster's start, which holds the same lock for as long as it builds images.
programs: setup
	@e2e/cluster build etcd kube-apiserver kube-controller-manager kubectl helm kube-score prometheus containerd ctr pause

integration: setup programs
	@echo "--- integration"
	@$(PY) -m pytest -q -m "apiserver and not long" tests/operator tests/integration

cluster: setup programs
	@echo "--- cluster"
	@e2e/cluster up --images --with vllm
	@e2e/cluster monitoring

e2e: setup
	@echo "--- e2e"
	@$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "e2e and not long" tests/e2e

generate: setup ## write the files made from code: CRDs and the chart's copy, the chart's version, golden files
	@$(PY) scripts/generate.py

drawings: setup ## draw the packages' rooms and imports, of today and of release 0.1.0, into docs/house
	@for p in protocol adapter; do $(PY) scripts/draw_house.py disagg_$$p --out docs/house/$$p.svg; done
	@for p in operator worker router; do \
	  $(PY) scripts/draw_house.py disagg_$$p --out docs/house/$$p.svg; \
	  $(PY) scripts/draw_house.py disagg_$$p --wheel tests/releases/0.1.0/*.whl --out docs/house/$$p-0.1.0.svg; done

release: setup  ## wheel, chart, image archives, SBOMs and checksums of this version in dist/
	@$(PY) scripts/release.py

TRACES ?= traces
test-gpu: setup-gpu ## the kernels, graphs, the engine and KV transfer on this machine's GPU (a machine with one; not run in CI)
	@.venv-gpu/bin/python -m pytest -q tests/gpu tests/worker/backend/cuda

bench-gpu: setup-gpu ## roof lines, decode, prefill and attention of an 8B-shaped model on this machine's GPU; writes benchmarks/results/gpu.md
	@PYTHONPATH=operator:worker:. .venv-gpu/bin/python -m benchmarks.gpu

# The real CUDA libraries (3 GB) instead of the stubs of .venv.
setup-gpu:
	@test -x .venv-gpu/bin/pytest || { python3 -m venv .venv-gpu && .venv-gpu/bin/pip install -q --require-hashes -r requirements/uv.txt \
	  && .venv-gpu/bin/uv pip install -q --python .venv-gpu/bin/python --no-deps --require-hashes -r requirements/dev-cpu.txt \
	  && .venv-gpu/bin/uv pip install -q --python .venv-gpu/bin/python --no-deps --require-hashes -r requirements/worker.txt \
	  && .venv-gpu/bin/uv pip install -q --python .venv-gpu/bin/python --no-deps --no-build-isolation -e .; }

bench-autoscaling: setup ## every scaling policy on the traces in TRACES (40 minutes of one core) and the scenarios; SCENARIO=step10x: only that one
	@[ -n "$(SCENARIO)" ] || $(PY) -m benchmarks.autoscaling.run --traces $(TRACES)
	@$(PY) -m benchmarks.autoscaling.scenarios --traces $(TRACES) $(SCENARIO)

bench-ablation: setup ## each constant of the autoscaling policy halved and doubled on days that it was not tuned to (an hour of one core; resumable); CONSTANT=_KEEP: only that one
	@$(PY) -m benchmarks.ablation --traces $(TRACES) $(CONSTANT)

bench-foresight: setup ## what the autoscaling policy would cost with perfect forecasts, without holding, or with workers that start at once (resumable); TRACE=azure2023_conv: only that one
	@$(PY) -m benchmarks.autoscaling.foresight --traces $(TRACES) $(TRACE)

bench-planner: setup ## the planner against published measurements of one pool; writes benchmarks/results/planner.md (seconds)
	@$(PY) -m benchmarks.planner

bench-aisimulate: setup-aisimulate ## the planner against NVIDIA's AISimulate for 12 shapes; writes benchmarks/results/aisimulate.md (4 minutes; REFRESH=1 asks it anew)
	@PYTHONPATH=operator:worker:. .venv-aisimulate/bin/python -m benchmarks.aisimulate $(if $(REFRESH),--refresh)

# AISimulate in an environment of its own: nothing else needs it. Made anew if the lock has changed.
setup-aisimulate: setup
	@want=$$(sha256sum <requirements/aisimulate.txt); test "$$(cat .venv-aisimulate/.stamp 2>/dev/null)" = "$$want" || { \
	  rm -rf .venv-aisimulate && .venv/bin/uv venv -q --python .venv/bin/python .venv-aisimulate \
	  && .venv/bin/uv pip install -q --python .venv-aisimulate/bin/python --no-deps --require-hashes -r requirements/aisimulate.txt \
	  && echo "$$want" >.venv-aisimulate/.stamp; }

bench-validation: setup ## the simulator against the stack running here; writes benchmarks/results/validation.md
	@$(PY) -m benchmarks.validation.run all && $(PY) -m benchmarks.validation.run report

lock:           ## requirements/*.txt from pyproject.toml
	@scripts/lock

bench-adapter: setup ## what the adapter adds to a request and a token; writes benchmarks/results/adapter.md
	@$(PY) -m benchmarks.adapter

bench-operator: setup ## the operator beside a bare loop, and edits, on a real API server; writes benchmarks/results/operator.md (SIZES="100": two minutes; KEEP=FOLDER: an interrupted run goes on)
	@$(PY) -m benchmarks.operator --sizes "$(or $(SIZES),100 300 1000)" --edits $(or $(EDITS),200) $(if $(KEEP),--keep $(KEEP))

bench-transfer: setup ## the KV transfer beside two plain sockets, on links of 10 and 20 Gb/s (root); by NIXL, too (fetches it: 60 MB); what a hand-over adds, beside vLLM (installs it: 1 GB); writes benchmarks/results/transfer.md and handover.md (seven minutes)
	@$(PY) -m benchmarks.transfer
	@$(PY) -m benchmarks.transfer.handover --vllm

bench-router: setup ## the router beside nginx, in front of the same simulated workers; writes benchmarks/results/router.md (6 minutes; fetches nginx)
	@$(PY) -m benchmarks.router

bench-engine: setup ## ours beside vLLM, llama.cpp and transformers on one core (installs them: minutes; pins: benchmarks/engine/requirements)
	@$(PY) -m benchmarks.engine.run

bench-agreement: setup ## the same greedy tokens from all of them
	@$(PY) -m benchmarks.engine.agreement

bench-accuracy: setup ## what each quantisation costs on text that the bundled model has not read
	@$(PY) -m benchmarks.accuracy.quantization
