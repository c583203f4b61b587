#!/usr/bin/env bash
# Runs a program with a lower instruction set than the machine's best:  with_isa.sh avx512|avx2|baseline PROGRAM ARGUMENT ...
# Exit status 77 where the machine has nothing better, so that nothing would be tested again.
set -euo pipefail
isa=$1
shift
declare -A better=([avx512]=amx_bf16 [avx2]=avx512f [baseline]=avx2)
grep -qw "${better[$isa]}" /proc/cpuinfo || exit 77
KF_ISA=$isa exec "$@"
