# The only entry: `make` lists the targets. It needs Python 3.11+ and make; everything else it sets up itself.
# Each environment holds a stamp, so a second call installs nothing.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
ARGS ?=
# Test processes. Much of the suite waits for servers, so one more than the two cores that CI has.
WORKERS ?= 3

DEV := .venv
EXTRA ?= serve
SERVE := .venv-$(EXTRA)

export UV_SYSTEM_CERTS := 1
export UV_HTTP_TIMEOUT := 180
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where it is set, every process compiles all that it imports: half of the 13 s that training needs to start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help serve shell test test-long test-batch test-serve lint format bench pins proof docs

help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(SERVE)/.installed ## install the server (no torch) and serve the embedded model; HOST=, PORT=, EXTRA=serve-gpu, ARGS="--help"
	$(SERVE)/bin/clipworks serve --host $(HOST) --port $(PORT) $(ARGS)

shell: $(SERVE)/.installed ## a shell in which `clipworks` and `python` are those of `make serve`
	@echo "clipworks is $(CURDIR)/$(SERVE)/bin/clipworks; leave this shell with exit"
	@PATH="$(CURDIR)/$(SERVE)/bin:$$PATH" $${SHELL:-/bin/sh}

test: $(DEV)/.installed ## run the tests; ARGS="-m 'not slow'" or ARGS=tests/model_store for a part
	$(DEV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not long" $(ARGS)

test-long: $(DEV)/.installed ## run the tests that `make test` leaves out: methods served, studies at toy size; some ten minutes
	$(DEV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m long $(ARGS)

# The packages that the server installs, and one server: not every test again. What needs torch carries the marker.
TORCH_FREE := $(wildcard tests/model_store/test_*.py) tests/model_store/hub/test_without_torch.py \
	tests/service/http/test_http.py tests/service/http/test_server.py \
	$(addprefix tests/clipworks/test_,cli.py cli_label_sets.py cli_search.py client.py entry_points.py retries.py)
BARE = .venv-test-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

test-serve: ## run tests beside what the server installs, without torch; PYTHON=python3.13 for another Python
	$(MAKE) --no-print-directory EXTRA=test SERVE=$(BARE) $(BARE)/.installed
	$(BARE)/bin/python -c 'import importlib.util as found; assert not found.find_spec("torch"), "torch is installed"'
	$(BARE)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not torch" $(TORCH_FREE) $(ARGS)

test-batch: ## run the recipes of docs/batch.md (Ray, Dask) and the adapters beside the libraries that they are for
	$(MAKE) --no-print-directory EXTRA=test-batch SERVE=.venv-test-batch .venv-test-batch/.installed
	.venv-test-batch/bin/python -m pytest -m "not torch" tests/batch tests/clipworks/integrations tests/clipworks/test_batch.py $(ARGS)

lint: $(DEV)/.installed ## style, import rules, types, Dockerfile
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/lint-imports
	$(DEV)/bin/pyright
	$(DEV)/bin/hadolint Dockerfile

format: $(DEV)/.installed ## sort imports, apply safe fixes, lay out the code
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

bench: $(DEV)/.installed ## HTTP load against a server that this starts; ARGS="--help" lists the knobs
	$(DEV)/bin/python benchmarks/http_load.py $(ARGS)

proof: $(DEV)/.installed ## write docs/proof.md anew; ARGS=build/tests.xml records the run of .ci/run first
	$(DEV)/bin/python docs/write_proof.py $(ARGS)

docs: $(DEV)/.installed ## build the site of docs/ into build/site, strictly; ARGS=--serve shows it at http://localhost:8001
	$(DEV)/bin/python docs/generator/build.py $(ARGS)

pins: $(DEV)/.installed ## write requirements/*.txt anew; ARGS=--upgrade takes newer versions
	$(call compile,requirements/build.in,build,$(ARGS))
	$(call compile,pyproject.toml,dev,--extra serve --extra train --extra parquet --extra dev $(ARGS))
	$(call compile,pyproject.toml,serve,--extra serve --extra hub -c requirements/dev.txt)
	$(call compile,pyproject.toml,serve-gpu,--extra serve-gpu --extra hub -c requirements/dev.txt)
	$(call compile,pyproject.toml,hub,--extra hub -c requirements/dev.txt)
	$(call compile,pyproject.toml,eval,--extra eval -c requirements/dev.txt)
	$(call compile,pyproject.toml,train,--extra train -c requirements/dev.txt)
	$(call compile,pyproject.toml,parquet,--extra parquet -c requirements/dev.txt)
	$(call compile,pyproject.toml,everyday,--extra everyday -c requirements/dev.txt)
	$(call compile,pyproject.toml,test,--extra serve --extra test -c requirements/dev.txt)
	$(call compile,pyproject.toml,docs,--extra serve --extra docs -c requirements/dev.txt)
	$(call compile,pyproject.toml,test-batch,--extra serve --extra test-batch -c requirements/dev.txt)
	$(call compile,pyproject.toml,milvus,--extra milvus -c requirements/dev.txt)
	$(call compile,pyproject.toml,heic,--extra heic -c requirements/dev.txt)
	$(call compile,pyproject.toml,wandb,--extra wandb -c requirements/dev.txt)
	$(call compile,pyproject.toml,otel,--extra otel -c requirements/dev.txt)

# compile,SOURCE,NAME,OPTIONS: exact versions with hashes, and neither an index address nor a path in the file.
compile = $(DEV)/bin/uv pip compile $(1) -o requirements/$(2).txt --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make pins" $(3)

$(DEV)/.installed: requirements/build.txt requirements/dev.txt pyproject.toml
	$(call install,$(DEV),requirements/dev.txt)

$(SERVE)/.installed: requirements/build.txt requirements/$(EXTRA).txt pyproject.toml
	$(call install,$(SERVE),requirements/$(EXTRA).txt)

# install,FOLDER,REQUIREMENTS: a virtual environment with exactly the pinned files, then this checkout, editable.
# uv is fast but does not read pip's configuration (mirrors, certificates); where it fails, pip installs the same hashes.
define install
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("clipworks needs Python 3.11 or newer, $(PYTHON) is %d.%d; name another one: make PYTHON=python3.12" % v[:2])'
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip --version >/dev/null 2>&1 || $(1)/bin/python -m ensurepip
	$(1)/bin/python -m pip install --quiet --require-hashes -r requirements/build.txt
	$(1)/bin/uv pip install --python $(1)/bin/python --require-hashes -r $(2) \
		|| $(1)/bin/python -m pip install --require-hashes -r $(2)
	$(1)/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@
endef
