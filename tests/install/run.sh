#!/usr/bin/env bash
# Installs the built package to a scratch folder and builds a separate CMake project against it. Makes a source
# distribution, a wheel of that, installs the wheel into a clean virtual environment without torch, and lets it generate.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
model=$root/.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cmake --install "$root/build" --prefix "$scratch/prefix" >/dev/null
cmake -S "$root/tests/install" -B "$scratch/consumer" -G Ninja -DCMAKE_PREFIX_PATH="$scratch/prefix" >/dev/null
cmake --build "$scratch/consumer" >/dev/null
"$scratch/consumer/consumer"

# Plug-ins, built against the installed header: the example, and the first one of docs/bring-up-a-backend.md.
build_plugin() { cmake -S "$1" -B "$2" -G Ninja -DCMAKE_PREFIX_PATH="$scratch/prefix" >/dev/null && cmake --build "$2" >/dev/null; }
build_plugin "$root/examples/plugin_backend" "$scratch/toy"
"$scratch/prefix/bin/kf_check" --plugin "$scratch/toy/toy.so" --cases '^(rms_norm|activation|linear)/'
mkdir "$scratch/first"
block() { awk -v fence='```'"$1" '$0 == fence { on = 1; next } $0 == "```" { on = 0 } on' "$root/docs/bring-up-a-backend.md"; }
block cmake >"$scratch/first/CMakeLists.txt"
block c >"$scratch/first/first.c"
build_plugin "$scratch/first" "$scratch/first/build"
"$scratch/prefix/bin/kf_check" --plugin "$scratch/first/build/first.so"

cd "$root"
scripts/build_sdist.sh "$scratch/dist"
mkdir "$scratch/source"
tar -C "$scratch/source" --strip-components=1 -xf "$scratch"/dist/*.tar.gz
scripts/build_wheel.sh "$scratch/source" "$scratch/dist" .venv/bin/python

.venv/bin/python -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check --progress-bar off "$scratch"/dist/*.whl
cd "$scratch"
"$scratch/venv/bin/python" "$root/tests/install/clean_venv.py"
continued() { "$1/bin/kf" generate "$model" "The capital of France is" --max-new-tokens 16 --fusion all; }
of_wheel=$(continued "$scratch/venv") of_tree=$(continued "$root/.venv")
if [ -z "$of_wheel" ] || [ "$of_wheel" != "$of_tree" ]; then
  printf 'kf generate: the wheel wrote\n%s\nand the tree\n%s\n' "$of_wheel" "$of_tree"
  exit 1
fi
echo "kf generate of the wheel, as of the tree: ok"
