#!/usr/bin/env bash
# Cross-compiles a wheel for 64-bit Arm, of the Python that Debian has (scripts/arm64_sysroot.sh): auditwheel puts the shared
# libraries that not every Linux has into it, out of Debian's arm64 packages, and their licences are put beside ours.
#   scripts/build_arm64_wheel.sh OUT [Quick]
# Quick: kernels at -O1, for tests. Needs requirements/debian.txt and, in .venv, requirements/build.txt and wheel.txt.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,6p' "$0"; exit 2; }
out=$(realpath -m "$1") build_type=${2:-Release}
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python root=$PWD/.cache/arm64
scripts/arm64_sysroot.sh "$root"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

# What scikit-build-core would ask the Python that runs it, of the one that the wheel is for.
suffix=$("$root/python3" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
tag=$("$root/python3" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
if [ "$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')" != "$tag" ]; then
  echo "build_arm64_wheel: .venv has to have the Python that Debian has for arm64, $tag: make it with /usr/bin/python3" >&2
  exit 1
fi
# (Debian's pip knows --config-settings by no shorter name.)
echo "== building a wheel for arm64 ($tag, $build_type)"
_PYTHON_HOST_PLATFORM=linux-aarch64 SETUPTOOLS_EXT_SUFFIX=$suffix CCACHE_BASEDIR=$PWD \
  LD_LIBRARY_PATH=$root/host/usr/lib/$(gcc -print-multiarch 2>/dev/null || echo x86_64-linux-gnu) \
  "$python" -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w "$work/raw" . \
  --config-settings cmake.toolchain-file=cmake/arm64.cmake --config-settings cmake.define.KF_ARM64_ROOT="$root" \
  --config-settings cmake.python-hints=false --config-settings cmake.build-type="$build_type" \
  --config-settings build-dir="build-python-{wheel_tag}-$build_type" \
  --config-settings cmake.define.nanobind_DIR="$("$python" -m nanobind --cmake_dir)"
PATH=$PWD/.venv/bin:$PATH "$python" -m auditwheel repair --ldpaths "$root/target/usr/lib/aarch64-linux-gnu:$root/target/lib/aarch64-linux-gnu" \
  -w "$work/repaired" "$work/raw"/*.whl 2>"$work/log" || { cat "$work/log"; exit 1; }
"$python" -m wheel unpack -d "$work" "$work/repaired"/*.whl >/dev/null
for library in "$work"/sagellm_kernel_fusion-*/sagellm_kernel_fusion.libs/*; do
  name=$(basename "$library" | sed -E 's/-[0-9a-f]{8}\.so/.so/')
  package=$(basename "$(grep -l "/aarch64-linux-gnu/$name\$" "$root"/packages/target/*)")
  notice=$(echo "$work"/sagellm_kernel_fusion-*/*.dist-info)/licenses/$package
  mkdir "$notice"
  cp "$root/target/usr/share/doc/$package/copyright" "$notice"
done
"$python" -m wheel pack -d "$out" "$work"/sagellm_kernel_fusion-*/ | sed -n "s/.*Repacking wheel as \(.*\)\.\.\.OK/wheel for arm64: \1/p"
