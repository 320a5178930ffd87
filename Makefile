# Every way in. `make help` lists them. Each target sets up what it needs in .venv, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt
# The two builds of onnxruntime exclude each other: one machine, one choice.
RUNTIME := $(shell nvidia-smi --list-gpus >/dev/null 2>&1 && echo gpu || echo cpu)
# The oldest grpcio of the range that service/completion_queue.py states, in an environment of its own.
OLDEST := .venv-oldest
OLDEST_GRPCIO := 1.81.1
# How many files of tests run at the same time.
JOBS ?= 2
PYTHON_FILES := service training client/hourglass client/hourglass_command benchmarks deploy docs examples tests
PROTO := $(wildcard proto/autoencoder/v1/*.proto)
# Whatever builds containers here: docker only where its daemon answers.
ENGINE ?= $(shell { docker info >/dev/null 2>&1 && echo docker; } || command -v podman || command -v buildah)
DEVICE ?= cpu
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE = hourglass:$(VERSION)$(if $(filter gpu,$(DEVICE)),-gpu)
# Compiled to descriptors only: see service/inference_messages.py.
INFERENCE := inference/inference.proto inference/model_config.proto
PROJECTS := pyproject.toml client/pyproject.toml constraints.txt
# The clients in other languages that this machine has the tools for; the tests of the others skip, and say why.
NODE_CLIENT := examples/node/node_modules/ready
SHELL_CLIENT := examples/shell/node_modules/ready
GO_CLIENT := build/go/client
have = $(shell for tool in $(1); do command -v $$tool >/dev/null || exit; done; echo yes)
CLIENTS := $(if $(call have,npm),$(NODE_CLIENT) $(SHELL_CLIENT)) \
	$(if $(call have,go protoc protoc-gen-go protoc-gen-go-grpc),$(GO_CLIENT))
# The .proto files that nothing may break for clients: make buf AGAINST=v0.1.0
AGAINST ?= HEAD

.DEFAULT_GOAL := help
.PHONY: help run demo playground test test-oldest test-ecosystem check format proto buf train zoo chaos bench reproduce gpu-test image image-test docs docs-serve fuzz audit sbom clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/serve ## serve the packages in models/ (ARGS="--port 50052 ...", see ARGS=--help)
	@exec $(BIN)/python -m service --log-format human $(ARGS)

demo: $(VENV)/serve ## encode, denoise and interpolate real digits; writes build/demo.png
	@$(BIN)/python -m examples.demo $(ARGS)

playground: $(VENV)/serve ## a page to try the models on (ARGS="--address host:port", see ARGS=--help)
	@exec $(BIN)/python -m examples.playground $(ARGS)

test: $(VENV)/develop ## run all tests (ARGS="-k batcher"; JOBS=1 for one process)
	$(BIN)/pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

test-oldest: $(OLDEST)/develop ## run the tests of the transports on the oldest grpcio that the fast one takes
	$(OLDEST)/bin/pytest tests/unit/service/test_transport.py tests/unit/service/test_tokens.py tests/integration/test_stream.py $(ARGS)

test-ecosystem: $(VENV)/develop .venv-tritonclient/ready .venv-kserve/ready .venv-ray/ready $(CLIENTS) ## run the tests with Triton's and KServe's own clients, Ray, Node's, Go's and buf
	$(BIN)/pytest tests/ecosystem $(ARGS)

gpu-test: $(VENV)/develop ## run the tests that need an NVIDIA GPU
	$(BIN)/pytest tests/gpu $(ARGS)

image: ## build the container image with docker, podman or buildah (DEVICE=gpu for NVIDIA GPUs, ENGINE=... to choose)
	@test -n "$(ENGINE)" || { echo "needs docker (with its daemon), podman or buildah; none is here"; exit 1; }
	$(ENGINE) build $(if $(findstring docker,$(ENGINE)),,--format docker) --tag $(IMAGE) --build-arg DEVICE=$(DEVICE) \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) $(ARGS) .

image-test: $(VENV)/develop ## build and run the image without an engine (root, buildah podman runc debootstrap; ARGS="--device gpu")
	$(BIN)/python deploy/image_test.py $(ARGS)

check: $(VENV)/develop ## what CI checks beside the tests: format, lint, types, stubs
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/mypy
	@rm -rf build/proto && mkdir -p build/proto
	@$(call generate,build/proto,build/proto)
	@cmp build/proto/inference_protocol.binpb service/inference_protocol.binpb || \
		{ echo "service/inference_protocol.binpb is out of date: run make proto"; exit 1; }
	@for stub in $$(cd build/proto && find autoencoder -type f); do \
		cmp "build/proto/$$stub" "proto/$$stub" || { echo "proto/$$stub is out of date: run make proto"; exit 1; }; \
	done

format: $(VENV)/develop ## format the code and sort the imports
	$(BIN)/ruff check --fix $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)

proto: $(VENV)/develop ## generate the stubs from the .proto files
	$(call generate,proto,service)

buf: $(SHELL_CLIENT) ## check the .proto files: their style, and that clients of AGAINST (a commit; HEAD) can go on
	examples/shell/node_modules/.bin/buf lint proto
	@mkdir -p build
	git archive --output build/proto-against.tar $(AGAINST) proto
	examples/shell/node_modules/.bin/buf breaking proto --against build/proto-against.tar#subdir=proto

train: $(VENV)/develop ## train one recipe: make train RECIPE=conv ARGS="--data digits"
	@test -n "$(RECIPE)" || { echo "which recipe? make train RECIPE=NAME, with one of:"; $(BIN)/python -m training list; exit 2; }
	$(BIN)/python -m training train $(RECIPE) $(ARGS)

zoo: $(VENV)/develop ## train, export and report all recipes into models/
	$(BIN)/python -m training zoo $(ARGS)

chaos: $(VENV)/develop ## break things under load, for a long time (ARGS="reloads overload --json FILE", --short, --help)
	@$(BIN)/python -m tests.chaos $(ARGS)

fuzz: $(VENV)/develop ## look for requests and files that break the service (ARGS="TARGET --seconds 3600", --help)
	@$(BIN)/python -m tests.fuzz $(ARGS)

audit: $(VENV)/develop .venv-audit/ready ## what is installed: known vulnerabilities (needs a network), licences (ARGS="--only licences", --help)
	@$(BIN)/python -m deploy.audit $(ARGS)

sbom: .venv-audit/ready ## what serving and calling are made of, in CycloneDX: build/hourglass.cdx.json, build/hourglass-client.cdx.json
	$(call inventory,hourglass,./client .[$(RUNTIME)],pyproject.toml)
	$(call inventory,hourglass-client,./client,client/pyproject.toml)

bench: $(VENV)/develop ## measure the service beside its limits and peers (needs h2load: apt-get install nghttp2-client)
	$(BIN)/python -m benchmarks.serving $(ARGS)

reproduce: $(VENV)/develop ## write docs/reproduction.md; first run what is named (ARGS="rifai-cae --seeds 0 1", ARGS=all: many hours)
	@test -z '$(ARGS)' || $(BIN)/python -m benchmarks.reproduction run $(ARGS)
	$(BIN)/python -m benchmarks.reproduction table

docs: $(VENV)/develop ## write the documentation's site into build/site
	@$(BIN)/python -m docs.site $(ARGS)

docs-serve: docs ## and serve it on http://127.0.0.1:8000/
	@exec $(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site 8000

clean: ## remove the environment and caches; what was trained (runs/, .data/, models/) stays
	rm -rf $(VENV) $(OLDEST) .venv-audit .venv-tritonclient .venv-kserve .venv-ray examples/*/node_modules build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(1): a name; $(2): what is installed for it, in an environment without pip; $(3): whose name and version it bears.
define inventory
@rm -rf build/inventory && mkdir -p build && $(PYTHON) -m venv --without-pip build/inventory
@.venv-audit/bin/pip --python build/inventory/bin/python install --quiet --constraint constraints.txt $(2)
@.venv-audit/bin/cyclonedx-py environment build/inventory/bin/python --pyproject $(3) --mc-type application \
	--output-reproducible --output-format JSON --output-file build/$(1).cdx.json
@build/inventory/bin/python deploy/inventory.py build/$(1).cdx.json
@rm -rf build/inventory && echo "wrote build/$(1).cdx.json"
endef

define generate
$(BIN)/python -m grpc_tools.protoc -I proto --python_out=$(1) --pyi_out=$(1) $(PROTO) && \
$(BIN)/python -m grpc_tools.protoc -I proto --grpc_python_out=$(1) proto/autoencoder/v1/autoencoder.proto proto/autoencoder/v1/admin.proto && \
$(BIN)/python -m grpc_tools.protoc -I proto --include_imports --descriptor_set_out=$(2)/inference_protocol.binpb $(INFERENCE)
endef

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Hourglass needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Without torch: what it takes to serve and to call.
$(VENV)/serve: $(PROJECTS) | $(BIN)/python
	@echo "installing the service ($(RUNTIME)) into $(VENV), once"
	@$(PIP) --editable './client[cli]' --editable '.[$(RUNTIME)]'
	@touch $@

# Everything: to train, to test, to change.
$(VENV)/develop: $(PROJECTS) | $(BIN)/python
	@echo "installing the service ($(RUNTIME)), training and the developers' tools into $(VENV), once"
	@$(PIP) --editable './client[batch]' --editable '.[$(RUNTIME),training,data,dev]'
	@touch $@ $(VENV)/serve

$(OLDEST)/develop: $(PROJECTS)
	@echo "installing the service with grpcio $(OLDEST_GRPCIO) into $(OLDEST), once"
	$(PYTHON) -m venv $(OLDEST)
	@mkdir -p build
	@sed 's/^grpcio==.*/grpcio==$(OLDEST_GRPCIO)/' constraints.txt > build/constraints-oldest.txt
	@$(OLDEST)/bin/pip install --quiet --constraint build/constraints-oldest.txt --editable './client[batch]' --editable '.[cpu,dev]'
	@touch $@

.venv-audit/ready: $(PROJECTS)
	@echo "installing what audits into .venv-audit, once"
	$(PYTHON) -m venv .venv-audit
	@sed -n 's/^audit = \[\(.*\)\]$$/\1/p' pyproject.toml | tr -d '",' | tr ' ' '\n' > .venv-audit/requirements.txt
	@.venv-audit/bin/pip install --quiet --constraint constraints.txt --requirement .venv-audit/requirements.txt
	@touch $@

.venv-%/ready: tests/ecosystem/%.txt
	@echo "installing $* into .venv-$*, once"
	$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/pip install --quiet --requirement $<
	@touch $@

# Only what the lock file names, and no script of a package is run (.npmrc).
examples/%/node_modules/ready: examples/%/package.json examples/%/package-lock.json examples/%/.npmrc
	@echo "installing the packages of examples/$*, once"
	@cd examples/$* && npm ci --no-audit --no-fund --silent
	@touch $@

# With Debian's packages, which are sources in a GOPATH (docs/ecosystem.md). The .proto files name no Go package: M does.
GO_PACKAGE := hourglass/autoencoder/v1
GO_OPTIONS := Mautoencoder/v1/autoencoder.proto=$(GO_PACKAGE),Mautoencoder/v1/model.proto=$(GO_PACKAGE)
$(GO_CLIENT): $(wildcard examples/go/*.go) $(PROTO)
	@mkdir -p build/go/src
	protoc -I proto --go_out=$(GO_OPTIONS):build/go/src --go-grpc_out=$(GO_OPTIONS):build/go/src \
		autoencoder/v1/autoencoder.proto autoencoder/v1/model.proto
	GO111MODULE=off GOPATH=$(CURDIR)/build/go:/usr/share/gocode go build -o $@ ./examples/go
