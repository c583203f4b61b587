"""liger-kernel 0.8.2: signatures and arithmetic of src/liger_kernel/ops (https://github.com/linkedin/Liger-Kernel,
ead96b61)."""

import torch

calls = []


def _rows(x):
    if x.shape[-1] > 65536:
        raise RuntimeError(
            f"Cannot launch Triton kernel since n = {x.shape[-1]} exceeds the recommended Triton blocksize"
        )
    return x.contiguous().view(-1, x.shape[-1])


class LigerRMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
        calls.append("rms_norm")
        assert casting_mode in ("llama", "gemma", "none"), f"Invalid casting mode: {casting_mode}"
        x = _rows(X)
        assert x.shape[1] == W.shape[0], "Incompatible hidden size dimension"
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        if casting_mode == "gemma":
            y = wide * scale * (W.float() + offset)
        else:
            y = (wide * scale).to(x.dtype) * (W + offset)
        return y.to(x.dtype).view(X.shape)


class LigerLayerNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, X, W, B, eps):
        calls.append("layer_norm")
        x = _rows(X)
        if x.shape[1] != W.shape[0]:
            raise ValueError("Incompatible dimensions")
        B.stride(0)  # it has no form without
        wide = x.float()
        wide = wide - wide.mean(-1, keepdim=True)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (wide * scale * W.float() + B.float()).to(x.dtype).view(X.shape)


class LigerSiLUMulFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, gate_multiplier=1.0, down_multiplier=1.0):
        calls.append("silu_mul")
        c = torch.nn.functional.silu(_rows(a).float()).to(a.dtype) * _rows(b)
        return c.view(a.shape)


class LigerGELUMulFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        calls.append("gelu_mul")
        c = torch.nn.functional.gelu(_rows(a).float(), approximate="tanh").to(a.dtype) * _rows(b)
        return c.view(a.shape)
