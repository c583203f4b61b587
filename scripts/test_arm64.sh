#!/usr/bin/env bash
# Cross-compiles the CPU backend for 64-bit Arm and runs its kernels (NEON) under qemu-user: every kernel that takes a case against
# the reference. Nothing is installed (scripts/arm64_sysroot.sh). Arguments: which cases, as of kf_check; else a short set: those of
# hostile values, and every 23rd of all (a prime, so that no dtype or shape is passed over).
#   scripts/test_arm64.sh --cases '^attention/'
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD/.cache/arm64

scripts/arm64_sysroot.sh "$root"
echo "== building for arm64"
# The cross linker's own libraries.
export LD_LIBRARY_PATH=$root/host/usr/lib/$(gcc -print-multiarch 2>/dev/null || echo x86_64-linux-gnu)
cmake --preset arm64 >build-arm64.log 2>&1 || { cat build-arm64.log; exit 1; }
cmake --build build-arm64 -j "${JOBS:-$(nproc)}" --target kf_check
unset LD_LIBRARY_PATH

echo "== kernels against the reference, under qemu"
# Under qemu a thread that spins while it waits keeps the one that works from working.
export OMP_WAIT_POLICY=passive
check() { "$root/host/usr/bin/qemu-aarch64-static" -L "$root/target" build-arm64/kf_check "$@"; }
if [ $# -gt 0 ]; then
  check "$@"
else
  check --cases 'hostile|nan|inf'
  check --every 23
fi
