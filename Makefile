# `make demo` shows it, `make test` passes the tests; both do all the set-up that they need.

SHELL := /bin/sh
PYTHON ?= python3
CARGO ?= cargo
# Seconds that each fuzz target runs in `make test`.
FUZZ_SECONDS ?= 20

.PHONY: demo test test-full check bench fuzz loom models cuda kernels operators

demo: models
	$(CARGO) build --release -p rota -p rota-bench
	./target/release/rota demo

# The published models and ONNX Runtime, pinned by hash, into ignored folders. Without pip there are the small models of
# models/tiny and the engine that is built in: fetch.py says so and exits with 3.
models:
	@$(PYTHON) models/fetch.py && $(PYTHON) models/heads.py || [ $$? -eq 3 ]

# ONNX's own cases per operator, which the cuda device is tested with.
operators:
	@$(PYTHON) models/operator_cases.py || [ $$? -eq 3 ]

# NVIDIA's compiler out of Python packages, pinned by hash, into an ignored folder; what is built afterwards has the CUDA device.
# Without pip there is none, and the build says so.
cuda: third_party/cuda/ready

third_party/cuda/ready: kernels/requirements-cuda.txt
	rm -rf third_party/cuda
	@$(PYTHON) -m pip --version > /dev/null 2>&1 || { echo "no pip for $(PYTHON): the CUDA device is left out"; exit 0; }; \
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --only-binary :all: \
	    --require-hashes --target third_party/cuda -r $< && touch $@ kernels/build.rs

# Every kernel for every architecture that we name; each is compiled once per change. Fails on spills, local arrays and warnings.
kernels: cuda
	ROTA_CUDA_ARCHS=75,80,86,89,90a,100 CARGO_TARGET_DIR=target/kernels $(CARGO) test -p rota-kernels --test resources

test: models kernels operators
	$(PYTHON) -m unittest discover -q -s models
	$(PYTHON) -m unittest discover -q -s bench/gpu
	$(CARGO) test --workspace
	$(MAKE) loom fuzz

# What takes minutes on top: the demo's models in full on the stand-in driver, each with its time; and all of the demo on its GPUs:
# beside what `test` takes, 2 minutes and 6 on 2 cores of a cloud VM (2026-11-26).
test-full: test
	$(CARGO) test --release -p rota-device --test cuda -- --ignored --nocapture
	$(CARGO) test -p rota --test demo_gpus -- --ignored --nocapture

# The rings' orderings, every interleaving.
loom:
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom $(CARGO) test -p rota-ipc --lib --release verification

# What a hostile client can send, for a bounded time.
fuzz:
	fuzz/run.sh $(FUZZ_SECONDS)

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

bench: models
	$(CARGO) build --release -p rota -p rota-bench --features rota-bench/peers
	./target/release/rota-bench ipc
	./target/release/rota-bench daemon
	./target/release/rota-bench engine
	./target/release/rota-bench prefix
