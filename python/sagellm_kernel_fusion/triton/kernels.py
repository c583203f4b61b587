"""Our kernels in Triton. Correct for any sizes: what lies beyond a row or a matrix is masked. All arithmetic is in f32
but for the products, whose factors are of the operands' dtype and whose sums are f32; PRECISION says whether factors of
f32 may be rounded to TF32 ("tf32") or not ("ieee").

WIDE factors are made f32 before a product: Triton's interpreter (3.7) takes bf16 ones for the integers of their bits.
Rows lie `stride` elements apart, their elements side by side; matrices have both strides."""

import triton
import triton.language as tl


@triton.jit
def activate(x, KIND: tl.constexpr):
    """One of the library's activations, in f32."""
    if KIND == "silu":
        x = x * tl.sigmoid(x)
    elif KIND == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":  # 0.5 (1 + tanh(u)) = sigmoid(2 u)
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif KIND == "relu":
        x = tl.maximum(x, 0.0)
    return x


@triton.jit
def rms_norm(x_ptr, w_ptr, out_ptr, D, x_stride, out_stride, eps, offset, BLOCK: tl.constexpr):
    """x / sqrt(mean(x^2) + eps) * (weight + offset); a program a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, D, BLOCK):
        inside = start + columns < D
        x = tl.load(x_ptr + row * x_stride + start + columns, mask=inside, other=0.0).to(tl.float32)
        squares += x * x
    scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / D + eps)
    for start in range(0, D, BLOCK):
        inside = start + columns < D
        x = tl.load(x_ptr + row * x_stride + start + columns, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + start + columns, mask=inside, other=0.0).to(tl.float32) + offset
        tl.store(out_ptr + row * out_stride + start + columns, x * scale * w, mask=inside)


@triton.jit
def softmax(
    x_ptr, out_ptr, lse_ptr, D, x_stride, out_stride, scale, WITH_LSE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """exp(scale x - lse), lse = log sum exp(scale x), the sum kept with the maximum so far; a program a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    highest = -float("inf")
    total = 0.0
    for start in range(0, D, BLOCK):
        inside = start + columns < D
        x = tl.load(x_ptr + row * x_stride + start + columns, mask=inside, other=0.0).to(tl.float32) * scale
        x = tl.where(inside, x, -float("inf"))
        higher = tl.maximum(highest, tl.max(x, 0))
        base = tl.where(higher == -float("inf"), 0.0, higher)  # nothing finite so far: no inf - inf
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(x - base), 0)
        highest = higher
    base = tl.where(highest == -float("inf"), 0.0, highest)
    divisor = tl.where(total == 0.0, 1.0, total)  # a row of -inf alone gives zeros
    for start in range(0, D, BLOCK):
        inside = start + columns < D
        x = tl.load(x_ptr + row * x_stride + start + columns, mask=inside, other=0.0).to(tl.float32) * scale
        tl.store(out_ptr + row * out_stride + start + columns, tl.exp(x - base) / divisor, mask=inside)
    if WITH_LSE:
        tl.store(lse_ptr + row, base + tl.log(total))


@triton.jit
def linear(
    x_ptr, w_ptr, bias_ptr, norm_w_ptr, norm_b_ptr, out_ptr, M, N, K, x_stride, w_stride_k, w_stride_n, out_stride,
    eps, offset, NORM: tl.constexpr, BEFORE: tl.constexpr, WITH_BIAS: tl.constexpr, WITH_NORM_BIAS: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """activation(norm(x)) @ weight + bias; x [M, K], weight [K, N], a program a tile of [M, N]. NORM "none", "rms" or
    "layer"; every program finds the statistics of its own rows."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    outputs = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    x_rows = x_ptr + rows[:, None] * x_stride
    is_row = rows[:, None] < M
    mean = tl.zeros((BLOCK_M,), tl.float32)
    scale = tl.zeros((BLOCK_M,), tl.float32)
    if NORM == "layer":
        for start in range(0, K, BLOCK_K):
            inside = is_row & (start + inner[None, :] < K)
            mean += tl.sum(tl.load(x_rows + start + inner[None, :], mask=inside, other=0.0).to(tl.float32), 1)
        mean = mean / K
    if NORM != "none":
        for start in range(0, K, BLOCK_K):
            inside = is_row & (start + inner[None, :] < K)
            x = tl.load(x_rows + start + inner[None, :], mask=inside, other=0.0).to(tl.float32)
            x = tl.where(inside, x - mean[:, None], 0.0)
            scale += tl.sum(x * x, 1)
        scale = 1.0 / tl.sqrt(scale / K + eps)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + inner
        x = tl.load(x_rows + k[None, :], mask=is_row & (k[None, :] < K), other=0.0)
        w = tl.load(
            w_ptr + k[:, None].to(tl.int64) * w_stride_k + outputs[None, :] * w_stride_n,
            mask=(k[:, None] < K) & (outputs[None, :] < N),
            other=0.0,
        )
        if NORM != "none":
            y = (x.to(tl.float32) - mean[:, None]) * scale[:, None]
            y = y * (tl.load(norm_w_ptr + k, mask=k < K, other=0.0).to(tl.float32) + offset)[None, :]
            if WITH_NORM_BIAS:
                y += tl.load(norm_b_ptr + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
            x = y.to(x.dtype)
        if BEFORE != "none":
            x = activate(x.to(tl.float32), BEFORE).to(x.dtype)
        if WIDE:
            x, w = x.to(tl.float32), w.to(tl.float32)
        total = tl.dot(x, w, total, input_precision=PRECISION)
    if WITH_BIAS:
        total += tl.load(bias_ptr + outputs, mask=outputs < N, other=0.0).to(tl.float32)[None, :]
    tl.store(out_ptr + rows[:, None] * out_stride + outputs[None, :], total, mask=is_row & (outputs[None, :] < N))


@triton.jit
def gate_and_up(
    x_ptr, gate_ptr, up_ptr, out_ptr, M, N, K, x_stride, gate_stride_k, gate_stride_n, up_stride_k, up_stride_n,
    out_stride, KIND: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """activation(x @ gate) * (x @ up): both products over one reading of x; a program a tile of [M, N]."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    outputs = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    is_row = rows[:, None] < M
    is_output = outputs[None, :] < N
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + rows[:, None] * x_stride + k[None, :], mask=is_row & (k[None, :] < K), other=0.0)
        down = k[:, None].to(tl.int64)
        inside = (k[:, None] < K) & is_output
        gate_w = tl.load(gate_ptr + down * gate_stride_k + outputs[None, :] * gate_stride_n, mask=inside, other=0.0)
        up_w = tl.load(up_ptr + down * up_stride_k + outputs[None, :] * up_stride_n, mask=inside, other=0.0)
        if WIDE:
            x, gate_w, up_w = x.to(tl.float32), gate_w.to(tl.float32), up_w.to(tl.float32)
        gate = tl.dot(x, gate_w, gate, input_precision=PRECISION)
        up = tl.dot(x, up_w, up, input_precision=PRECISION)
    tl.store(
        out_ptr + rows[:, None] * out_stride + outputs[None, :], activate(gate, KIND) * up, mask=is_row & is_output
    )
