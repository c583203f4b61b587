"""The ops as functions. Operands are arrays of NumPy, torch, JAX or any library with `__dlpack__`, taken without a
copy, and run where they lie (on a GPU on torch's current stream); what is made is of the first array's kind. Weights of
linear layers may also be `GgufTensor`s or `QuantizedTensor`s or `SparseTensor`s, keys and values `QuantizedTensor`s;
their scales, masks and so on come with them.

Everywhere: activations are f32, f16 or bf16 (computed in f32), with a contiguous last dimension and free row strides.
`out=` gives the memory to write to. An optional output is wanted with True, or given as an array. `selection` restricts
the kernels (`Selection`). A call that no allowed kernel serves raises, listing each kernel's reason. Wrong operands
raise InvalidArgumentError before anything is written.
"""

from __future__ import annotations

from . import _kf
from .call import Selection, call, function_of


def __getattr__(name: str):
    # An op that has no function of its own below gets the one that its reflection describes.
    if name not in _kf.ops():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = function = function_of(name)
    return function


# Linear layers


def linear(
    x, weight, bias=None, residual=None, out=None, *, norm="none", norm_weight=None, norm_bias=None, eps=1e-5,
    norm_weight_offset=0.0, pre_activation="none", activation="none", weight_scales=None, weight_zeros=None,
    weight_group_size=0, weight_mask=None, weight_offsets=None, weight_n=0, weight_m=0, lora_a=None, lora_b=None,
    lora_index=None, lora_scale=1.0, input_quantization="none", selection: Selection | None = None,
):  # fmt: skip
    """out = act( y @ weight^T + lora_scale * (y @ lora_a^T) @ lora_b^T + bias ) + residual,   y = pro(x)

    x [num_tokens, in], weight [out, in] (any strides, a GgufTensor, QuantizedTensor or SparseTensor), bias [out],
    residual and out [num_tokens, out]. pro is nothing, a norm over x's rows (`norm` "rms" or "layer" with norm_weight
    [in], and norm_bias [in] for "layer") or a `pre_activation`. Activations: "none", "silu", "gelu", "gelu_tanh" and
    "relu".

    input_quantization="int8" (here and in the other linear layers) rounds y to 8 bits before the product, in a scale a
    token, max |y| / 127; products are then summed in integers. A result changes by at most scale / 2 * sum |w|, for
    normal values by some 1 % of its deviation. For weights i8, int4, q8_0, q4_0 and q4_1.
    """
    return call("linear", locals())


def qkv_linear(
    x, q_weight, k_weight, v_weight, q_bias=None, k_bias=None, v_bias=None, q=None, k=None, v=None, *, norm="none",
    norm_weight=None, norm_bias=None, eps=1e-5, norm_weight_offset=0.0, pre_activation="none", q_weight_scales=None,
    q_weight_zeros=None, q_weight_group_size=0, k_weight_scales=None, k_weight_zeros=None, k_weight_group_size=0,
    v_weight_scales=None, v_weight_zeros=None, v_weight_group_size=0, q_weight_mask=None, q_weight_offsets=None,
    q_weight_n=0, q_weight_m=0, k_weight_mask=None, k_weight_offsets=None, k_weight_n=0, k_weight_m=0,
    v_weight_mask=None, v_weight_offsets=None, v_weight_n=0, v_weight_m=0, input_quantization="none",
    selection: Selection | None = None,
):  # fmt: skip
    """q, k, v = pro(x) @ q_weight^T + q_bias, and so on: the three layers before attention, in one call.

    x [num_tokens, in]; weights [q_out, in], [k_out, in], [v_out, in]. Returns (q, k, v), [num_tokens, *_out].
    """
    return call("qkv_linear", locals())


def gated_ffn(
    x, gate_weight, up_weight, down_weight, residual=None, out=None, *, norm="none", norm_weight=None, norm_bias=None,
    eps=1e-5, norm_weight_offset=0.0, pre_activation="none", activation="silu", gate_weight_scales=None,
    gate_weight_zeros=None, gate_weight_group_size=0, up_weight_scales=None, up_weight_zeros=None,
    up_weight_group_size=0, down_weight_scales=None, down_weight_zeros=None, down_weight_group_size=0,
    gate_weight_mask=None, gate_weight_offsets=None, gate_weight_n=0, gate_weight_m=0, up_weight_mask=None,
    up_weight_offsets=None, up_weight_n=0, up_weight_m=0, down_weight_mask=None, down_weight_offsets=None,
    down_weight_n=0, down_weight_m=0, input_quantization="none", selection: Selection | None = None,
):  # fmt: skip
    """out = ( act(y @ gate_weight^T) * (y @ up_weight^T) ) @ down_weight^T + residual,   y = pro(x)

    The gated feed-forward network (Shazeer, "GLU Variants Improve Transformer", 2020). x [num_tokens, hidden]; gate and
    up [intermediate, hidden]; down [hidden_out, intermediate].
    """
    return call("gated_ffn", locals())


