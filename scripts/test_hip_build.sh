#!/usr/bin/env bash
# Compiles the kernels of the ROCm backend as `cmake --preset hip-check` does, for gfx906 and gfx90a, and checks what the compiler says
# of each: waves of 64 lanes, nothing spilled, registers and shared memory within what a block may have. Then links the library, which
# has to say for itself whether there is a device, and which of those that a stand-in for HIP has it can use.
#   scripts/test_hip_build.sh [jobs]
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v hipcc >/dev/null; then
  packages=$(grep -v '^#' requirements/hip.txt)
  if [ "$(id -u)" -ne 0 ]; then
    echo "test_hip_build: hipcc is missing and installing it needs root: apt-get install $packages" >&2
    exit 1
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
fi
cmake --preset hip-check >build-hip-check.log 2>&1 || { cat build-hip-check.log; exit 1; }
cmake --build build-hip-check -j "${1:-$(nproc)}" --target kf_hip_kernels
python3 scripts/hip_kernels.py build-hip-check/hip
cmake --build build-hip-check -j "${1:-$(nproc)}" --target kf_info
build-hip-check/kf_info | grep '^rocm'

stand_in=build-hip-check/stand_in
mkdir -p "$stand_in"
version=$(sed -nE 's/#define HIP_VERSION_MAJOR +([0-9]+)/\1/p' "$(grep -o 'KF_HIP_INCLUDE:PATH=.*' build-hip-check/CMakeCache.txt | cut -d= -f2)/hip/hip_version.h")
g++ -std=c++20 -shared -fPIC -D__HIP_PLATFORM_AMD__ tests/stand_ins/hip.cpp -o "$stand_in/libamdhip64.so.$version"
# What the library says of devices.
expect() {
  local said
  said=$(STAND_IN_HIP=$1 KF_LIBRARY_PATH=$stand_in build-hip-check/kf_info | grep '^rocm')
  if [[ $said != *"$2"* ]]; then
    printf 'test_hip_build: of devices "%s"\n  expected %s\n  got %s\n' "$1" "$2" "$said" >&2
    exit 1
  fi
}
expect "" "no usable DCU or AMD GPU: no device (stand-in)"
expect gfx906:sramecc+:xnack-/64 "stand-in, 60 compute units"
expect gfx90a:sramecc+:xnack-/64 "stand-in, 60 compute units"
expect gfx1030/32 "kernels are compiled for gfx906, gfx90a; there are gfx1030; build with KF_HIP_ARCHITECTURES"
expect gfx942:sramecc+:xnack-/64,gfx1030/32 "there are gfx942, gfx1030"
echo "devices of a stand-in for HIP: as expected"
