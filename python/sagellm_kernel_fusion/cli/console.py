"""Output: results on stdout, progress on stderr; bars and colours on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
from pathlib import Path

import rich.table
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..reports import Document, Table, write_report
from ..reports.write import cannot_write, to_json

PLAIN_WIDTH = 200  # where the output is no terminal, whose width would wrap it


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise


def out() -> Console:
    # Made at every use: tests and callers replace sys.stdout.
    return _Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)


def err() -> Console:
    return Console(stderr=True, width=None if sys.stderr.isatty() else PLAIN_WIDTH, highlight=False)


def print_table(table: Table) -> None:
    shown = rich.table.Table(title=table.caption or None, title_justify="left", box=rich.box.SIMPLE_HEAD)
    for i, column in enumerate(table.columns):
        is_text = i < table.text_columns
        shown.add_column(column, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for row in table.rows:
        shown.add_row(*(rich.text.Text(cell) for cell in row))
    out().print(shown)


def print_document(document: Document) -> None:
    console = out()
    console.print(rich.text.Text(document.title, style="bold"))
    for sentence in document.summary:
        console.print(rich.text.Text(sentence))
    for section in document.sections:
        console.print(rich.text.Text(section.title, style="bold"))
        for table in section.tables:
            print_table(table)


def make_folder(folder: Path | None) -> None:
    """The folder for a report, before the time is spent on what goes into it."""
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def finish(document: Document, values: dict, as_json: bool, folder: Path | None) -> None:
    """Prints the results, and writes the report where asked for."""
    if as_json:
        print(to_json(values))
    else:
        print_document(document)
    if folder is not None:
        page, *others = write_report(document, values, folder)
        err().print(f"report: {page} (also {', '.join(p.name for p in others)})")


class Steps:
    """What is under way: a bar on a terminal, a line a step otherwise. `total` None: not known ahead."""

    def __init__(self, total: int | None):
        self._total, self._bar, self._task = total, None, None

    def __enter__(self) -> Steps:
        console = err()
        if console.is_terminal:
            columns = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
            if self._total is not None:
                columns.insert(2, MofNCompleteColumn())
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total)
        return self

    def __exit__(self, *exc) -> None:
        if self._bar is not None:
            self._bar.stop()

    def next(self, what: str) -> None:
        if self._bar is None:
            print(what, file=sys.stderr, flush=True)
        else:
            # Shown at once: what comes next may keep the interpreter, and with it the drawing thread, from running.
            self._bar.update(self._task, description=what, advance=0 if self._total is None else 1, refresh=True)
