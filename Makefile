# graftwork. `make demo` and `make test` do everything on a fresh machine, set-up included.

CARGO ?= cargo
JSON ?= target/demo.json
DEVICE ?=
# Devices that the tests must find; the others are ignored with a reason.
REQUIRE ?= emulated

device_flag = $(if $(DEVICE),--device $(DEVICE))
graftwork = $(CARGO) run --quiet --release --features cli --bin graftwork --

.PHONY: help demo test bench verify doc cuda gpu-suite

help:
	@echo "make demo     train LoRA and a linear probe on a frozen trunk, with real images (DEVICE=cuda for the GPU)"
	@echo "make test     every test; fetches a CUDA compiler into .cuda/ if there is none (REQUIRE=emulated,cuda on a GPU)"
	@echo "make verify   every op on a device against the CPU reference (DEVICE=...)"
	@echo "make bench    every op beside its floor (DEVICE=...), and the criterion benches"
	@echo "make doc      the documentation"
	@echo "make gpu-suite a folder in target/ that verifies, checks and measures everything on a machine with a GPU"
	@echo "make cuda     only fetch the CUDA compiler"

demo:
	$(CARGO) build --release --features cli --bin graftwork
	@rm -rf target/demo
	$(graftwork) finetune --method lora,linear-probe $(device_flag) --out target/demo --json $(JSON)

cuda:
	@scripts/fetch_nvcc.sh

test: cuda
	GRAFTWORK_REQUIRE_KERNELS=1 GRAFTWORK_REQUIRE=$(REQUIRE) $(CARGO) test --workspace --all-features
ifneq (,$(findstring cuda,$(REQUIRE)))
	GRAFTWORK_REQUIRE_KERNELS=1 $(CARGO) test --all-features --lib -- --ignored on_cuda
endif

verify:
	$(graftwork) verify $(device_flag)

bench:
	$(graftwork) bench $(device_flag)
	$(CARGO) bench

gpu-suite: cuda
	scripts/gpu_suite/build.sh

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --all-features --no-deps