def lm_head_argmax(
    x, weight, ids=None, max=None, *, norm="none", norm_weight=None, norm_bias=None, eps=1e-5,
    norm_weight_offset=0.0, pre_activation="none", weight_scales=None, weight_zeros=None, weight_group_size=0,
    weight_mask=None, weight_offsets=None, weight_n=0, weight_m=0, input_quantization="none",
    selection: Selection | None = None,
):  # fmt: skip
    """ids = argmax over the rows of weight of pro(x) . weight: the last layer and the greedy choice; no logits written.

    x [num_tokens, hidden], weight [vocab, hidden]; ids i32 [num_tokens]; max=True also gives the winning logit, f32.
    The lowest id wins among equals, a NaN before all else (as torch.argmax).
    """
    return call("lm_head_argmax", locals())


# Norms


def rms_norm(
    x, weight, residual=None, out=None, residual_out=None, static_scale=None, out_scales=None, *, eps=1e-6,
    weight_offset=0.0, out_dtype="none", selection: Selection | None = None,
):  # fmt: skip
    """h = x + residual;  out = h / sqrt(mean(h^2) + eps) * (weight_offset + weight)   (Zhang and Sennrich, 2019)

    x [..., n], weight [n], residual like x. residual_out=True also returns h. With out_dtype "i8", "fp8_e4m3" or
    "fp8_e5m2", out and out_scales as `quantize` has them.
    """
    return call("rms_norm", locals())


def layer_norm(
    x, weight, bias=None, residual=None, out=None, residual_out=None, static_scale=None, out_scales=None, *, eps=1e-5,
    out_dtype="none", selection: Selection | None = None,
):  # fmt: skip
    """h = x + residual;  out = (h - mean(h)) / sqrt(var(h) + eps) * weight + bias   (Ba et al., 2016)

    x [..., n], weight and bias [n], residual like x; var is the biased one. residual_out=True also returns h. With
    out_dtype "i8", "fp8_e4m3" or "fp8_e5m2", out and out_scales as `quantize` has them.
    """
    return call("layer_norm", locals())


# Elementwise and softmax


def binary(a, b, out=None, *, kind="add", selection: Selection | None = None):
    """out = a + b, or a * b with kind "mul"; a and b of the same shape and dtype. Rounded once, from f32."""
    return call("binary", locals())


def activation(
    x, out=None, static_scale=None, out_scales=None, *, kind="silu", out_dtype="none",
    selection: Selection | None = None,
):  # fmt: skip
    """out = act(x): "silu", "gelu" (erf), "gelu_tanh", "relu" or "none". With out_dtype "i8", "fp8_e4m3" or "fp8_e5m2",
    out and out_scales as `quantize` has them."""
    return call("activation", locals())


def gated_activation(
    gate, up, out=None, static_scale=None, out_scales=None, *, kind="silu", out_dtype="none",
    selection: Selection | None = None,
):  # fmt: skip
    """out = act(gate) * up: SwiGLU, GeGLU, ReGLU. gate and up [..., n] may be halves of one tensor. With out_dtype
    "i8", "fp8_e4m3" or "fp8_e5m2", out and out_scales as `quantize` has them."""
    return call("gated_activation", locals())


def softmax(x, out=None, lse=None, mask=None, *, scale=1.0, selection: Selection | None = None):
    """out = exp(z - lse) over the last dimension, z = scale x; lse=True also returns log sum exp(z), f32 [...].

    mask, broadcast to x: boolean hides where it is False, f32, f16 or bf16 is added to z. A row that is -inf
    throughout, or hidden whole, gives zeros and lse -inf. out may be x.
    """
    return call("softmax", locals())


def dequantize(x, out=None, *, selection: Selection | None = None):
    """out = x in f32 (or the dtype of `out`: f32, f16, bf16), from a float dtype or a GgufTensor. x [rows, n]."""
    return call("dequantize", locals())


