#!/usr/bin/env bash
# Cross-compiles the CPU backend for 64-bit Arm and runs its kernels under qemu-user, by NEON, and then with SVE where they have it
# (vectors of 256 and 512 bits): every kernel that takes a case against the reference. Nothing is installed
# (scripts/arm64_sysroot.sh). Arguments: which cases, as of kf_check; else a short set: those of hostile values, and every 23rd of
# all (a prime, so that no dtype or shape is passed over); with SVE fewer, of the ops that have kernels of it.
#   scripts/test_arm64.sh --cases '^attention/'
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD/.cache/arm64

scripts/arm64_sysroot.sh "$root"
# $1: the preset, which is what its folder is called by.
build() {
  # The cross linker's own libraries.
  export LD_LIBRARY_PATH=$root/host/usr/lib/$(gcc -print-multiarch 2>/dev/null || echo x86_64-linux-gnu)
  cmake --preset "$1" >"build-$1.log" 2>&1 || { cat "build-$1.log"; exit 1; }
  cmake --build "build-$1" -j "${JOBS:-$(nproc)}" --target kf_check
  unset LD_LIBRARY_PATH
}
echo "== building for arm64"
build arm64
build arm64-sve

# Under qemu a thread that spins while it waits keeps the one that works from working.
export OMP_WAIT_POLICY=passive
# $1: the preset, $2: the processor.
check() { "$root/host/usr/bin/qemu-aarch64-static" -cpu "$2" -L "$root/target" "build-$1/kf_check" "${@:3}"; }
with_sve() {
  for bytes in 32 64; do check arm64-sve "max,sve-default-vector-length=$bytes" "$@"; done
}
if [ $# -gt 0 ]; then
  echo "== kernels against the reference, under qemu: NEON"
  check arm64 max "$@"
  echo "== SVE"
  with_sve "$@"
  exit
fi
echo "== kernels against the reference, under qemu: NEON"
check arm64 max --cases 'hostile|nan|inf'
check arm64 max --every 23
echo "== SVE"
large='(rms|layer)_norm|softmax|(gated_)?activation|quantize|rope_append|append_kv'
small='binary|dequantize|rope|argmax|merge_attention'
with_sve --cases "^($large|$small)/.*(hostile|nan|inf)"
with_sve --cases "^($small)/" --every 7
with_sve --cases "^($large)/" --every 89
# Of attention, what its unfused kernels have SVE for.
with_sve --cases '^attention/.*(nan|infinite|extreme-zeros|keep2of4).*q1' --every 3
with_sve --cases '^attention/.*-alibi' --every 97
with_sve --cases '^attention/.*-mask' --every 199
with_sve --cases '^attention_scores/.*-cap' --every 41
said=$(check arm64-sve max,sve=off 2>&1) && { echo "SVE kernels ran on a processor without SVE"; exit 1; }
grep "expected a processor with SVE" <<<"$said" || { echo "$said"; exit 1; }
