#!/usr/bin/env bash
# Makes a source distribution of the tree: what wheels are built from.
#   scripts/build_sdist.sh OUT
set -euo pipefail
out=$(realpath -m "$1")
cd "$(dirname "$0")/.."
mkdir -p "$out"
name=$(.venv/bin/python -c 'import sys; from scikit_build_core.build import build_sdist as b; print(b(sys.argv[1]))' "$out" | tail -1)
echo "source distribution: $out/$name"