def quantize(
    x, out=None, static_scale=None, out_scales=None, *, out_dtype="i8", selection: Selection | None = None
):  # fmt: skip
    """out = x / scale to nearest even, within [-128, 127] ("i8"), 448 ("fp8_e4m3") or 57344 ("fp8_e5m2").

    x [..., n]. The scale is static_scale, f32 [1], or each row's largest magnitude / 127, 448 or 57344: then returns
    (out, out_scales), f32 [...]. What is not finite takes no part in a scale: an infinity becomes the nearest end, a
    NaN 0 (in fp8 a NaN). For weights, which have other groups, there is `kf.quantize`.
    """
    return call("quantize", locals())


# Attention


def attention(
    q, k, v, out=None, lse=None, *, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, context_lens=None,
    kv_layout="HND", softmax_scale=0.0, causal=True, window_left=-1, window_right=-1, softcap=0.0, alibi_slopes=None,
    attn_mask=None, sinks=None, block_layout=None, block_size_q=0, block_size_k=0, keep_n=0, keep_m=0,
    k_scales=None, k_zeros=None, k_group_size=0, v_scales=None, v_zeros=None, v_group_size=0,
    selection: Selection | None = None,
):  # fmt: skip
    """out[i] = sum over keys j of softmax_j(softmax_scale q[i] . k[j]) v[j], with an online softmax in f32.

    dense   q [batch, seqlen_q, num_heads, head_dim], k and v [batch, seqlen_k, num_kv_heads, head_dim]
    packed  q [total_q, num_heads, head_dim], k and v [total_k, ...] with cu_seqlens_q and cu_seqlens_k, i32 [batch + 1]
    paged   q [total_q, num_heads, head_dim], k and v page pools in `kv_layout` ("HND" [num_pages, num_kv_heads,
            page_size, head_dim] or "NHD" [num_pages, page_size, num_kv_heads, head_dim]) with block_tables i32
            [batch, max_pages] (-1 pads) and context_lens i32 [batch]; cu_seqlens_q where a sequence has several queries

    Query head h reads K/V head h / (num_heads / num_kv_heads). v may have a head_dim of its own, which is out's.
    softmax_scale 0 means 1 / sqrt(head_dim). lse=True also returns the natural log-sum-exp, f32: dense [batch,
    num_heads, seqlen_q], else [num_heads, total_q]. A row that may attend nothing gives zeros and lse -inf.

    Row i stands at key p = i + seqlen_k - seqlen_q and sees keys p - window_left .. p + window_right (-1: all; causal:
    none after p). Scores, in this order: softcap > 0 makes them softcap tanh(s / softcap); alibi_slopes f32 [num_heads]
    or [batch, num_heads] adds -slope |p - j|; attn_mask forbids (boolean, False) or is added (f32, f16, bf16): dense
    [batch, num_heads, seqlen_q, seqlen_k], the first three of any size 1, else [num_heads or 1, total_q, columns] with
    a column for each key of the longest sequence. sinks f32 [num_heads] are logits that join each row's softmax and
    carry no value.

    block_layout cuts the queries of each sequence into blocks of block_size_q tokens (0: all are one), its keys into
    blocks of block_size_k, and says which of these each of those attends: boolean [batch or 1, num_heads, num_kv_heads
    or 1, query blocks, key blocks], or int32 [..., query blocks, n], lists of key blocks, ascending, -1 after the last.
    What no row attends is not read. A list of pages a head over a paged cache has block_size_k = page_size.

    keep_m > 0 keeps the keep_n largest of every keep_m neighbouring scores of a row, as the above leaves them, groups
    counted from the first key; of equal scores the earlier, a NaN counting as infinity. The others weigh zero.

    k and v may be quantized: `QuantizedTensor`s (`quantize_kv`), or codes with their scales, zeros and group sizes.
    """
    return call("attention", locals())


def attention_scores(
    q, k, scores=None, *, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, context_lens=None, kv_layout="HND",
    softmax_scale=0.0, softcap=0.0, seqlen_k_max=0, k_scales=None, k_zeros=None, k_group_size=0,
    selection: Selection | None = None,
):  # fmt: skip
    """scores = softmax_scale q . k (capped, with softcap), written whole: f32, dense [batch, num_heads, seqlen_q,
    seqlen_k_max], else [num_heads, total_q, seqlen_k_max]; columns beyond a sequence's keys are -inf. The first of the
    three primitives that `attention` fuses."""
    return call("attention_scores", locals())


