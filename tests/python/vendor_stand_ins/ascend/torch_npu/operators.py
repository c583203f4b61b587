"""What the operators compute, and what they refuse."""

from __future__ import annotations

import torch

NAMES = (
    "npu_rms_norm", "npu_add_rms_norm", "npu_add_layer_norm", "npu_swiglu", "npu_silu", "npu_gelu", "npu_fast_gelu",
    "npu_rotary_mul", "npu_scatter_nd_update_", "npu_fusion_attention", "npu_fused_infer_attention_score",
    "npu_weight_quant_batchmatmul", "npu_quant_matmul", "npu_dynamic_quant", "npu_ffn",
)  # fmt: skip
_F16 = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float32, *_F16)


def _require(condition, message: str) -> None:
    if not condition:
        raise RuntimeError(f"stand-in of torch_npu: {message}")


# Norms


def npu_rms_norm(self, gamma, epsilon=1e-6):
    _require(self.dtype in _FLOATS and gamma.dtype == self.dtype, f"rms_norm of {self.dtype} with {gamma.dtype}")
    _require(self.shape[-gamma.dim() :] == gamma.shape, "gamma is not like x's last dimensions")
    rstd = (self.float().pow(2).mean(-1, keepdim=True) + epsilon).rsqrt()
    return (self.float() * rstd * gamma.float()).to(self.dtype), rstd


def npu_add_rms_norm(x1, x2, gamma, epsilon=1e-6):
    _require(x1.shape == x2.shape and x1.dtype == x2.dtype, "x1 and x2 are not alike")
    total = (x1.float() + x2.float()).to(x1.dtype)
    y, rstd = npu_rms_norm(total, gamma, epsilon)
    return y, rstd, total


def npu_add_layer_norm(x1, x2, gamma, beta, epsilon=1e-5, additional_output=False):
    _require(x1.shape == x2.shape and x1.dtype == x2.dtype == gamma.dtype == beta.dtype, "operands are not alike")
    total = x1.float() + x2.float()
    mean = total.mean(-1, keepdim=True)
    rstd = (total.var(-1, unbiased=False, keepdim=True) + epsilon).rsqrt()
    y = (total - mean) * rstd * gamma.float() + beta.float()
    return y.to(x1.dtype), mean, rstd, total.to(x1.dtype) if additional_output else x1.new_empty(0)


# Activations


def npu_swiglu(self, dim=-1):
    _require(self.dtype in _FLOATS and self.is_contiguous(), "swiglu takes contiguous floats")
    _require(self.shape[dim] % 2 == 0, "swiglu splits an even dimension")
    gate, up = self.float().chunk(2, dim)
    return (torch.nn.functional.silu(gate) * up).to(self.dtype)


def npu_silu(self):
    return torch.nn.functional.silu(self)


def npu_gelu(self, *, approximate="none"):
    _require(approximate in ("none", "tanh"), f"approximate {approximate}")
    # Not in f32: PyTorch's kernel for the CPU doubles x before it halves it, and 3e38 becomes infinite.
    return torch.nn.functional.gelu(self.double(), approximate=approximate).to(self.dtype)


def npu_fast_gelu(self):
    return self * torch.sigmoid(1.702 * self)


def npu_ffn(x, weight1, weight2, activation, **options):
    _require(activation != "swiglu" or x.dtype is torch.float16, "swiglu within ffn is for float16")
    _require(activation == "swiglu" and not any(v is not None for v in options.values()), "not in this stand-in")
    return npu_swiglu(x @ weight1) @ weight2


def npu_rotary_mul(self, r1, r2, rotary_mode="half", rotate=None):
    _require(self.dim() == 4 and r1.dim() == 4 and r1.shape == r2.shape, "rotary_mul takes 4 dimensions")
    _require(self.dtype == r1.dtype == r2.dtype, "rotary_mul takes one dtype")
    _require(self.shape[-1] == r1.shape[-1] and self.shape[-1] % 2 == 0 and self.shape[-1] <= 896, "head_dim")
    _require(rotary_mode == "half" and self.is_contiguous(), "rotary_mode, or x is not contiguous")
    x, cos, sin = self.float(), r1.float(), r2.float()
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat((-second, first), -1) * sin).to(self.dtype)


