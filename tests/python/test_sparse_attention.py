"""FusedSparseAttention: its patterns against attention under the same mask, what it reads, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion import FusedSparseAttention, ops


@pytest.fixture
def qkv(rng):
    return tuple(rng.standard_normal((2, 40, heads, 16), np.float32) for heads in (4, 2, 2))


def close(got, expected):
    np.testing.assert_allclose(np.asarray(got, np.float64), np.asarray(expected, np.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("use_flash_attention", [True, False])
def test_two_of_every_four_as_the_specification_has_it(qkv, use_flash_attention):
    q, k, v = qkv[0], *(np.round(8 * x) / 8 for x in qkv[1:])
    q = np.round(8 * q) / 8
    out = FusedSparseAttention(sparsity_pattern="n:m", n=2, m=4, use_flash_attention=use_flash_attention)(q, k, v)
    close(out, ops.attention(q, k, v, keep_n=2, keep_m=4, selection=kf.REFERENCE))
    assert np.abs(out - ops.attention(q, k, v)).max() > 0.01
    # All of every four are plain attention.
    close(FusedSparseAttention(n=4, m=4)(q, k, v, causal=False), ops.attention(q, k, v, causal=False))


def test_torch_tensors(rng):
    torch = pytest.importorskip("torch")
    q, k, v = (torch.from_numpy(rng.standard_normal((1, 9, 2, 8), np.float32)) for _ in "qkv")
    out = FusedSparseAttention(n=1, m=2)(q, k, v)
    assert isinstance(out, torch.Tensor)
    close(out, FusedSparseAttention(n=1, m=2)(q.numpy(), k.numpy(), v.numpy()))
    layout = torch.ones(3, 3, dtype=torch.bool).tril()
    close(FusedSparseAttention("block", block_layout=layout, block_size=3)(q, k, v), ops.attention(q, k, v))


@pytest.mark.parametrize("use_flash_attention", [True, False])
@pytest.mark.parametrize("leading", [(), (4,), (2, 1), (2, 2)])
def test_block_layouts_are_attention_under_their_mask(rng, qkv, leading, use_flash_attention):
    layout = rng.random((*leading, 4, 5)) < 0.5
    mask = np.repeat(np.repeat(layout, 10, -2), 8, -1)
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    if mask.shape[1] == 2:
        mask = np.repeat(mask, 2, 1)  # a layout for each K/V head
    attend = FusedSparseAttention("block", use_flash_attention=use_flash_attention, block_size=(10, 8))
    for causal in (True, False):
        expected = ops.attention(*qkv, attn_mask=mask, causal=causal, selection=kf.REFERENCE)
        close(attend(*qkv, block_layout=layout, causal=causal), expected)
        fixed = FusedSparseAttention("block", block_layout=layout, block_size=(10, 8))
        close(fixed(*qkv, causal=causal, window_size=(-1, -1)), expected)


def test_masked_blocks_are_not_read(qkv):
    q, k, v = qkv
    layout = np.tri(5, dtype=bool)
    layout[:, 2] = False
    attend = FusedSparseAttention("block", block_layout=layout, block_size=8)
    expected = attend(q, k, v)
    k[:, 16:24] = v[:, 16:24] = np.nan
    np.testing.assert_array_equal(attend(q, k, v), expected)


@pytest.mark.parametrize("kv_layout", ["HND", "NHD"])
def test_lists_of_pages_in_any_order(rng, kv_layout):
    q = rng.standard_normal((2, 4, 16), np.float32)
    shape = (8, 2, 4, 16) if kv_layout == "HND" else (8, 4, 2, 16)
    k, v = (rng.standard_normal(shape, np.float32) for _ in "kv")
    tables, lens = np.array([[3, 0, 7, 1], [2, 6, 5, 4]], np.int32), np.array([15, 9], np.int32)
    pages = [[[2, 0, 2], [3, -1, 1]], [[1, -1, -1], [2, 1, 0]]]
    attend = FusedSparseAttention("pages")
    options = {"block_tables": tables, "context_lens": lens, "kv_layout": kv_layout}
    out = attend(q, k, v, page_lists=pages, **options)
    mask = np.zeros((4, 2, 16), bool)
    for b, lists in enumerate(pages):
        for head, listed in enumerate(lists):
            for page in set(listed) - {-1}:
                mask[2 * head : 2 * head + 2, b, 4 * page : 4 * page + 4] = True
    close(out, ops.attention(q, k, v, attn_mask=mask, selection=kf.REFERENCE, **options))
    # Pages that no head lists may be gone: the last of the second sequence.
    tables[1, 3] = -1
    np.testing.assert_array_equal(attend(q, k, v, page_lists=np.array(pages), **options), out)


def test_what_is_refused(qkv):
    def refuses(match, call):
        with pytest.raises(kf.InvalidArgumentError, match=match):
            call()

    refuses("sparsity_pattern", lambda: FusedSparseAttention("blocks"))
    refuses("n, m", lambda: FusedSparseAttention(n=5, m=4))
    refuses("n, m", lambda: FusedSparseAttention(n=0, m=4))
    refuses("n: expected an integer, got '2'", lambda: FusedSparseAttention(n="2", m=4))
    refuses("block_size: expected an integer, got 1.5", lambda: FusedSparseAttention("block", block_size=1.5))
    refuses("block_size: expected an integer, got '8'", lambda: FusedSparseAttention("block", block_size=(8, "8")))
    of_numpys = FusedSparseAttention("block", block_size=np.int64(8))
    close(of_numpys(*qkv, block_layout=np.tri(5, dtype=bool)), ops.attention(*qkv))
    refuses("block_layout", lambda: FusedSparseAttention(block_layout=np.ones((1, 1), bool)))
    refuses("block_layout", lambda: FusedSparseAttention("block")(*qkv))
    refuses("block_layout", lambda: FusedSparseAttention()(*qkv, block_layout=np.ones((1, 1), bool)))
    refuses("dimensions", lambda: FusedSparseAttention("block")(*qkv, block_layout=[[True]]))
    in_eights = FusedSparseAttention("block", block_size=8)
    refuses("query blocks", lambda: in_eights(*qkv, block_layout=np.ones((4, 5), bool)))
    refuses("boolean", lambda: in_eights(*qkv, block_layout=np.ones((5, 5), np.int8)))
    refuses("page_lists", lambda: FusedSparseAttention("pages")(*qkv))
    refuses("page_lists", lambda: FusedSparseAttention("n:m")(*qkv, page_lists=[[[0]]]))
    pool, tables = np.zeros((2, 2, 4, 16), np.float32), {"block_tables": [[0, 1]], "context_lens": [8]}
    q = np.zeros((1, 4, 16), np.float32)

    def attend(lists):
        return FusedSparseAttention("pages")(q, pool, pool, page_lists=lists, **tables)

    for lists in ([[0]], [[[0.5]]], [[[0], [1, 2]]], [[[-2]]]):
        refuses("page_lists", lambda lists=lists: attend(lists))
    refuses("ascending", lambda: attend([[[2]]]))
    m = kf.KernelFusionManager()
    refuses("keep", lambda: m.fuse_attention(*qkv, keep=2))
    refuses("block_size", lambda: m.fuse_attention(*qkv, block_size=(8, 8)))


def test_use_flash_attention_is_a_switch():
    with pytest.raises(kf.InvalidArgumentError, match="use_flash_attention: expected True or False, got 'no'"):
        kf.FusedSparseAttention(use_flash_attention="no")
    with pytest.raises(kf.InvalidArgumentError, match="allow_fallback: expected True or False, got 'no'"):
        kf.Selection(allow_fallback="no")
