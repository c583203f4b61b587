#!/usr/bin/env bash
# Builds the documentation site into build-docs/html from README.md, docs/ and the built package. A warning is a failure:
# docs/site/conf.py says of what.
set -euo pipefail
cd "$(dirname "$0")/.."

rm -rf build-docs  # what is left of an earlier build hides what is missing
.venv/bin/python -m sphinx -q -W --keep-going -c docs/site -d build-docs/doctrees . build-docs/html
cp build-docs/html/README.html build-docs/html/index.html
echo "documentation site: build-docs/html/index.html"