def npu_scatter_nd_update_(self, indices, updates):
    _require(self.is_contiguous() and indices.dim() == 2 and indices.shape[1] == 1, "indices are not [rows, 1]")
    _require(indices.dtype in (torch.int32, torch.int64), f"indices of {indices.dtype}")
    _require(updates.dtype == self.dtype and updates.shape[1:] == self.shape[1:], "updates are not like rows")
    _require(bool((indices >= 0).all() and (indices < self.shape[0]).all()), "an index outside")
    self[indices[:, 0].long()] = updates
    return self


# Attention


def _scores(q, k, scale):
    """q [B, N, S, D], k [B, Nkv, S, D]: f32 scores; heads of a group share keys."""
    group = q.shape[1] // k.shape[1]
    return q.float() @ k.float().repeat_interleave(group, 1).transpose(-1, -2) * scale


def _hidden(sparse_mode, mask, rows, columns):
    """Which scores take no part, as the mode and its mask say."""
    if mask is None:
        return None
    if sparse_mode in (2, 3, 4):
        _require(
            mask.shape[-2:] == (2048, 2048) and mask.dtype is torch.bool, "sparse modes 2 to 4 take a bool mask of 2048"
        )
        _require(
            torch.equal(mask.view(2048, 2048), torch.ones(2048, 2048, dtype=torch.bool).triu(1)),
            "not above the diagonal",
        )
        _require(sparse_mode in (2, 3), "mode 4 is not in this stand-in")
        return torch.ones(rows, columns, dtype=torch.bool).triu(1 + (columns - rows if sparse_mode == 3 else 0))
    _require(
        mask.dtype in (torch.bool, torch.int8, torch.uint8) and mask.is_contiguous(), "the mask's dtype or strides"
    )
    _require(mask.shape[-2:] == (rows, columns), f"a mask {list(mask.shape)} for {rows} x {columns} scores")
    _require(mask.dim() < 4 or mask.shape[1] == 1, "a mask has one head")
    return mask.bool()


def _attend(q, k, v, scale, hidden):
    scores = _scores(q, k, scale)
    if hidden is not None:
        # Rows that see nothing are not repaired (inner_precise 0): they see everything.
        scores = scores + torch.where(hidden, torch.tensor(-1e30), torch.tensor(0.0))
    lse = torch.logsumexp(scores, -1, keepdim=True)
    group = q.shape[1] // v.shape[1]
    return torch.softmax(scores, -1) @ v.float().repeat_interleave(group, 1), lse


def npu_fusion_attention(
    query, key, value, head_num, input_layout, pse=None, padding_mask=None, atten_mask=None, scale=1.0, keep_prob=1.0,
    pre_tockens=2147483647, next_tockens=2147483647, inner_precise=0, prefix=None, actual_seq_qlen=None,
    actual_seq_kvlen=None, sparse_mode=0, *rest, **others,
):  # fmt: skip
    _require(input_layout == "BSND" and query.shape[2] == head_num, "BSND, with head_num of query")
    _require(query.dtype in _FLOATS and query.dtype == key.dtype == value.dtype, "one dtype")
    if sparse_mode in (2, 3):
        _require(atten_mask is not None, "sparse modes 2 and 3 take a mask")
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    # Without a mask the windows mean nothing: every key is seen.
    out, _ = _attend(q, k, v, scale, _hidden(sparse_mode, atten_mask, q.shape[2], k.shape[2]))
    scores = _scores(q, k, scale)
    if (hidden := _hidden(sparse_mode, atten_mask, q.shape[2], k.shape[2])) is not None:
        scores = scores.masked_fill(hidden, -float("inf"))
    largest = scores.amax(-1, keepdim=True)
    total = (scores - largest).exp().sum(-1, keepdim=True)
    empty = query.new_empty(0)
    return (
        out.transpose(1, 2).to(query.dtype).contiguous(), largest.expand(*largest.shape[:-1], 8).contiguous(),
        total.expand(*total.shape[:-1], 8).contiguous(), empty, 0, 0, 0,
    )  # fmt: skip


