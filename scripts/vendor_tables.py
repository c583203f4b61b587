#!/usr/bin/env python3
"""Writes the tables of rows in docs/backends/ of the accelerators whose rows are Python.

    python scripts/vendor_tables.py [--check]

--check: changes nothing, exit code 1 where a page is not what it would be. Needs the built package.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sagellm_kernel_fusion.vendors import VENDORS

PAGES = Path(__file__).resolve().parents[1] / "docs/backends"
BEGIN, END = "<!-- rows -->\n", "<!-- end of rows -->\n"


def table(rows) -> str:
    lines = ["| op | row | serves | level | against operators one by one |", "|---|---|---|---|---|"]
    lines += [f"| {r.op} | `{r.name}` | {r.condition} | {r.level} | {r.saves} |" for r in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    for vendor in VENDORS:
        rows = [row for row in vendor.table() if row.family != "vanilla"]  # what those are held against
        if not rows:
            continue
        page = PAGES / f"{vendor.page}.md"
        text = page.read_text()
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        new = f"{before}{BEGIN}\n{table(rows)}\n{END}{after}"
        if check and new != text:
            sys.exit(f"{page.name}: its table is not that of the rows: run make docs")
        if not check:
            page.write_text(new)


if __name__ == "__main__":
    main()
