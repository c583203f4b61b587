"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from pathlib import Path

import pytest

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion.files import write_all, write_or_refuse


@contextlib.contextmanager
def full_disk():
    """Stands for a disk without room: files may not grow beyond 1000 bytes, this process's own output neither."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_full_disk_leaves_the_older_files(tmp_path):
    old = {"a.svg": "old a", "b.svg": "old b"}
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    with full_disk(), pytest.raises(kf.ResourceExhaustedError, match=r"a.svg: cannot be written: File too large"):
        write_or_refuse({tmp_path / "a.svg": "new", tmp_path / "b.svg": "x" * 2000})
    assert contents(tmp_path) == old


def test_a_trace_that_cannot_be_written(tmp_path, rng):
    m = kf.KernelFusionManager(kf.KernelFusionConfig(profile_kernels=True))
    for _ in range(20):
        m.fuse_softmax(rng.standard_normal((2, 8), "f4"))
    with full_disk(), pytest.raises(kf.ResourceExhaustedError, match=r"trace\.json: cannot be written"):
        m.write_trace(tmp_path / "trace.json")
    assert contents(tmp_path) == {}


def test_links_stay_and_pipes_are_written_to(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    read, write = os.pipe()
    write_all({tmp_path / "link": "new", Path(f"/proc/self/fd/{write}"): "piped"})
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "piped"
