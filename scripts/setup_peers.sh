#!/usr/bin/env bash
# Installs what bench/peers compares with (PyTorch, transformers, llama.cpp; minutes, llama.cpp is built from source) into
# .venv-peers, and this package from the built tree.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv-peers/bin/python ] || "${PYTHON:-python3}" -m venv .venv-peers
echo "== installing PyTorch, transformers and llama.cpp in .venv-peers (llama.cpp is compiled: about ten minutes)"
CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_OPENMP=ON" .venv-peers/bin/pip install --disable-pip-version-check --progress-bar off \
  -r requirements/peers.txt -r requirements/runtime.txt
site=$(.venv-peers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s\n' "$PWD/python" > "$site/kf_tree.pth"
