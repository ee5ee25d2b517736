# make speedrun : train a chat model from nothing, then talk to it      make help : everything else

SHELL := /bin/bash
PYTHON ?= python3
PROFILE ?= laptop
BIN := .venv/bin
RUN := PYTHON="$(PYTHON)" bash .ci/setup
HAND_WRITTEN := $(wildcard chapters solutions tests rustbpe/bench studies)
NOTEBOOKS = $(wildcard chapters/*.ipynb solutions/*.ipynb)
CALM := GOMP_SPINCOUNT=10000
ONE_THREAD := OMP_NUM_THREADS=1 MPLBACKEND=agg HF_HUB_OFFLINE=1

.PHONY: help setup speedrun test lint check rust unit notebooks smoke bench-tokenizer bench-ideas bench-training bench-inference bench-one-file load-test study-speed study-quality study-tinyworld study-contact study-capabilities study-rl pictures lock clean

help:  ## show this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | while IFS='|' read -r target text; \
	  do printf '  make %-16s %s\n' "$$target" "$$text"; done

setup:  ## create or update .venv; a second call does nothing
	@$(RUN)

speedrun: setup  ## train the chat model of PROFILE (laptop by default), report, invite to chat
	@$(BIN)/nanochat run $(PROFILE)

test: setup lint check rust unit notebooks smoke  ## everything that must pass before a change lands

lint: setup
	$(BIN)/ruff check --no-cache $(HAND_WRITTEN)
	$(BIN)/ruff format --check $(HAND_WRITTEN)

check: setup  ## generated files equal their sources; imports respect the order of chapters
	$(BIN)/course check

rust: setup  ## the Rust crate's own tests, and its lints where they are installed
	@if ! command -v cargo >/dev/null; then echo "rustbpe: no cargo here, its own tests are skipped"; exit 0; fi; \
	  cd rustbpe && cargo test --quiet --no-default-features && \
	  if cargo fmt --version >/dev/null 2>&1; then cargo fmt --check; fi && \
	  if cargo clippy --version >/dev/null 2>&1; then \
	    cargo clippy --quiet --all-targets --no-default-features -- -D warnings && \
	    PYO3_PYTHON="$(CURDIR)/$(BIN)/python" cargo clippy --quiet -- -D warnings; fi

unit: setup  ## unit, oracle, property and capstone tests
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile tests

notebooks: setup  ## run every notebook and compare its marked outputs
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile --nbval-lax --nbval-current-env -p no:cacheprovider $(NOTEBOOKS)

smoke: setup  ## the micro capstone: all stages in under a minute
	@base="$$(mktemp -d)"; trap 'rm -rf "$$base"' EXIT; \
	  NANOCHAT_BASE_DIR="$$base" $(BIN)/nanochat run micro

bench-tokenizer: setup  ## time rustbpe beside its peers; README=1 writes the tables into its README
	@$(BIN)/python rustbpe/bench/run.py $(if $(README),--readme)

bench-ideas: setup  ## take one idea at a time out of rustbpe, and write what it bought into its README
	@$(BIN)/python rustbpe/bench/ideas.py

bench-training: setup  ## time training steps beside our first ones and those of NANOCHAT_CHECKOUT; RECORD=1 keeps the table
	@$(CALM) $(BIN)/python studies/training_speed.py $(if $(RECORD),--record)

bench-inference: setup  ## time our engine beside that of NANOCHAT_CHECKOUT; RECORD=1 keeps the table (ten minutes)
	@$(CALM) $(BIN)/python studies/inference_speed.py $(if $(RECORD),--record)

bench-one-file: setup  ## compare the newest run as one HTML file, in Chromium, with our engine; RECORD=1 keeps it
	@$(BIN)/python studies/one_file.py $(if $(RECORD),--record)

load-test: setup  ## let 64 clients talk to the newest run's server for a minute
	@$(BIN)/python studies/load.py

study-speed: setup  ## take the laptop's training step apart for the chapter on speed (five minutes; measure alone)
	@$(CALM) $(BIN)/python studies/training_step.py

study-quality: setup  ## run the laptop profile the plain and the fast way, three seeds each (half an hour)
	@$(BIN)/python studies/training_quality.py

study-tinyworld: setup  ## run the laptop profile five times, each without one idea of TinyWorld (half an hour)
	@$(BIN)/python studies/tinyworld.py

study-contact: setup  ## run the laptop profile with five seeds, and without one idea of the chat stages at a time (45 minutes)
	@$(BIN)/python studies/contact.py

study-capabilities: setup  ## fine-tune the laptop run in several ways: replay, letters, identity, LoRA (an hour)
	@$(BIN)/python studies/capabilities.py

study-rl: setup  ## reinforce the laptop run with six losses, and in ways that go wrong (half an hour)
	@$(BIN)/python studies/reinforcement.py

pictures: setup  ## draw the README's pictures again
	@$(BIN)/python studies/pictures.py

lock: setup  ## pin the newest versions that pyproject.toml allows into requirements.lock
	.venv/uv/bin/uv pip compile pyproject.toml --extra test --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header -o requirements.lock

clean:  ## remove .venv, if set-up made it, and build output; your runs stay
	@if [ -e .venv/.made-by-nanochat-course ] || [ -e .venv/.installed ]; then rm -rf .venv; fi
	rm -rf rustbpe/target .pytest_cache .ruff_cache nanochat_lib.egg-info
