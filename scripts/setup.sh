#!/usr/bin/env bash
# Installs what building and running needs: Debian packages (as root; without root it names what is missing), and a
# virtual environment in .venv with the pinned Python packages of the requirement files given as arguments.
#   scripts/setup.sh requirements/runtime.txt requirements/test.txt
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*"; }

missing=()
while read -r package; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done < requirements/debian.txt
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" -ne 0 ]; then
    printf 'setup: these Debian packages are missing and installing them needs root:\n  apt-get install %s\n' "${missing[*]}" >&2
    exit 1
  fi
  say "installing Debian packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

python=${PYTHON:-python3}
if [ ! -x .venv/bin/python ]; then
  say "making the virtual environment .venv with $($python --version)"
  "$python" -m venv .venv
fi
for file in "$@"; do
  stamp=.venv/.installed-$(basename "$file" .txt)
  if ! cmp -s "$file" "$stamp"; then
    say "installing the Python packages of $file"
    # Only what the file pins: it lists dependences too, so that none is left to chance (or drags in CUDA libraries).
    if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check --progress-bar off --no-deps -r "$file"; then
      printf 'setup: pip could not install %s; without a network, point PIP_INDEX_URL or PIP_FIND_LINKS to a copy\n' "$file" >&2
      exit 1
    fi
    cp "$file" "$stamp"
  fi
done
