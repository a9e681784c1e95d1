# The one list of verbs, for people and for CI.
PY := .venv/bin/python
.PHONY: conformance cluster cluster-down test-k8s help setup gen fmt lint type test test-unit test-root demo bench images images-lock clean

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup:           ## install what is needed; leaves .venv/bin/ambit
	@scripts/setup.sh

gen:             ## regenerate mesh/pb from its .proto files
	$(PY) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. mesh/pb/*.proto
	$(PY) -m grpc_tools.protoc -I. --grpc_python_out=. mesh/pb/citadel.proto mesh/pb/cri.proto

fmt:             ## format
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix -q .

lint: setup      ## ruff, mypy strict, import-linter
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-cache
	$(PY) scripts/check_sizes.py

test-unit: setup ## everything that needs no root
	$(PY) -m pytest tests -m "not root and not k8s" -q -n 2

test-root: setup ## everything in namespaces, with root
	$(PY) -m pytest tests -m "root and not k8s" -q -n 2 --dist loadfile

test: setup      ## lint, unit and root tests
	$(MAKE) --no-print-directory lint test-unit test-root

cluster: setup   ## a real two-node Kubernetes cluster to try things in (make cluster-down)
	@scripts/setup-k8s.sh
	@$(PY) -m tests.k8s.cluster up

cluster-down:    ## remove it
	@$(PY) -m tests.k8s.cluster down

# The first compares the whole machine, the second has a cluster of its own.
ALONE = tests/k8s/test_cluster_life.py tests/k8s/test_ipv6_only.py
test-k8s: setup  ## everything against real Kubernetes, with root
	@scripts/setup-k8s.sh
	@$(PY) -m tests.k8s.cluster build
	$(PY) -m pytest $(ALONE) -m k8s -q
	$(PY) -m pytest tests/k8s -m k8s -q -n 2 --dist loadfile --no-loadscope-reorder --durations=20 \
		$(ALONE:%=--ignore %)

conformance: setup ## the Gateway API's mesh conformance suite; its report goes to docs/conformance
	@scripts/setup-k8s.sh
	@$(PY) -m tests.k8s.conformance

demo: setup      ## a mesh you can watch work (KEEP=1 leaves it up)
	@.venv/bin/ambit demo $(if $(KEEP),--keep)

bench: setup     ## all rows of the benchmark; writes bench/results.json
	$(PY) -m bench all

images: setup    ## container images and their bills of materials, into dist/images (HUB=, TAG=)
	@$(PY) -m deploy.images build $(if $(HUB),--hub $(HUB)) $(if $(TAG),--tag $(TAG))

images-lock: setup ## pin the newest packages for the images
	@$(PY) -m deploy.images lock

clean:           ## remove labs and build products
	-.venv/bin/ambit lab down --all
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache
