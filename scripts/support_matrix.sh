#!/usr/bin/env bash
# Writes docs/support-matrix.md from the cases:  support_matrix.sh KF_MATRIX [--check]. With --check it only compares.
# For AVX2, whatever the machine has beyond it: oneDNN takes more types on some processors. Exit status 77 where it has less.
set -euo pipefail
grep -qw avx2 /proc/cpuinfo || exit 77
page=$(dirname "$0")/../docs/support-matrix.md
matrix=$(KF_ISA=avx2 ONEDNN_MAX_CPU_ISA=AVX2 "$1")
if [ "${2:-}" = --check ]; then
  diff -u "$page" - <<<"$matrix" || { echo "docs/support-matrix.md is not what the cases say: run make docs"; exit 1; }
else
  printf '%s\n' "$matrix" > "$page"
fi
