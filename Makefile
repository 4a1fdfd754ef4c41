# `make run` starts the broker, `make test` passes the tests; both do all the set-up.
# Needed: python3 (3.11 or newer) with venv, a current Rust (cargo), a C compiler (Debian: build-essential python3-venv).

PY := .venv/bin/python
JOBS ?= 4
# `ci` is quicker to build and a little slower to run.
PROFILE ?= release
export CARGO_TERM_COLOR ?= never
RUST_SOURCES := $(shell find engine engine-nats load binding -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock

.PHONY: run test check build test-rust test-python simulate hostile chaos chaos-cluster upgrade chaos-moves power-cluster cluster mutations bench bench-quick bench-durable profile fuzz coverage wheel clean

run: build
	.venv/bin/roost run

build: .venv/built

.venv/ready: requirements/dev.txt
	@command -v python3 >/dev/null || { echo "make: python3 (3.11 or newer) is needed: apt install python3-venv"; exit 1; }
	@command -v cargo >/dev/null || { echo "make: a current Rust is needed: install cargo 1.88 or newer"; exit 1; }
	@command -v cc >/dev/null || { echo "make: a C compiler is needed: apt install build-essential"; exit 1; }
	python3 -m venv .venv
	.venv/bin/pip install --quiet --require-hashes -r requirements/dev.txt
	touch $@

.venv/built: .venv/ready pyproject.toml $(RUST_SOURCES)
	.venv/bin/maturin develop --profile $(PROFILE)
	touch $@

check: build
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(PY) -m mypy.stubtest roostmq._engine
	$(PY) -m pytest -q tests/house
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings

# cargo's own tests and the extension module are built beside each other: neither keeps all cores busy
test:
	$(MAKE) -j2 check test-rust
	$(MAKE) test-python

test-rust:
	cargo test --workspace --quiet

test-python: build
	$(PY) -m pytest -n $(JOBS) --dist loadgroup tests

fuzz:
	ROOST_FUZZ_SECONDS=600 cargo test --release -p roostmq-engine --test fuzz --test log_reader

coverage: build
	@cargo llvm-cov --version >/dev/null 2>&1 || { rustup component add llvm-tools && cargo install --locked cargo-llvm-cov; }
	cargo llvm-cov --workspace --summary-only
	$(PY) -m pytest -n $(JOBS) --dist loadgroup --cov=roostmq --cov-report=term tests

hostile: build
	$(PY) -m pytest -q -n 2 -k hostile --timeout 900 tests/soak --hostile-seconds 600

# The policies of a cluster under simulated faults, a thousand seeds, then without each rule in turn
SEEDS ?= 1000
simulate: build
	cd tests && ../$(PY) -m policy.sim.compiled --seeds $(SEEDS)
	cd tests && ../$(PY) -m policy.sim.compiled --seeds $(SEEDS) --each

chaos: build
	cd tests && ../$(PY) -m durability.crash --kills 100
	cd tests && ../$(PY) -m durability.power --cuts 300
	ROOST_SEEDS=20000 cargo test --release -p roostmq-engine --test power_cut

# From the release before (its tag; or make upgrade FROM=COMMIT) to this and back, under load
upgrade: build
	cd tests && ../$(PY) -m cluster.upgrade $(if $(FROM),--from $(FROM))

# A cluster under everything that can fail, for half an hour, with a report: make chaos-cluster SEED=3 CHAOS_S=3600
SEED ?= 1
CHAOS_S ?= 1800
chaos-cluster: build
	cd tests && ../$(PY) -m cluster.chaos --seconds $(CHAOS_S) --servers 3 --rate 80 --seed $(SEED) \
		--faults "kill,hang,server,machine,all servers,blackout,grow,drain,restart,split,cut pair,cut way,cut off,slow,full" --report ../target/chaos-$(SEED).txt

# A node dies at each step of a planned move and of a cut, one after another.
chaos-moves: build
	cd tests && ../$(PY) -m cluster.chaos --steps --servers 3 --rate 150 --seed $(SEED)

# The power goes for everything, and what NATS had not synced is gone with it (needs strace).
power-cluster: build
	cd tests && ../$(PY) -m cluster.chaos --seconds 300 --servers 3 --rate 100 --seed $(SEED) --faults power

cluster: build
	.venv/bin/roost dev --nodes 3

mutations:
	python3 tests/durability/mutations.py
	python3 tests/cluster/log_mutations.py

bench-durable: build
	$(PY) bench/durable.py --write
	$(PY) bench/pause.py --write

# Beside the floor and the peers that can be had: MOSQUITTO_SRC and FLASHMQ_SRC name builds of two of them.
bench: build bench-durable
	cargo build --quiet --release -p roostmq-null
	$(PY) bench/run.py --write

bench-quick: build
	cargo build --quiet --release -p roostmq-null
	$(PY) bench/run.py --quick

# Where the time of the broker goes under a named work: make profile WORK=qos0 (or qos1, qos2, fan-in, fan-out, alone).
WORK ?= qos0
profile: build
	$(PY) bench/profile_broker.py $(WORK)

wheel:
	.venv/bin/maturin build --release --out dist

clean:
	rm -rf .venv target dist
