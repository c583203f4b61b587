#!/usr/bin/env bash
# Prints the nvcc to build the CUDA backend with: that of $CUDACXX or PATH, else NVIDIA's wheels, which it installs into .venv
# (requirements/cuda.txt; the runtime and cuBLAS's headers are among requirements/test.txt). With --least, wheels are installed
# only where there is no nvcc: cuDNN's row is then left out.
set -euo pipefail
cd "$(dirname "$0")/.."

nvcc=${CUDACXX:-$(command -v nvcc || true)}
if [ -n "$nvcc" ] && [ "${1:-}" = --least ]; then
  echo "$nvcc"
  exit
fi
scripts/setup.sh requirements/test.txt requirements/cuda.txt >&2
if [ -n "$nvcc" ]; then
  echo "$nvcc"
  exit
fi
toolkit=$(echo .venv/lib/python*/site-packages/nvidia/cu13)
ln -sfn lib "$toolkit/lib64"  # where nvcc looks
ln -sfn libcudart.so.13 "$toolkit/lib/libcudart.so"  # without which CMake finds no toolkit
echo "$PWD/$toolkit/bin/nvcc"
