#!/usr/bin/env bash
# Compiles the kernels of the ROCm backend as `cmake --preset hip-check` does, for gfx906, and checks what the compiler says of each:
# waves of 64 lanes, nothing spilled, registers and shared memory within what a block may have. Then links the library, which has to
# say for itself whether there is a device.
#   scripts/test_hip_build.sh [jobs]
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v hipcc >/dev/null; then
  packages=$(grep -v '^#' requirements/hip.txt)
  if [ "$(id -u)" -ne 0 ]; then
    echo "test_hip_build: hipcc is missing and installing it needs root: apt-get install $packages" >&2
    exit 1
  fi
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
fi
cmake --preset hip-check >build-hip-check.log 2>&1 || { cat build-hip-check.log; exit 1; }
cmake --build build-hip-check -j "${1:-$(nproc)}" --target kf_hip_kernels
python3 scripts/hip_kernels.py build-hip-check/hip
cmake --build build-hip-check -j "${1:-$(nproc)}" --target kf_info
build-hip-check/kf_info | grep '^rocm'
