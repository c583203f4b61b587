#!/usr/bin/env bash
# Builds wheels that need nothing of the system but what every Linux has: auditwheel puts the other shared libraries into
# them, and the licences of these are put beside ours. One wheel serves all Pythons from 3.12 on, others one Python each.
#   scripts/build_wheel.sh SOURCE OUT PYTHON...
#   scripts/build_wheel.sh . dist python3.10 python3.11 python3.12
# SOURCE is a tree of the sources, as checked out or as a source distribution holds it. Needs requirements/debian.txt and,
# in .venv, requirements/wheel.txt.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,7p' "$0"; exit 2; }
source=$(realpath "$1") out=$(realpath -m "$2")
shift 2
cd "$(dirname "$0")/.."
export PATH=$PWD/.venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off
# Of one compiler call that a build of the tree made, too, ccache shall have the result: the same name, paths from here.
export CC=cc CXX=c++ CCACHE_BASEDIR=$source
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

abi3=
for python in "$@"; do
  tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
  if [ "${tag#cp3}" -ge 12 ]; then
    [ -z "$abi3" ] || { echo "wheel for $tag: $(basename "$abi3")"; continue; }
  fi
  "$python" -m venv "$work/venv"
  PIP_CONSTRAINT=$PWD/requirements/build.txt "$work/venv/bin/pip" wheel --quiet --no-deps -w "$work/raw" "$source"
  python -m auditwheel repair -w "$work/repaired" "$work/raw"/*.whl 2>"$work/log" || { cat "$work/log"; exit 1; }
  python -m wheel unpack -d "$work" "$work/repaired"/*.whl >/dev/null
  # auditwheel names the Debian packages that it took libraries of.
  python - "$work"/sagellm_kernel_fusion-*/*.dist-info <<'PYTHON'
import json, pathlib, shutil, sys
info = pathlib.Path(sys.argv[1])
for part in json.loads((info / "sboms/auditwheel.cdx.json").read_text())["components"]:
    if part["purl"].startswith("pkg:deb/"):
        notice = info / "licenses" / part["name"] / "copyright"
        notice.parent.mkdir()
        shutil.copy(f"/usr/share/doc/{part['name']}/copyright", notice)
PYTHON
  python -m wheel pack -d "$out" "$work"/sagellm_kernel_fusion-*/ >"$work/log"
  made=$(sed -n 's/.*Repacking wheel as \(.*\)\.\.\.OK/\1/p' "$work/log")
  echo "wheel for $tag: $made"
  case $made in *abi3*) abi3=$made ;; esac
  rm -rf "$work"/venv "$work"/raw "$work"/repaired "$work"/sagellm_kernel_fusion-*
done
