"""Every kernel of other projects, and ours in Triton, one row each. A call is offered to them in this order, before the
library's own kernels; a configuration says which families it may take."""

from __future__ import annotations

from ..triton import rows as triton
from . import flash_attn, flash_attn_3, flash_attn_ck, flashinfer, liger, vllm, vllm_triton, xformers
from .row import Row

TABLE: tuple[Row, ...] = (
    *triton.ROWS,  # use_triton, backend="triton"
    *flash_attn_3.ROWS,  # attention_backend="flash3"
    *xformers.ROWS,  # attention_backend="xformers"
    *flash_attn.ROWS,
    *flashinfer.ROWS,
    *vllm.ROWS,
    *flash_attn_ck.ROWS,  # ROCm
    *vllm_triton.ROWS,  # ROCm
    *liger.ROWS,
)
