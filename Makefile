# `make quickstart` and `make test` do all their own set-up, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# tensorflow-datasets and tfds-nightly (which seqio-nightly asks for) own the
# same files: the last one installed is the one that is there.
TFDS := $(shell grep -i '^tensorflow-datasets==' constraints.txt)

.PHONY: install install-aot install-cuda install-hf install-lm-eval \
  install-trackers install-xm quickstart study study-fast study-context \
  study-forgetting study-t5 study-pruning arena test test-all test-aot test-cuda \
  test-hf test-lm-eval test-trackers api-pages lint format conformance clean bench-attention \
  bench-convert bench-decode bench-engine bench-forgetting bench-gpu \
  bench-report bench-saving bench-scaling bench-tasks bench-tpu bench-variants \
  fuzz torture t5x-users

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), sys.version'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[dev,wikipedia]'
	$(BIN)/pip install --quiet --disable-pip-version-check \
	  --no-deps --force-reinstall '$(TFDS)'
	touch $@

# Trains, evaluates and compares; see README.md for what to expect.
quickstart: install
	$(BIN)/python -m selective_t5x.quickstart $(ARGS)

# The claims of the papers, with verdicts: hours. docs/reproduction.md.
study: install
	$(BIN)/python -m selective_t5x.studies.reproduction $(ARGS)

# A part of them, language models of 250 steps.
study-fast: install
	$(BIN)/python -m selective_t5x.studies.reproduction --fast $(ARGS)

# Loss, memory and forgetting at contexts of 128 to 1,024. docs/forgetting.md.
study-context: install
	$(BIN)/python -m selective_t5x.studies.context $(ARGS)

# What selective models learn to forget: a page with pictures. docs/forgetting.md.
study-forgetting: install
	$(BIN)/python -m selective_t5x.studies.forgetting $(ARGS)

# T5 with and without a selective decoder, three seeds; docs/t5.md has figures.
study-t5: install
	$(BIN)/python -m selective_t5x.studies.t5_span_corruption $(ARGS)

# Memory of pruned caches, three seeds; FAST=1 for one. docs/pruning_search.md.
study-pruning: install
	$(BIN)/python -m selective_t5x.studies.pruning $(if $(FAST),--seeds=1) $(ARGS)

# Every pruning policy on trained models; FAST=1 for one seed. docs/arena.md.
arena: install
	$(BIN)/python -m selective_t5x.studies.arena $(if $(FAST),--fast) $(ARGS)

# Modules in the order of tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder \
  --durations=20

# One test of each slow family, and all others.
test: install
	$(PYTEST) -m 'not slow' tests $(ARGS)

# The slow families too: what continuous integration runs.
test-all: install
	$(PYTEST) tests $(ARGS)

# The API reference, from the docstrings: build/api/index.html.
api-pages: install
	$(BIN)/python -m tools.api_pages build/api

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# Step and decode times over the real T5X's; needs T5X on PYTHONPATH (docs/engines.md).
bench-engine: install
	$(BIN)/python benchmarks/engine.py $(ARGS)

# Time and memory of selective attention over attention written out.
bench-attention: install
	$(BIN)/python benchmarks/attention.py $(ARGS)

# Selective attention that drops what trained models forget; trains them once.
bench-forgetting: install
	$(BIN)/python benchmarks/forgetting.py $(ARGS)

# The training step of every variant of attention over the baseline's.
bench-variants: install
	$(BIN)/python benchmarks/variants.py $(ARGS)

# Weight of a page with the masking viewer, and its steps in Chromium.
bench-report: install
	$(BIN)/python -m benchmarks.report $(ARGS)

# Memory and speed of conversions from and to Hugging Face's format.
bench-convert: install
	$(BIN)/python -m benchmarks.convert $(ARGS)

# Scoring the benchmarks, and reading text.
bench-tasks: install
	$(BIN)/python benchmarks/tasks.py $(ARGS)

# Decoding with pruned caches over decoding with whole ones.
bench-decode: install
	$(BIN)/python benchmarks/decode.py $(ARGS)

# Breaks runs, starts them again, and counts what is lost. docs/survival.md.
torture: install
	$(BIN)/python -m tools.torture --faults=$(or $(FAULTS),60) $(ARGS)

# Mutated gin files, bindings, task files and budgets. docs/survival.md.
fuzz: install
	$(BIN)/python -m tools.fuzz $(ARGS)

# What saving costs a train step, and how long it takes.
bench-saving: install
	$(BIN)/python -m benchmarks.saving $(ARGS)

# Tokens a second of one process and of two, each on a core of its own.
bench-scaling: install
	$(BIN)/python -m benchmarks.scaling $(ARGS)

# The TPU compiler is in an environment of its own: where libtpu is installed,
# JAX looks for a TPU at every start.
AOT := JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 \
  $(VENV)-aot/bin

install-aot: $(VENV)-aot/.installed

$(VENV)-aot/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-aot
	$(VENV)-aot/bin/pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[dev,aot]'
	$(VENV)-aot/bin/pip install --quiet --disable-pip-version-check \
	  --no-deps --force-reinstall '$(TFDS)'
	touch $@

# What XLA:TPU makes of the kernels; no TPU is needed.
bench-tpu: install-aot
	$(AOT)/python benchmarks/tpu.py $(ARGS)

test-aot: install-aot
	$(AOT)/python -m pytest tests/attention/tpu/aot_test.py \
	  tests/costs/precompile_aot_test.py $(ARGS)

