# What a person or CI does here. `make` alone lists it.
.DEFAULT_GOAL := help
BIN := .venv/bin

.PHONY: help setup demo up test chaos soak fuzz simulate lint types fmt bench lock npu
# How long `make soak` goes on, for each of its two halves.
MINUTES ?= 60

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv as the lock says, and find or unpack nats-server
	@deploy/setup.sh

demo: setup ## turn a photograph into a video through a whole fleet: demo.mp4
	@$(BIN)/python -m deploy.demo

up: setup ## start a fleet on this machine at http://127.0.0.1:8088 and leave it running until Ctrl-C
	@$(BIN)/genfleet up

# One thread per process: a test's processes are many, and share the machine's cores.
test: export OMP_NUM_THREADS ?= 1
test: setup ## all tests that need no accelerator
	@$(BIN)/python -m pytest -m "not gpu"

chaos: setup ## 60 kills of real processes among 2,000 jobs: some three minutes, zero lost and zero double
	@$(BIN)/python -m tests.faults.chaos

soak: setup ## faults for MINUTES=60 each: a simulated fleet under fresh seeds, then real processes being killed
	@$(BIN)/python -m tests.simulation soak --minutes $(MINUTES)
	@$(BIN)/python -m tests.faults.chaos --seconds $$(($(MINUTES) * 60)) --jobs $$(($(MINUTES) * 500)) --kills $$(($(MINUTES) * 15))

# How many times as much as CI generates.
TIMES ?= 50

fuzz: setup ## generated requests for the whole API, its translators and its inputs, TIMES=50 as many as in CI
	@FUZZ_TIMES=$(TIMES) $(BIN)/python -m pytest tests/fuzz

simulate: setup ## a thousand workers and 200,000 jobs on made-up time, decided by the scheduler's own core
	@$(BIN)/python -m scheduler.simulate deploy/workloads/fleet-1000.toml

lint: setup ## style, formatting, and who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: setup ## mypy, strict
	@$(BIN)/mypy

fmt: setup ## format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: setup ## the benchmarks; they write docs/benchmarks/
	@set -e; for file in tests/bench/bench_*.py; do $(BIN)/python -m tests.bench.$$(basename $$file .py); done

lock: ## write what .venv holds into requirements.lock
	@$(BIN)/python -m pip freeze --all --exclude genfleet --exclude pip | sed -E 's/^(torch==[^+]*)\+.*/\1/' > requirements.lock

npu: setup ## fetch torch_npu's wheel and hold what is known of it against the wheel; NPU=--write writes it anew
	@$(BIN)/python -m tests.support.npu.facts $(NPU)
