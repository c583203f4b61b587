"""What editors, type checkers and linkers read: the mark of a typed package, the extension's stubs and exports, and
docstrings."""

from __future__ import annotations

import ast
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sagellm_kernel_fusion
from sagellm_kernel_fusion import _kf


def test_the_package_is_typed():
    assert (Path(sagellm_kernel_fusion.__file__).parent / "py.typed").is_file()


def test_the_extension_has_stubs():
    if sys.version_info < (3, 11):  # their generator needs a package that Python has from 3.11 on
        return
    stubs = ast.parse(Path(_kf.__file__).with_name("_kf.pyi").read_text())
    described = {node.name: node for node in stubs.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    public = {name for name in vars(_kf) if not name.startswith("_")}
    assert public == set(described)
    manager = {node.name: node for node in described["Manager"].body if isinstance(node, ast.FunctionDef)}
    assert [a.arg for a in manager["call"].args.args][:4] == ["self", "op", "fields", "config"]
    assert all(ast.get_docstring(node) for name, node in manager.items() if name != "__init__")


def test_every_public_name_says_what_it_does():
    """Functions, classes, and what classes define themselves; of ops, its operators."""

    def without_words(names: dict, where: str):
        for name, thing in names.items():
            is_class = inspect.isclass(thing)
            if name.startswith("_") or not (is_class or inspect.isroutine(thing) or isinstance(thing, property)):
                continue
            if not (thing.__doc__ or "").strip():
                yield f"{where}.{name}"
            if is_class:
                yield from without_words(vars(thing), f"{where}.{name}")

    public = {name: getattr(sagellm_kernel_fusion, name) for name in sagellm_kernel_fusion.__all__}
    operators = {name: getattr(sagellm_kernel_fusion.ops, name) for name in _kf.ops()}
    assert not [*without_words(public, "kf"), *without_words(operators, "ops")]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["sagellm_kernel_fusion", "sage.llm.engines.sagellm.accel.kernel_fusion"])
def test_importing_loads_nothing_that_is_not_needed(name):
    """Operators alone need NumPy: neither frameworks, nor what reads models, draws and prints."""
    heavy = {
        "torch", "transformers", "jax", "triton", "gguf", "safetensors", "tokenizers", "jinja2", "matplotlib", "rich",
        "typer", "opentelemetry", "cupy",
    }  # fmt: skip
    loaded = run(f"import sys, {name}; print(*{{name.partition('.')[0] for name in sys.modules}})").split()
    assert "numpy" in loaded and not heavy.intersection(loaded)


@pytest.mark.parametrize("name", ["sagellm_kernel_fusion", "sage.llm.engines.sagellm.accel.kernel_fusion"])
def test_every_public_name_is_there_without_torch(name):
    code = f"""
import sys
sys.modules["torch"] = None  # an import of it fails
from {name} import *
try:
    fuse_model(None)
except UnavailableError as error:
    print(error)
print(load_model.__name__, __version__)
"""
    error, names = run(code).splitlines()
    assert error == "fuse_model: expected PyTorch, found none: pip install torch"
    assert names == f"load_model {sagellm_kernel_fusion.__version__}"


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm here")
def test_the_extension_exports_its_beginning_alone():
    """Another extension in the process, which has libraries of ours or libstdc++ inside, is to find none of ours."""
    listed = subprocess.run(["nm", "-D", "--defined-only", _kf.__file__], check=True, capture_output=True, text=True)
    strong = {name for _, kind, name in map(str.split, listed.stdout.splitlines()) if kind in "TDBR"}
    assert strong == {"PyInit__kf"}
