#!/usr/bin/env bash
# Lays out in FOLDER, from Debian's packages and without installing any: host/ with the cross compiler and qemu-user for this machine,
# target/ with the arm64 libraries and Python, and `python3`, which runs that under qemu. apt's lists and archives stay in FOLDER
# too; nothing else of the system is changed, and no foreign architecture is added to it.
#   scripts/arm64_sysroot.sh .cache/arm64
set -euo pipefail
mkdir -p "$1"
root=$(cd "$1" && pwd)
script=$(cd "$(dirname "$0")" && pwd)/arm64_sysroot.sh
if cmp -s "$script" "$root/.made-by"; then exit 0; fi
rm -rf "$root"/{host,target,packages,.made-by}

# apt for one architecture, over an empty list of installed packages or the machine's.
fetch() {
  local part=$1 architecture=$2 status=$3
  shift 3
  local state=$root/apt/$part
  mkdir -p "$state"/{lists,archives}/partial "$root/$part" "$root/packages/$part"
  cat "$status" >"$state/status"
  local apt=(apt-get -qq -o APT::Architecture="$architecture" -o APT::Architectures::="$architecture" -o Dir::State="$state"
    -o Dir::State::lists="$state/lists" -o Dir::State::status="$state/status" -o Dir::Cache="$state"
    -o Dir::Cache::archives="$state/archives" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::sourcelist="$state/sources.list"
    -o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=1)
  # Debian alone: what else the machine is told of need not have this architecture.
  local mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian} release
  release=$(. /etc/os-release && echo "$VERSION_CODENAME")
  local keys=/usr/share/keyrings/debian-archive-keyring.gpg
  printf 'deb [signed-by=%s] %s %s main\n' "$keys" "$mirror" "$release" "$keys" "$mirror" "$release-updates" >"$state/sources.list"
  "${apt[@]}" update
  "${apt[@]}" install -y --no-install-recommends --download-only "$@" >/dev/null
  local package
  for package in "$state"/archives/*.deb; do
    # And whose each file is, for the licences of what a wheel takes.
    dpkg --fsys-tarfile "$package" | tar -C "$root/$part" -xpv | sed 's/^\.//' >"$root/packages/$part/$(basename "${package%%_*}")"
  done
}

echo "== the arm64 cross compiler, qemu and libraries in ${root#"$PWD"/}"
fetch host "$(dpkg --print-architecture)" /var/lib/dpkg/status g++-12-aarch64-linux-gnu qemu-user-static
fetch target arm64 /dev/null libc6-dev libstdc++-12-dev libdnnl-dev libhwy-dev libfmt-dev libspdlog-dev nlohmann-json3-dev \
  libgtest-dev libdlpack-dev libbenchmark-dev python3 libpython3-dev
# The linker's script of libc names the place where the package would be installed.
sed -i "s#\([ (]\)/usr/aarch64-linux-gnu#\1$root/host/usr/aarch64-linux-gnu#g" "$root/host/usr/aarch64-linux-gnu/lib/libc.so"
cat >"$root/python3" <<'SCRIPT'
#!/bin/sh
root=$(dirname "$(realpath "$0")")
exec "$root/host/usr/bin/qemu-aarch64-static" -L "$root/target" "$root/target/usr/bin/python3" "$@"
SCRIPT
chmod +x "$root/python3"
rm -rf "$root/apt"
cp "$script" "$root/.made-by"