def attention_mask(
    scores, out=None, *, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, context_lens=None, kv_layout="HND",
    seqlen_k=0, causal=True, window_left=-1, window_right=-1, alibi_slopes=None, attn_mask=None, block_layout=None,
    block_size_q=0, block_size_k=0, keep_n=0, keep_m=0, selection: Selection | None = None,
):  # fmt: skip
    """out = scores, biased by alibi_slopes and attn_mask, where a row may attend (see `attention`) and they are kept;
    -inf elsewhere.
    seqlen_k: keys a sequence, dense form only."""
    return call("attention_mask", locals())


def attention_values(
    probs, v, out=None, *, cu_seqlens_q=None, cu_seqlens_k=None, block_tables=None, context_lens=None, kv_layout="HND",
    out_dtype="f32", v_scales=None, v_zeros=None, v_group_size=0, selection: Selection | None = None,
):  # fmt: skip
    """out[t, h] = sum over keys j of probs[h, t, j] v[j, h / group]."""
    return call("attention_values", locals())


def merge_attention(out_a, lse_a, out_b, lse_b, out=None, lse=None, *, selection: Selection | None = None):
    """Attention over two sets of keys from the attention over each: the outputs weighted by exp(lse_a), exp(lse_b).

    out_a and out_b [batch, seqlen_q, num_heads, head_dim] with lse [batch, num_heads, seqlen_q], or [total_q,
    num_heads, head_dim] with lse [num_heads, total_q]. lse=True also returns log(exp(lse_a) + exp(lse_b)). A part
    whose lse is -inf has none in the result; where both are, the result is zero. For batches with a common prefix
    (cascade inference).
    """
    return call("merge_attention", locals())


# Rotary positions and the K/V cache


def rope(
    x, positions, cos, sin, norm_weight=None, out=None, *, norm_eps=1e-6, norm_weight_offset=0.0, interleaved=False,
    selection: Selection | None = None,
):  # fmt: skip
    """Rotary position embedding (Su et al., 2021): pairs turn to (x1 cos - x2 sin, x2 cos + x1 sin).

    x [num_tokens, num_heads, head_dim], positions i32 [num_tokens], cos and sin f32 [max_position, rotary_dim / 2].
    Half-split pairs (i, i + rotary_dim / 2), or with `interleaved` (2i, 2i + 1). With norm_weight [head_dim] each
    head is RMS-normalised first.
    """
    return call("rope", locals())


def append_kv(
    k, v, slot_mapping, k_cache, v_cache, k_cache_scales=None, k_cache_zeros=None, v_cache_scales=None,
    v_cache_zeros=None, *, kv_layout="HND", k_cache_group_size=0, v_cache_group_size=0,
    selection: Selection | None = None,
):  # fmt: skip
    """Writes k and v [num_tokens, num_kv_heads, head_dim] to page pools, in place.

    Slot s is page s / page_size, row s % page_size; a negative slot is skipped. slot_mapping i64 or i32 [num_tokens].
    The caches may be quantized: `QuantizedTensor`s (`quantized_cache`), or codes with their scales, zeros and group
    sizes. Scales that have each slot of the pool are computed and written; scales that serve all slots are read.
    """
    return call("append_kv", locals())


def rope_append(
    q, k, v, positions, cos, sin, slot_mapping, k_cache, v_cache, q_norm_weight=None, k_norm_weight=None, q_out=None,
    k_cache_scales=None, k_cache_zeros=None, v_cache_scales=None, v_cache_zeros=None, *, norm_eps=1e-6,
    norm_weight_offset=0.0, interleaved=False, kv_layout="HND", k_cache_group_size=0, v_cache_group_size=0,
    selection: Selection | None = None,
):  # fmt: skip
    """Returns rope(q); writes rope(k) and v to the caches, quantized where these are: `rope` twice and `append_kv`, in
    one call."""
    return call("rope_append", locals())


# Tokens in and out


def embedding(ids, table, out=None, *, scale=1.0, selection: Selection | None = None):
    """out[t] = scale * table[ids[t]]; ids i32 [num_tokens], table [vocab, hidden] (or a GgufTensor: f32 out)."""
    return call("embedding", locals())


def argmax(logits, ids=None, max=None, *, selection: Selection | None = None):
    """ids[t] = the lowest index of the largest logit (a NaN counts as largest), i32; max=True also gives the logit."""
    return call("argmax", locals())


def sample(
    logits, ids=None, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, step=0,
    selection: Selection | None = None,
):  # fmt: skip
    """Draws a token a row from softmax(logits / temperature) after top_k, top_p and min_p, in this order.

    logits [batch, vocab]; ids i32 [batch]. temperature 0 is greedy; top_k 0 keeps all. The draw is a function of
    (seed, step, row) alone, the same on every machine.
    """
    return call("sample", locals())
