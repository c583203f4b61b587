"""A document as Markdown."""

from __future__ import annotations

from .document import Document, Table


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(table: Table) -> str:
    rule = ["---" if i < table.text_columns else "---:" for i in range(len(table.columns))]
    lines = [table.columns, rule, *table.rows]
    text = "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)
    return f"{table.caption}\n\n{text}" if table.caption else text


def to_markdown(document: Document) -> str:
    parts = [f"# {document.title}", *document.summary]
    parts.append("\n".join(f"- {name}: {value}" for name, value in document.facts))
    for section in document.sections:
        parts.append(f"## {section.title}")
        if section.text:
            parts.append(section.text)
        parts += [_table(t) for t in section.tables]
    return "\n\n".join(parts) + "\n"
