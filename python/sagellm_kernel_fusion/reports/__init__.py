"""Reports: one document, written as a self-contained HTML page, Markdown and JSON."""

from .document import Document, Section, Table
from .model_report import model_document, model_json
from .op_report import op_document, op_json
from .step_report import step_document, step_json
from .write import write_report

__all__ = [
    "Document",
    "Section",
    "Table",
    "model_document",
    "model_json",
    "op_document",
    "op_json",
    "step_document",
    "step_json",
    "write_report",
]