# NVIDIA's libraries are 5.5 GB: an environment of its own, which runs the
# suite on a GPU and compiles for one where there is none. docs/gpu.md.
install-cuda: $(VENV)-cuda/.installed

$(VENV)-cuda/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-cuda
	$(VENV)-cuda/bin/pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[dev,wikipedia,cuda]'
	$(VENV)-cuda/bin/pip install --quiet --disable-pip-version-check \
	  --no-deps --force-reinstall '$(TFDS)'
	touch $@

# The GPU compilers run here; no GPU is needed. Code as fast as for a real run.
CUDA := JAX_PLATFORMS=cpu JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 XLA_FLAGS= \
  JAX_ENABLE_COMPILATION_CACHE=false \
  $(VENV)-cuda/bin

# What XLA, Triton and ptxas make of the kernels and of a train step.
test-cuda: install-cuda
	$(CUDA)/python -m pytest tests/attention/gpu/compile_test.py \
	  tests/attention/gpu/hopper_compile_test.py \
	  tests/costs/precompile_cuda_test.py tests/nn/decode_cuda_test.py $(ARGS)

# Times of the kernels on a GPU; where there is none, counts alone, and why.
bench-gpu: install-cuda
	$(VENV)-cuda/bin/python -m benchmarks.gpu $(ARGS)

# PyTorch is in an environment of its own: nothing but these tests needs it.
install-hf: $(VENV)-hf/.installed

$(VENV)-hf/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-hf
	$(VENV)-hf/bin/pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[dev,hf,wikipedia]'
	$(VENV)-hf/bin/pip install --quiet --disable-pip-version-check \
	  --no-deps --force-reinstall '$(TFDS)'
	touch $@

# Conversions against transformers and PyTorch. docs/huggingface.md.
test-hf: install-hf
	$(VENV)-hf/bin/python -m pytest tests/convert $(ARGS)

# lm-evaluation-harness, with some thirty packages of its own.
install-lm-eval: $(VENV)-lm-eval/.installed

$(VENV)-lm-eval/.installed: setup.cfg pyproject.toml constraints.txt \
    constraints-lm-eval.txt
	$(PYTHON) -m venv $(VENV)-lm-eval
	$(VENV)-lm-eval/bin/pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --constraint constraints-lm-eval.txt \
	  --editable '.[dev,lm-eval,wikipedia]'
	$(VENV)-lm-eval/bin/pip install --quiet --disable-pip-version-check \
	  --no-deps --force-reinstall '$(TFDS)'
	touch $@

# A local task of the harness; tables that `datasets` writes. docs/lm_eval.md.
test-lm-eval: install-lm-eval
	$(VENV)-lm-eval/bin/python -m pytest tests/lm_eval \
	  tests/tasks/tables_test.py $(ARGS)

# Weights & Biases and trackio; the latter wants an older pillow.
install-trackers: $(VENV)-trackers/.installed

$(VENV)-trackers/.installed: setup.cfg pyproject.toml constraints.txt \
    constraints-trackers.txt
	$(PYTHON) -m venv $(VENV)-trackers
	grep -v '^pillow==' constraints.txt > $(VENV)-trackers/constraints.txt
	$(VENV)-trackers/bin/pip install --quiet --disable-pip-version-check \
	  --constraint $(VENV)-trackers/constraints.txt \
	  --constraint constraints-trackers.txt --editable '.[dev,trackers]'
	$(VENV)-trackers/bin/pip install --quiet --disable-pip-version-check \
	  --no-deps --force-reinstall '$(TFDS)'
	touch $@

# Trackers with their real packages, nothing sent. docs/trackers.md.
test-trackers: install-trackers
	$(VENV)-trackers/bin/python -m pytest tests/trackers $(ARGS)

# XManager wants an older protobuf than the suite, so it has an environment of
# its own; docs/launching.md.
install-xm: $(VENV)-xm/.installed

$(VENV)-xm/.installed: constraints-xm.txt
	$(PYTHON) -m venv $(VENV)-xm
	$(VENV)-xm/bin/pip install --quiet --disable-pip-version-check \
	  --no-deps --requirement constraints-xm.txt
	touch $@

# Packages that T5X's own tests and its users' repositories need.
USERS_PACKAGES := $(VENV)-t5x-users

$(USERS_PACKAGES)/.installed: Makefile | install
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target $(USERS_PACKAGES) aqtp==0.9.0 chex==0.1.92 toolz==1.2.0
	touch $@

# T5X's own tests against the embedded engine: make conformance T5X=<checkout>.
conformance: install $(USERS_PACKAGES)/.installed
	@test -n '$(T5X)' || { echo 'T5X is missing: make conformance T5X=<checkout of github.com/google-research/t5x>'; exit 2; }
	PYTHONPATH=$(USERS_PACKAGES):$$PYTHONPATH $(BIN)/python tools/conformance.py '$(T5X)' $(ARGS)

# Repositories of T5X's users on the embedded engine, from checkouts in a folder.
t5x-users: install $(USERS_PACKAGES)/.installed
	@test -n '$(T5X_USERS)' || { echo 'T5X_USERS is missing: make t5x-users T5X_USERS=<folder with checkouts of prompt-tuning, flaxformer, t5x_retrieval, mt3>'; exit 2; }
	PYTHONPATH=$(USERS_PACKAGES):$$PYTHONPATH $(BIN)/python -m tools.t5x_users '$(T5X_USERS)' $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-aot $(VENV)-cuda $(VENV)-hf $(VENV)-lm-eval \
	  $(VENV)-trackers $(VENV)-xm $(VENV)-t5x-users build *.egg-info .pytest_cache .ruff_cache
