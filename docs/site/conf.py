"""The documentation as a site: the same Markdown that is read in the repository, and a reference made from the sources.

`make docs-site` builds it. Warnings are failures: a link that leads nowhere, a page that no table of contents names, a
public name of the Python package or a public header that the reference lacks.
"""

from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.util import logging

import sagellm_kernel_fusion as kf

ROOT = Path(__file__).parents[2]

project = "kf"
copyright = "the authors of kf; Apache-2.0"
release = version = (ROOT / "VERSION").read_text().strip()

root_doc = "README"
include_patterns = ["README.md", "README.zh-CN.md", "CHANGELOG.md", "examples/README.md", "docs/*.md", "docs/**/*.md", "docs/site/*.rst"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 4  # the anchors that a link on GitHub uses

html_theme = "furo"
html_title = f"kf {release}"
html_copy_source = False
html_static_path = ["style"]
html_css_files = ["kf.css"]
highlight_language = "text"

autodoc_mock_imports = ["torch", "transformers"]  # the reference is the same where they are not installed
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}

# The table of contents, at the side of every page. A page of docs/ that is not named here comes last.
CONTENTS = {
    "Use": ["installing", "choosing-a-backend", "configuration", "support-matrix", "ops/README", "fuse-model", "torch", "adapters"],
    "Reference": ["site/python", "site/cpp", "numerics", "backends/cpu", "backends/cuda", "backends/ascend", "backends/cambricon",
                  "backends/hygon", "backends/kunlun", "backends/kunlun2"],
    "Change": ["architecture", "graph", "adding-an-op", "adding-a-backend", "bring-up-a-backend", "bring-up-in-python",
               "verification"],
}


def contents():
    named = {page for pages in CONTENTS.values() for page in pages}
    found = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in (ROOT / "docs").rglob("*.md")}
    rest = sorted(page for page in found - named if not page.startswith("ops/"))
    sections = {caption: [f"docs/{page}" for page in pages] for caption, pages in CONTENTS.items()}
    return {**sections, "More": [*(f"docs/{page}" for page in rest), "examples/README", "CHANGELOG", "README.zh-CN"]}


def add_contents(app, docname, source):
    """The README is the first page; on GitHub it and the list of operators are lists of links."""
    if docname == "README":
        source[0] += "".join(toctree(pages, f":caption: {caption}") for caption, pages in contents().items())
    if docname == "docs/ops/README":
        source[0] += toctree(["[a-z]*"], ":glob:")


def toctree(pages, option):
    return "\n".join(["\n```{toctree}", ":hidden:", option, *pages, "```\n"])


def keep_layout(app, what, name, obj, options, lines):
    """Docstrings are set as plain text: formulas and columns are to stay as they are."""
    while lines and not lines[-1]:
        lines.pop()
    if lines:
        lines[:] = ["", ".. code-block:: text", "", *("   " + line for line in lines), ""]


class Headers(Directive):
    """Every public C++ header, whole: its comments are its documentation."""

    def run(self):
        return [section(path, str(path.relative_to(ROOT / "include"))) for path in headers()]


def headers():
    return sorted((ROOT / "include").rglob("*.h"), key=lambda path: (len(path.parts), path.name))


def section(path, name):
    text = path.read_text()
    code = nodes.literal_block(text, text, language="cpp")
    return nodes.section("", nodes.title(text=name), code, ids=[nodes.make_id(name)], names=[name])


def all_is_documented(app, env):
    """A public name that the reference lacks is a warning, so a failure."""
    documented = set(env.domains["py"].objects) | set(env.domains["py"].modules)
    for name in sorted({f"{kf.__name__}.{n}" for n in kf.__all__} - documented):
        logging.getLogger(__name__).warning("docs/site/python.rst lacks %s", name)


def setup(app):
    app.add_directive("headers", Headers)
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", keep_layout)
    app.connect("env-check-consistency", all_is_documented)
    return {"parallel_read_safe": True}
