"""A stand-in for the quantization module, of the interface that the contract has of it: weights one code an element
[out, in], scales [out, ceil(in / group_size)], zeros like scales, (code - zero) * scale; keys and values in fp8 with
scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class QuantConfig:
    weight_dtype: str = "int4"
    kv_cache_dtype: str = "fp8"
    group_size: int = 32


@dataclass
class QuantizedWeight:
    quantized_weight: torch.Tensor  # int8
    scales: torch.Tensor
    zeros: torch.Tensor
    group_size: int

    def dequantize(self) -> torch.Tensor:
        columns = self.quantized_weight.shape[1]
        scales, zeros = (t.repeat_interleave(self.group_size, 1)[:, :columns] for t in (self.scales, self.zeros))
        return (self.quantized_weight - zeros) * scales


class QuantizationManager:
    def __init__(self, config: QuantConfig):
        self.config = config

    def quantize_weight(self, weight: torch.Tensor) -> QuantizedWeight:
        """Asymmetric, to codes of 0 to 15, or -128 to 127."""
        least, most = (0, 15) if self.config.weight_dtype == "int4" else (-128, 127)
        size = self.config.group_size
        groups = weight.split(size, 1)
        low = torch.stack([g.amin(1).clamp(max=0) for g in groups], 1)
        high = torch.stack([g.amax(1).clamp(min=0) for g in groups], 1)
        scales = (high - low) / (most - least)
        zeros = (least - low / scales).round()
        scale, zero = (t.repeat_interleave(size, 1)[:, : weight.shape[1]] for t in (scales, zeros))
        codes = (weight / scale + zero).round().clamp(least, most)
        return QuantizedWeight(codes.to(torch.int8), scales, zeros, size)

    def quantize_kv(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[..., num_kv_heads, head_dim] in float8_e4m3fn, and scales [..., num_kv_heads, 1]."""
        assert self.config.kv_cache_dtype == "fp8"
        scales = x.abs().amax(-1, keepdim=True) / 448
        return (x / scales).to(torch.float8_e4m3fn), scales
