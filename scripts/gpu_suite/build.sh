#!/usr/bin/env bash
# Builds everything that a machine with a GPU is to run into one folder, on a machine that needs none: the command with its kernels,
# the tests, the emulator's cross-check, the peers. There, `run.sh` needs a driver, and python3 with PyTorch for the peers; no compiler.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
suite=${1:-$root/target/gpu-suite}
cd "$root"
export GRAFTWORK_REQUIRE_KERNELS=1

# The last file that cargo's messages name as a program.
program() {
    cargo "$@" --message-format=json-render-diagnostics |
        python3 -c 'import json, sys
made = [json.loads(line).get("executable") for line in sys.stdin]
print([path for path in made if path][-1])'
}

rm -rf "$suite"
mkdir -p "$suite/bin" "$suite/peers"
cp "$(program build --release --features cli,bench-cublas --bin graftwork)" "$suite/bin/graftwork"
cp "$(program build --release -p ptx-emulator --example cross_check)" "$suite/bin/cross_check"
cp "$(program test --all-features --lib --no-run)" "$suite/bin/unit_tests"
# Line numbers of Rust code are not worth their size there; the kernels keep theirs.
strip --strip-debug "$suite"/bin/*
cp benches/peers/*.py "$suite/peers/"
cp scripts/gpu_suite/run.sh scripts/gpu_suite/report.py "$suite/"
cp -r data/digits "$suite/digits"
git describe --always --dirty >"$suite/version" 2>/dev/null || echo unknown >"$suite/version"
du -sh "$suite" | sed 's/\t/ in /'
echo "there: $(basename "$suite")/run.sh --out RESULTS"
