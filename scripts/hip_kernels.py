#!/usr/bin/env python3
"""What hipcc says of the kernels in object files: a line a file, and status 1 where a kernel breaks a limit.

    scripts/hip_kernels.py FOLDER [--all]

A host object holds the device's code as a bundle (LLVM, "Clang Offload Bundler"); each part of it is an ELF file whose
note "amdhsa.kernels" has a kernel's registers, memory and wave size (LLVM, "User Guide for AMDGPU Backend").
"""

import argparse
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile

MAGIC = b"__CLANG_OFFLOAD_BUNDLE__"
MAX_REGISTERS = 256  # of a lane, of each kind
MAX_SHARED = 65536  # bytes of a block
FIELDS = (
    "name",
    "wavefront_size",
    "vgpr_count",
    "agpr_count",
    "vgpr_spill_count",
    "sgpr_spill_count",
    "private_segment_fixed_size",
    "group_segment_fixed_size",
    "max_flat_workgroup_size",
)


def code_objects(data):
    """(target, ELF file) of each part for a device."""
    begin = data.find(MAGIC)
    while begin >= 0:
        at = begin + len(MAGIC)
        (count,) = struct.unpack_from("<Q", data, at)
        at += 8
        for _ in range(count):
            offset, size, length = struct.unpack_from("<QQQ", data, at)
            at += 24
            target = data[at : at + length].decode()
            at += length
            if not target.startswith("host"):
                yield target.rsplit("--", 1)[-1], data[begin + offset : begin + offset + size]
        begin = data.find(MAGIC, at)


def kernels_of(elf):
    """The metadata of each kernel, by the names above; numbers as int."""
    readelf = next(filter(None, map(shutil.which, ("llvm-readelf", "llvm-readelf-15", "llvm-readelf-14"))), None)
    if readelf is None:
        sys.exit("hip_kernels: expected llvm-readelf (Debian: llvm-15)")
    with tempfile.NamedTemporaryFile(suffix=".elf") as file:
        file.write(elf)
        file.flush()
        notes = subprocess.run([readelf, "--notes", file.name], capture_output=True, text=True, check=True).stdout
    kernels = []
    # A kernel begins at a "- ." of the list's own indent, four spaces before its other fields.
    for line in notes.splitlines():
        if re.match(r"^  - \.\w+:", line):
            kernels.append({})
        found = re.match(r"^  (?:  |- )\.(\w+):\s+(\S+)", line)
        if found and found[1] in FIELDS and kernels:
            kernels[-1][found[1]] = int(found[2]) if found[2].isdigit() else found[2]
    return kernels


def faults(kernel):
    if kernel["wavefront_size"] != 64:
        yield f"waves of {kernel['wavefront_size']} lanes, expected 64"
    for kind in ("vgpr_count", "agpr_count"):
        if kernel.get(kind, 0) > MAX_REGISTERS:
            yield f"{kind} {kernel[kind]}, expected at most {MAX_REGISTERS}"
    if kernel["vgpr_spill_count"] != 0:
        yield f"vgpr_spill_count {kernel['vgpr_spill_count']}, expected 0"
    # Scalars are spilled to lanes of vector registers, and to memory only where these are short, too.
    if kernel["sgpr_spill_count"] != 0 and kernel["private_segment_fixed_size"] != 0:
        yield f"sgpr_spill_count {kernel['sgpr_spill_count']}, and memory of a lane's own"
    if kernel["group_segment_fixed_size"] > MAX_SHARED:
        yield f"{kernel['group_segment_fixed_size']} bytes of shared memory, expected at most {MAX_SHARED}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--all", action="store_true", help="every kernel, too")
    arguments = parser.parse_args()
    failed = total = 0
    for path in sorted(arguments.folder.rglob("*.o")):
        parts = list(code_objects(path.read_bytes()))
        if not parts:
            print(f"{path}: no code for a device")
            failed += 1
        for target, elf in parts:
            kernels = kernels_of(elf)
            if not kernels:
                print(f"{path}: {target}: no kernels")
                failed += 1
                continue
            total += len(kernels)
            registers, shared, own = (
                max(k.get(f, 0) for k in kernels)
                for f in ("vgpr_count", "group_segment_fixed_size", "private_segment_fixed_size")
            )
            print(
                f"{path.relative_to(arguments.folder)}: {target}: {len(kernels)} kernels, up to {registers} registers, "
                f"{shared} bytes of shared memory, {own} of a lane's own"
            )
            for kernel in kernels:
                if arguments.all:
                    print("  ", kernel)
                for fault in faults(kernel):
                    print(f"{path}: {target}: {kernel['name']}: {fault}")
                    failed += 1
    print(f"{total} kernels, {failed} faults")
    sys.exit(1 if failed or total == 0 else 0)


main()
