"""A report's three files: report.html, report.md, report.json."""

from __future__ import annotations

import json
import os
import tempfile
from importlib import resources
from pathlib import Path

import jinja2

from ..errors import ResourceExhaustedError
from .document import Document
from .markdown import to_markdown


def to_html(document: Document) -> str:
    template = resources.files(__package__).joinpath("template.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(document=document)


def _write(path: Path, text: str) -> None:
    """Whole or not at all: an older report stays where the new one cannot be written."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def write_report(document: Document, values: dict, folder: Path) -> list[Path]:
    """Writes the three files and returns their paths, HTML first."""
    texts = {
        "report.html": to_html(document),
        "report.md": to_markdown(document),
        "report.json": json.dumps(values, indent=1, allow_nan=False) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            _write(folder / name, text)
    except OSError as error:
        raise ResourceExhaustedError(
            f"{folder}: the report cannot be written: {error.strerror or error}; give another folder with --out",
            {"folder": str(folder)},
        ) from error
    return [folder / name for name in texts]
