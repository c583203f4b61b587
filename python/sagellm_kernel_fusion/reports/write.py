"""A report's three files: report.html, report.md, report.json; all of one run, or all of the one before."""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path

import jinja2

from ..errors import ResourceExhaustedError
from ..files import write_all
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
        write_all(texts)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return list(texts)
