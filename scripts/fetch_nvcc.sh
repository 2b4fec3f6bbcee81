#!/usr/bin/env bash
# Puts NVIDIA's CUDA 13.0 compiler, and the disassembler that a test uses, as pinned PyPI wheels, into the git-ignored .cuda/ beside this repository's Cargo.toml.
# Does nothing when an nvcc is already at hand. Needs python3 with venv and the package index; no GPU, no driver, no root.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
target="$root/.cuda"

has_nvcc() {
    [ -n "${NVCC:-}" ] && [ -x "$NVCC" ] && return 0
    for home in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda; do
        [ -n "$home" ] && [ -x "$home/bin/nvcc" ] && return 0
    done
    [ -x "$target/bin/nvcc" ] && [ -x "$target/bin/nvdisasm" ] && return 0
    command -v nvcc >/dev/null 2>&1
}

if has_nvcc; then
    exit 0
fi

echo "graftwork: no nvcc found, fetching the CUDA 13.0 compiler wheels into .cuda/ (about 200 MB, once)"
staging="$root/.cuda.partial"
rm -rf "$staging"
python3 -m venv "$staging/venv"
"$staging/venv/bin/pip" install --quiet --disable-pip-version-check \
    "nvidia-cuda-nvcc==13.0.88" "nvidia-nvvm==13.0.88" "nvidia-cuda-crt==13.0.88" \
    "nvidia-cuda-runtime==13.0.96" "nvidia-cuda-cccl==13.0.85" "nvidia-cuda-nvdisasm==13.5.37"
toolkit=$(echo "$staging"/venv/lib/python3.*/site-packages/nvidia/cu13)
[ -x "$toolkit/bin/nvcc" ] || { echo "graftwork: the wheels hold no nvcc at $toolkit/bin/nvcc" >&2; exit 1; }
rm -rf "$target"
mv "$toolkit" "$target"
rm -rf "$staging"
"$target/bin/nvcc" --version | tail -n 2
# build.rs watches this file: watching a .cuda that is not there would rebuild the crate every time.
touch "$root/scripts/fetch_nvcc.sh"
