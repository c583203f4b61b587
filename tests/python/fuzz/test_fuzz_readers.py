"""Readers of model files: bytes changed, cut off and put in are refused, or read; nothing else comes of them."""

from __future__ import annotations

import shutil

import pytest
from drawing import FUZZ
from hypothesis import given
from hypothesis import strategies as st

import sagellm_kernel_fusion as kf
from model_files import TINY, write_gguf, write_safetensors
from sagellm_kernel_fusion.weights import open_model

# (where, as a share of the file; what is done; the bytes)
changes = st.lists(
    st.tuples(
        st.one_of(st.floats(0, 1), st.floats(0, 0.01)),
        st.sampled_from(["overwrite", "insert", "cut"]),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, edits) -> bytes:
    for share, kind, data in edits:
        at = int(share * len(content))
        if kind == "overwrite":
            content = content[:at] + data + content[at + len(data) :]
        elif kind == "insert":
            content = content[:at] + data + content[at:]
        else:
            content = content[: max(at, 1)]
    return content


def read_or_refuse(path):
    try:
        file = open_model(path)
        for name in list(file.tensors)[:4]:
            file.dequantize(name)
    except kf.KernelFusionError as error:
        assert str(error)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", TINY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_safetensors(tmp_path_factory.mktemp("folder"), TINY)


@FUZZ
@given(changes)
def test_damaged_gguf(gguf, edits):
    path = gguf.with_name("damaged.gguf")
    path.write_bytes(damaged(gguf.read_bytes(), edits))
    read_or_refuse(path)


@FUZZ
@given(changes, st.integers(0, 9))
def test_damaged_safetensors(folder, edits, which):
    copy = folder.with_name("damaged")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    files = sorted(p for p in copy.iterdir() if p.is_file())
    path = files[which % len(files)]
    path.write_bytes(damaged(path.read_bytes(), edits))
    read_or_refuse(copy)
