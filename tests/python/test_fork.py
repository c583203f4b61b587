"""fork() after calls that used threads: children compute, and so does the parent afterwards. Children end by an alarm
where they would hang."""

from __future__ import annotations

import multiprocessing
import os
import signal

import numpy as np
import pytest

import sagellm_kernel_fusion as kf

CONFIG = kf.KernelFusionConfig(num_threads=3)
LIMIT_S = 30


def work(manager: kf.KernelFusionManager, seed: int = 0) -> float:
    x = np.random.default_rng(seed).standard_normal((96, 256)).astype(np.float32)
    w = np.random.default_rng(1).standard_normal((256, 256)).astype(np.float32)
    return float(manager.fuse_silu_linear(x, w).sum())


def exit_code_of_child(body) -> int:
    pid = os.fork()
    if pid == 0:
        signal.alarm(LIMIT_S)
        code = 99
        try:
            code = body()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_children_and_the_parent_go_on():
    m = kf.KernelFusionManager(CONFIG)
    expected = work(m)

    def child() -> int:
        return 0 if work(m) == expected and work(kf.KernelFusionManager(CONFIG)) == expected else 1

    for _ in range(3):
        assert exit_code_of_child(child) == 0
        assert work(m) == expected
    assert exit_code_of_child(lambda: exit_code_of_child(child)) == 0  # a grandchild


_inherited: kf.KernelFusionManager | None = None


def _work_of_pool(seed: int) -> float:
    signal.alarm(LIMIT_S)
    try:
        return work(_inherited, seed)
    finally:
        signal.alarm(0)


def test_pools_of_forked_processes():
    global _inherited
    _inherited = kf.KernelFusionManager(CONFIG)
    expected = [work(_inherited, seed) for seed in range(6)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_work_of_pool, range(6)).get(timeout=LIMIT_S) == expected


def test_workers_of_a_torch_data_loader():
    torch = pytest.importorskip("torch")
    m = kf.KernelFusionManager(CONFIG)
    x, weight = torch.randn(8, 128, 256), torch.randn(256)
    expected = m.fuse_rmsnorm(x, weight)

    class Normalised(torch.utils.data.Dataset):
        def __len__(self):
            return len(x)

        def __getitem__(self, i):
            return m.fuse_rmsnorm(x[i], weight)

    loader = torch.utils.data.DataLoader(
        Normalised(), batch_size=4, num_workers=2, multiprocessing_context="fork", timeout=LIMIT_S
    )
    torch.testing.assert_close(torch.cat(list(loader)), expected, rtol=0, atol=0)