def npu_fused_infer_attention_score(
    query, key, value, *, atten_mask=None, actual_seq_lengths=None, actual_seq_lengths_kv=None, block_table=None,
    num_heads=1, scale=1.0, input_layout="BSH", num_key_value_heads=0, sparse_mode=0, block_size=0,
    softmax_lse_flag=False, key_antiquant_scale=None, value_antiquant_scale=None, key_antiquant_mode=0,
    value_antiquant_mode=0, **others,
):  # fmt: skip
    unknown = [n for n, v in others.items() if v not in (None, 0, 2147483647)]
    _require(not unknown, f"{unknown} are not in this stand-in")
    _require(query.dtype in _F16 and key.dtype == value.dtype, "queries of f16 or bf16, keys and values of one dtype")
    if key.dtype is torch.int8:
        _require(block_table is not None and query.shape[1] == 1, "int8 without pages, or of several queries")
        _require(key_antiquant_mode == value_antiquant_mode, "modes of keys and values")
        heads = num_key_value_heads or num_heads
        key, value = (
            _dequantized(x, scale, key_antiquant_mode, heads, query.dtype)
            for x, scale in ((key, key_antiquant_scale), (value, value_antiquant_scale))
        )
    else:
        _require(query.dtype == key.dtype, "one dtype")
    _require(all(x.is_contiguous() for x in (query, key, value)), "contiguous operands")
    kv_heads = num_key_value_heads or num_heads
    _require(num_heads <= 256 and num_heads % kv_heads == 0 and num_heads // kv_heads <= 64, "heads")
    batch, rows = query.shape[:2]
    if input_layout == "BSND":
        _require(query.shape[2] == num_heads and key.shape[2] == value.shape[2] == kv_heads, "heads of the operands")
    else:
        _require(input_layout == "BSH" and query.shape[2] % num_heads == 0, f"{input_layout} is not in this stand-in")
    width = query.numel() // (batch * rows * num_heads)
    _require(width <= 512 and width % 16 == 0, f"head_dim {width}")
    _require(sparse_mode in (0, 1, 2, 3), f"sparse_mode {sparse_mode}")
    _require(sparse_mode == 0 or rows == 1 or atten_mask is not None, "sparse modes 1 to 3 take a mask")
    q = query.view(batch, rows, num_heads, width).transpose(1, 2)
    if block_table is None:
        _require(actual_seq_lengths_kv is None, "lengths of keys are not in this stand-in without pages")
        keys = [(key[i : i + 1], value[i : i + 1]) for i in range(batch)]
    else:
        keys = _pages(key, value, kv_heads * width, rows, batch, block_table, block_size, actual_seq_lengths_kv)
    outs, sums = [], []
    for i, (k, v) in enumerate(keys):
        k, v = (x.reshape(1, -1, kv_heads, width).transpose(1, 2) for x in (k, v))
        mask = atten_mask
        if mask is not None and sparse_mode < 2 and mask.dim() == 4 and mask.shape[0] > 1:
            mask = mask[i : i + 1]
        hidden = None if rows == 1 and sparse_mode != 1 else _hidden(sparse_mode, mask, rows, k.shape[2])
        out, lse = _attend(q[i : i + 1], k, v, scale, hidden)
        outs.append(out.transpose(1, 2))
        sums.append(lse)
    out = torch.cat(outs).to(query.dtype).reshape(query.shape)
    return out, torch.cat(sums) if softmax_lse_flag else torch.zeros(1)


def _dequantized(pool, scale, mode, heads, dtype):
    """A pool [blocks, block size, H] of int8 in f32, by scales that are as the mode has them."""
    blocks, size, wide = pool.shape
    shapes = {0: (1,), 2: (heads,), 4: (blocks, size), 5: (blocks, heads, size)}
    _require(scale is not None and scale.shape == shapes[mode], f"mode {mode}: scales")
    _require(scale.dtype is (torch.float32 if mode > 2 else dtype) and scale.is_contiguous(), "the scales' dtype")
    _require((wide // heads) % 32 == 0 and size % 32 == 0, "int8: head_dim and block_size are multiples of 32")
    if mode == 4:
        scale = scale[:, :, None]
    elif mode == 5:
        scale = scale.transpose(1, 2)
    return (pool.view(blocks, size, heads, -1).float() * scale[..., None].float()).view(blocks, size, wide)


def _pages(key, value, row, queries, batch, block_table, block_size, lengths):
    _require(key.dim() == 3 and key.shape[2] == row and key.shape == value.shape, "a cache [blocks, block_size, H]")
    _require(key.shape[1] == block_size and block_size <= 512, "block_size")
    _require(block_size % (128 if queries > 1 else 16) == 0, f"block_size {block_size} for {queries} queries")
    _require(row <= 65535, "K/V heads times head_dim")
    _require(block_table.dtype is torch.int32 and block_table.shape[0] == batch, "block_table int32, a row a sequence")
    _require(lengths is not None and len(lengths) == batch, "lengths of keys with pages")
    _require(all(n <= block_table.shape[1] * block_size for n in lengths), "lengths beyond the table")
    _require(bool((block_table >= 0).all() and (block_table < key.shape[0]).all()), "a block that is not there")
    gathered = []
    for table, n in zip(block_table.long(), lengths, strict=True):
        _require(n > 0, "a sequence without keys")
        gathered.append(tuple(x[table].reshape(-1, row)[:n] for x in (key, value)))
    return gathered


# Low-bit


def npu_dynamic_quant(input, **options):
    _require(input.dtype in _F16 and all(v in (None, "pertoken", 0.0) for v in options.values()), "dynamic_quant")
    scale = input.float().abs().amax(-1) / 127
    codes = (input.float() / scale.clamp_min(1e-30)[..., None]).round().clamp(-128, 127).to(torch.int8)
    return codes, scale


def npu_quant_matmul(x1, x2, scale, *, pertoken_scale=None, bias=None, output_dtype=None, **others):
    _require(x1.dtype is torch.int8 and x2.dtype is torch.int8, "int8 operands")
    _require(x2.is_contiguous() or x2.t().is_contiguous(), "x2 is neither contiguous nor transposed")
    _require(max(x2.shape) <= 65535, "K and N up to 65535")
    _require(all(v is None for v in others.values()) and bias is None, "not in this stand-in")
    _require(scale.dtype is torch.float32 and scale.shape in ((x2.shape[1],), (1,)), "scale: f32, one or one an output")
    product = (x1.long() @ x2.long()).float() * scale
    if output_dtype is None:  # the default is int8
        return product.round().clamp(-128, 127).to(torch.int8)
    _require(pertoken_scale is not None and pertoken_scale.shape == x1.shape[:1], "a scale a token")
    return (product * pertoken_scale[:, None]).to(_DTYPES[output_dtype])


_DTYPES = {5: torch.float16, 15: torch.bfloat16, 6: torch.float32}  # ScalarType's codes


def _codes(weight):
    """int8 [K, N] of a weight that is whole, or whole and transposed: of int32 eight codes each, the first in the
    lowest bits, along K where it is transposed and along N where not."""
    _require(weight.is_contiguous() or weight.t().is_contiguous(), "weight is neither contiguous nor transposed")
    if weight.dtype is torch.int8:
        return weight
    _require(weight.dtype is torch.int32 and min(weight.shape) > 1, f"weight of {weight.dtype} {list(weight.shape)}")
    transposed = weight.stride(0) == 1
    rows = weight.t() if transposed else weight
    fours = rows.unsqueeze(-1) >> torch.arange(0, 32, 4) & 15
    codes = torch.where(fours > 7, fours - 16, fours).to(torch.int8).flatten(1)
    return codes.t() if transposed else codes


def npu_weight_quant_batchmatmul(
    x, weight, antiquant_scale, antiquant_offset=None, quant_scale=None, quant_offset=None, bias=None,
    antiquant_group_size=0, inner_precise=0, weight_dtype=None,
):  # fmt: skip
    _require(x.dtype in _F16 and weight.dim() == 2, "x f16 or bf16, weight [K, N]")
    weight = _codes(weight)
    _require(x.is_contiguous() or x.t().is_contiguous(), "x is neither contiguous nor transposed")
    _require(x.shape[1] == weight.shape[0] and max(weight.shape) <= 65535, "K and N up to 65535, K that of x")
    _require(antiquant_scale.dtype == x.dtype, "scales like x")
    _require(bias is None or bias.dtype == (torch.float32 if x.dtype is torch.bfloat16 else x.dtype), "bias")
    inner, outer = weight.shape
    if antiquant_group_size:
        _require(antiquant_group_size % 32 == 0 and 32 <= antiquant_group_size <= inner - 1, "group size")
        _require(antiquant_scale.shape == (-(-inner // antiquant_group_size), outer), "scales [groups, N]")
        group = antiquant_group_size
    else:
        _require(antiquant_scale.shape in ((outer,), (1, outer), (1,)), "scales [N]")
        antiquant_scale, group = antiquant_scale.reshape(1, -1), inner
        antiquant_offset = None if antiquant_offset is None else antiquant_offset.reshape(1, -1)

    def spread(values):
        return values.float().repeat_interleave(group, 0)[:inner]

    values = weight.float()
    if antiquant_offset is not None:
        _require(
            antiquant_offset.shape == antiquant_scale.shape and antiquant_offset.dtype == x.dtype, "offsets like scales"
        )
        values = values + spread(antiquant_offset)
    out = x.float() @ (values * spread(antiquant_scale))
    return (out if bias is None else out + bias.float()).to(x.dtype)
