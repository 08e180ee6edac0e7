# Everything one does with this project. `make help` lists it.

# The first Python of a supported version.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo-output

.DEFAULT_GOAL := help

.PHONY: help
help:  ## list these targets
	@grep -hE '^[a-z][a-z0-9-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

# A stamp a lock file: set-up is done again when the lock or the project's own metadata changes.
$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.runtime: requirements.lock pyproject.toml setup.py | $(VENV)/.made
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m model.kernels.cpu.build
	touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	touch $@

.PHONY: setup
setup: $(VENV)/.runtime  ## make .venv with the locked dependencies and the command grok1

.PHONY: setup-dev
setup-dev: $(VENV)/.dev  ## the same, with what tests and checks need

.PHONY: demo
demo: setup  ## complete sample prompts with a small model; writes demo-output/
	@mkdir -p $(DEMO)
	$(BIN)/python examples/sample_prompts.py $(DEMO)/prompts.parquet
	$(BIN)/grok1 generate --checkpoint examples/demo-model --input $(DEMO)/prompts.parquet \
	  --output $(DEMO)/completions --top-p 0.9 --repetition-penalty 1.05 --max-tokens 64 \
	  --logprobs 0 --allow-errors --overwrite

.PHONY: train-demo
train-demo: setup-dev  ## train the model that the demo uses anew (half an hour)
	$(BIN)/python -m examples.training examples/demo-model

.PHONY: bench
bench: setup-dev  ## measure the engine alone and through grok1 generate (half an hour); ARGS=--quick for a look
	$(BIN)/python -m bench.throughput $(or $(ARGS),--record)

.PHONY: bench-peers
bench-peers: setup-dev  ## measure this engine beside its peers, each installed apart (hours, gigabytes)
	$(BIN)/python -m bench.peers --record

.PHONY: test
test: setup-dev  ## run the tests (minutes)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: test-all
test-all: setup-dev $(if $(shell command -v mvn),build/flink/.made) $(if $(shell command -v go),build/prism/prism)  ## run the slow tests too
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m 'slow or not slow'

# The runner and Beam's Python here should be of one version, as far as Go's proxy has it.
BEAM := $(shell sed -n 's/^apache-beam==\([0-9.]*\).*/\1/p' requirements.lock)

build/prism/prism: requirements.lock
	GOBIN=$(CURDIR)/$(@D) go install github.com/apache/beam/sdks/v2/go/cmd/prism@v$(BEAM)
	touch $@

.PHONY: prism
prism: setup-dev build/prism/prism  ## build Beam's runner Prism (Go), and run on it with workers apart
	$(BIN)/python -m pytest -m slow tests/reliability/test_distributed.py -k prism

build/flink/.made: deploy/flink/pom.xml
	rm -rf $(@D)
	mvn --batch-mode --quiet --file $< dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=$(CURDIR)/$(@D)
	touch $@

.PHONY: flink
flink: setup-dev build/flink/.made  ## fetch Flink (Maven, Java 17), and run on a cluster that loses a worker
	$(BIN)/python -m pytest -m slow tests/reliability/test_distributed.py -k flink

.PHONY: fleet
fleet: setup-dev  ## simulate what a fleet loses by the size of a chunk; records
	$(BIN)/python -m bench.fleet $(or $(ARGS),--record)

.PHONY: soak
soak: setup-dev  ## complete 200,000 mixed rows, half an hour at least, and watch what grows; records
	$(BIN)/python -m bench.soak $(or $(ARGS),--record)

# An environment of its own, of the lock file that comes first among what it is made of.
define ENVIRONMENT
$(PYTHON) -m venv $(@D)
$(@D)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
$(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
touch $@
endef

# By uv: pip takes no hashes for a package that is asked for both with and without its extra.
$(VENV)-lm-eval/.made: requirements-lm-eval.lock pyproject.toml setup.py | $(VENV)/.dev
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) $(VENV)-lm-eval
	$(BIN)/uv pip install --quiet --python $(VENV)-lm-eval/bin/python --require-hashes -r requirements-lm-eval.lock
	$(BIN)/uv pip install --quiet --python $(VENV)-lm-eval/bin/python --no-deps --no-build-isolation --editable .
	touch $@

