#!/usr/bin/env bash
# Installs the built package to a scratch folder, builds a separate CMake project against it, and installs the Python
# package into a clean virtual environment without torch.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cmake --install "$root/build" --prefix "$scratch/prefix" >/dev/null
cmake -S "$root/tests/install" -B "$scratch/consumer" -G Ninja -DCMAKE_PREFIX_PATH="$scratch/prefix" >/dev/null
cmake --build "$scratch/consumer" >/dev/null
"$scratch/consumer/consumer"

"$root/.venv/bin/python" -m venv "$scratch/venv"
# The compiler by the name that the tree's own build calls it, so that ccache knows what it has compiled already.
CC=cc CXX=c++ "$scratch/venv/bin/pip" install --quiet --disable-pip-version-check --progress-bar off "$root"
cd "$scratch"
"$scratch/venv/bin/python" "$root/tests/install/clean_venv.py"
"$scratch/venv/bin/kf" --help >/dev/null
echo "kf command in a clean environment: ok"
