#!/usr/bin/env python3
"""Takes the operators that torch_npu declares out of its wheel (BSD-3-Clause, 44 MB): their schemas, and the
functions of CANN that it calls.

    python scripts/get_vendor_schemas.py [--to FOLDER]

Writes torch_npu-2.14.0.json: {"schemas": {name: schema}, "kernels": [name]}. Does nothing where it is there. The
wheel is not installed: without CANN it cannot be imported. Needs only Python and pip.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "2.14.0"
SHA256 = "7736f7d82cf9f16c7dfc4537f7e7c638153da760273a193455e70857f912189e"  # of the wheel below
WHEEL = f"torch_npu-{VERSION}-cp311-cp311-manylinux_2_28_x86_64.whl"
SCHEMAS = "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml"
LIBRARY = "torch_npu/lib/libtorch_npu.so"


def download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary", ":all:", "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311",
               "--platform", "manylinux_2_28_x86_64", "--dest", str(folder), f"torch-npu=={VERSION}"]  # fmt: skip
    if subprocess.run(command).returncode != 0:
        raise SystemExit(
            f"get_vendor_schemas: pip could not download torch-npu=={VERSION}: is a package index reachable?"
        )
    wheel = folder / WHEEL
    got = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if got != SHA256:
        raise SystemExit(f"get_vendor_schemas: {WHEEL}: expected SHA-256 {SHA256}, got {got}")
    return wheel


def extract(wheel: Path) -> dict:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(SCHEMAS).decode()
        library = archive.read(LIBRARY)
    found = re.findall(r"^(?:- |  )func: (\w+)(\(.*\) -> .*)$", text, re.MULTILINE)
    if len(found) < 100:
        raise SystemExit(f"get_vendor_schemas: {SCHEMAS}: expected hundreds of schemas, got {len(found)}")
    kernels = sorted({name.decode() for name in re.findall(rb"\0(aclnn\w+)GetWorkspaceSize\0", library)})
    return {"schemas": {name: name + rest for name, rest in found}, "kernels": kernels}


def main() -> None:
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=root / ".cache/vendors", help="folder to put the file in")
    target = parser.parse_args().to / f"torch_npu-{VERSION}.json"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            found = extract(download(Path(folder)))
        partial = target.with_suffix(".part")
        partial.write_text(json.dumps(found, indent=0))
        partial.replace(target)
    print(target)


if __name__ == "__main__":
    main()
