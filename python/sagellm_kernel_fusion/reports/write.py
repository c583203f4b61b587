"""A report's three files: report.html, report.md, report.json; all of one run, or all of the one before."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from importlib import resources
from pathlib import Path

import jinja2

from ..errors import ResourceExhaustedError
from .document import Document
from .markdown import to_markdown


def to_json(values: dict) -> str:
    """JSON has no NaN and no infinity: a figure that is none becomes null."""

    def finite(value):
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(values), indent=1, allow_nan=False)


def to_html(document: Document) -> str:
    template = resources.files(__package__).joinpath("template.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(document=document)


def _write_beside(path: Path, text: str, partial: list[str]) -> None:
    """A file of that text beside `path`, its name added to `partial` as soon as it is there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    partial.append(name)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(name, 0o644)


def _write_all(texts: dict[Path, str]) -> None:
    """Every file is written out before the first takes its place: a full disk leaves the older report whole."""
    partial: list[str] = []
    try:
        for path, text in texts.items():
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder is where the file should be", str(path))
            _write_beside(path, text, partial)
        for path in texts:
            os.replace(partial[0], path)
            del partial[0]
    finally:
        for name in partial:
            os.unlink(name)


def cannot_write(folder: Path, error: OSError) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"{folder}: the report cannot be written: {error.strerror or error}; give another folder with --out",
        {"folder": str(folder)},
    )


def write_report(document: Document, values: dict, folder: Path) -> list[Path]:
    """Writes the three files and returns their paths, HTML first."""
    texts = {
        folder / "report.html": to_html(document),
        folder / "report.md": to_markdown(document),
        folder / "report.json": to_json(values) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_all(texts)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return list(texts)
