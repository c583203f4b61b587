"""Files that are written whole or not at all: a full disk leaves what was there."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from .errors import ResourceExhaustedError, refusing


def _write_beside(path: Path, text: str, partial: list[str]) -> None:
    """A file of that text beside `path`, its name added to `partial` as soon as it is there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    partial.append(name)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(name, 0o644)


def write_all(texts: dict[Path, str]) -> None:
    """Every file is written out before the first takes its place. Pipes and devices (/dev/stdout) are written to."""
    partial: list[str] = []
    places: list[Path] = []
    try:
        for path, text in texts.items():
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder is where the file should be", str(path))
            if path.exists() and not path.is_file():
                path.write_text(text, "utf-8")
                continue
            places.append(path.resolve())  # what a link leads to
            _write_beside(places[-1], text, partial)
        for place in places:
            os.replace(partial[0], place)
            del partial[0]
    finally:
        for name in partial:
            os.unlink(name)


def write_or_refuse(texts: dict[Path, str]) -> None:
    """write_all for files that a caller named."""
    try:
        write_all(texts)
    except ValueError as error:  # no name of a file: with a zero byte, or characters that are none
        raise refusing(f"{next(iter(texts))!s:.200}: expected the name of a file: {error}") from error
    except OSError as error:
        file = next(iter(texts))
        raise ResourceExhaustedError(
            f"{file}: cannot be written: {error.strerror or error}", {"file": str(file)}
        ) from error
