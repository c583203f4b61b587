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
include_patterns = ["README.md", "README.zh-CN.md", "CHANGELOG.md", "docs/*.md", "docs/**/*.md", "docs/site/*.rst"]
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

# Appended to the README, which is the first page.
CONTENTS = """
```{toctree}
:hidden:
:caption: Use
docs/installing
docs/choosing-a-backend
docs/configuration
docs/support-matrix
docs/ops/README
docs/fuse-model
docs/torch
```
```{toctree}
:hidden:
:caption: Reference
docs/site/python
docs/site/cpp
docs/numerics
docs/backends/cpu
docs/backends/cuda
```
```{toctree}
:hidden:
:caption: Change
docs/architecture
docs/graph
docs/adding-an-op
docs/adding-a-backend
docs/verification
CHANGELOG
README.zh-CN
```
"""
# Likewise: on GitHub each is a list of links.
OPS = """
```{toctree}
:hidden:
:glob:
[a-z]*
```
"""


def add_contents(app, docname, source):
    source[0] += {"README": CONTENTS, "docs/ops/README": OPS}.get(docname, "")


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