.PHONY: test-lm-eval
test-lm-eval: $(VENV)-lm-eval/.made  ## run lm-evaluation-harness on local tasks
	$(VENV)-lm-eval/bin/python -m pytest tests/model/test_lm_eval.py tests/pipeline/test_harness.py

$(VENV)-fuzz/.made: requirements-fuzz.lock pyproject.toml setup.py
	$(ENVIRONMENT)

.PHONY: fuzz
fuzz: $(VENV)-fuzz/.made  ## search for files that harm their reader: SECONDS=600 for each kind
	$(VENV)-fuzz/bin/python -m tests.fuzz.run $(or $(SECONDS),600)

# The compilers for TPUs and GPUs, which need none of them.
$(VENV)-aot/.made: requirements-aot.lock pyproject.toml setup.py
	$(ENVIRONMENT)

.PHONY: aot
aot: $(VENV)-aot/.made  ## make .venv-aot, where grok1 fit compiles for TPUs and GPUs

.PHONY: test-aot
test-aot: aot  ## compile the full model for TPUs and GPUs (half an hour)
	$(VENV)-aot/bin/python -m pytest --no-skips -m 'slow or not slow' tests/model/test_fit.py tests/model/test_aot.py

.PHONY: dataflow
dataflow: setup-dev  ## run on Dataflow: make dataflow ARGS='--machine v5p-4 --project …'
	$(BIN)/grok1 generate --runner=DataflowRunner $(ARGS)

.PHONY: image
image: setup  ## build and push the worker image: MACHINE=v5p-4 IMAGE=…/grok1:TAG
	docker build --file deploy/Dockerfile $(shell $(BIN)/python -m pipeline.dataflow.image $(MACHINE)) --tag $(IMAGE) .
	docker push $(IMAGE)

.PHONY: template
template: setup  ## write the Flex Template: TEMPLATE=gs://…/grok1.json IMAGE=…
	$(BIN)/python -m pipeline.dataflow.template
	gcloud dataflow flex-template build $(TEMPLATE) --image=$(IMAGE) --sdk-language=PYTHON --metadata-file=deploy/metadata.json

.PHONY: run-template
run-template:  ## start a job from it: TEMPLATE=… PROJECT=… REGION=… WORKER=account PARAMETERS=input=…,output=…
	gcloud dataflow flex-template run grok1-$(shell date +%Y%m%d-%H%M%S) --template-file-gcs-location=$(TEMPLATE) --project=$(PROJECT) --region=$(REGION) $(if $(WORKER),--service-account-email=$(WORKER)) '--parameters=$(PARAMETERS)'

.PHONY: docs
docs: setup-dev  ## build the documentation's site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

.PHONY: quality
quality: setup-dev  ## measure what quantisation costs; writes docs/quantization.md
	$(BIN)/python -m bench.int4_schemes
	$(BIN)/python -m bench.quality --checkpoint tests/data/grok1-tiny --ids tests/data/grok1-tiny/exact.npz --tokens 300 --write
	$(BIN)/python -m bench.quality --checkpoint examples/demo-model --write

.PHONY: lint
lint: setup-dev  ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.PHONY: format
format: setup-dev  ## format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

COMPILE := $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate pyproject.toml

.PHONY: lock
lock: setup-dev  ## choose dependencies anew and write the lock files
	$(COMPILE) --universal --extra s3 --extra gcs --extra report --extra templates --extra constraints --extra completion -o requirements.lock
	$(COMPILE) --universal --extra s3 --extra gcs --extra report --extra templates --extra constraints --extra completion --extra dataflow --extra train --extra gguf --extra docs --extra dev -c requirements.lock -o requirements-dev.lock
	for kind in tpu gpu; do $(COMPILE) --python-platform x86_64-manylinux_2_36 --extra gcs --extra s3 --extra dataflow --extra templates --extra constraints --extra $$kind -c requirements-dev.lock -o deploy/requirements-$$kind.lock || exit 1; done
	$(COMPILE) --universal --extra lm-eval --extra dev -c requirements-dev.lock -o requirements-lm-eval.lock
	$(COMPILE) --universal --extra aot --extra dev -c requirements-dev.lock -o requirements-aot.lock
	$(COMPILE) --universal --extra fuzz --extra dev -c requirements-dev.lock -o requirements-fuzz.lock

.PHONY: clean
clean:  ## remove what these targets made
	rm -rf $(VENV) $(VENV)-* $(DEMO) site build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
