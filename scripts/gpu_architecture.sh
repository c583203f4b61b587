#!/usr/bin/env bash
# Prints what the CUDA kernels are compiled for where they are for this machine's first GPU alone (KF_CUDA_ARCHITECTURES);
# fails where there is no GPU of NVIDIA's, or an older one than the kernels are for.
set -euo pipefail
version=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
[[ "$version" =~ ^[0-9]+$ ]] && [ "$version" -ge 80 ]
case $version in
  90) echo 90a-real ;;  # with the instructions that are Hopper's own
  *) echo "$version-real" ;;
esac
