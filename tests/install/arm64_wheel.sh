#!/usr/bin/env bash
# Installs a wheel for 64-bit Arm beside NumPy's in a folder, and calls it by Debian's arm64 Python under qemu-user.
#   tests/install/arm64_wheel.sh WHEEL
set -euo pipefail
wheel=$(realpath "$1")
cd "$(dirname "$0")/../.."
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python=.cache/arm64/python3
# What pip takes there: wheels for the glibc that Debian has, and older ones.
glibc=$("$python" -c 'import os; print(os.confstr("CS_GNU_LIBC_VERSION").split(".")[-1])')
platforms=()
for minor in $(seq "$glibc" -1 17); do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
.venv/bin/python -m pip install --quiet --disable-pip-version-check --progress-bar off --no-deps --only-binary=:all: \
  --target "$site" --python-version "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" "${platforms[@]}" \
  --platform manylinux2014_aarch64 -c requirements/runtime.txt numpy ml_dtypes "$wheel"
# Under qemu a thread that spins while it waits keeps the one that works from working.
OMP_WAIT_POLICY=passive PYTHONPATH=$site "$python" tests/install/against_numpy.py "$site"
