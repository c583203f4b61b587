"""A backend of one's own behind the manager: by name, or for a kind of device. This one is plain PyTorch.

(A backend in C++, with kernels in the dispatcher's table, is another matter: docs/adding-a-backend.md,
docs/bring-up-a-backend.md.)"""

import torch
import torch.nn.functional as F

import sagellm_kernel_fusion as kf


class TorchKernelFusion(kf.KernelFusionProtocol):
    device_types = ("meta",)  # whose tensors it claims: for "npu" or "mlu" a vendor's library would be called

    def __init__(self):
        self.calls = 0

    def fuse_attention(self, q, k, v, config=None, *, causal=True, softmax_scale=None, **options):
        if options:
            raise kf.NotServedError(f"TorchKernelFusion: attention takes no {', '.join(options)}")
        self.calls += 1
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=softmax_scale, enable_gqa=True)
        return out.transpose(1, 2)

    def fuse_ffn(self, x, gate_weight, up_weight, down_weight, config=None, **options):
        self.calls += 1
        return (F.silu(x @ gate_weight) * (x @ up_weight)) @ down_weight

    def fuse_layernorm_linear(self, x, ln_weight, ln_bias, linear_weight, config=None, *, eps=1e-5, **options):
        self.calls += 1
        return F.layer_norm(x, ln_weight.shape, ln_weight, ln_bias, eps) @ linear_weight

    def register_custom_kernel(self, name, kernel, **options):
        raise kf.NotServedError("TorchKernelFusion takes no custom kernels")

    def report(self):
        return {"kernel_calls": float(self.calls)}


kf.KernelFusionBackendRegistry.register("torch", TorchKernelFusion)
q, kv = torch.randn(2, 7, 4, 16), torch.randn(2, 7, 2, 16)

# By its name in a configuration it gets every call.
by_name = kf.KernelFusionManager(kf.KernelFusionConfig(backend="torch")).fuse_attention(q, kv, kv)
own = kf.KernelFusionManager().fuse_attention(q, kv, kv)
torch.testing.assert_close(by_name, own, rtol=1e-5, atol=1e-5)
print("by name:", tuple(by_name.shape), "as the library's own")

# By the tensors' device: those that it claims are its, the CPU's stay the library's.
m = kf.KernelFusionManager()
shape = m.fuse_attention(*(x.to("meta") for x in (q, kv, kv)))
m.fuse_attention(q, kv, kv)
print("by device:", tuple(shape.shape), "on", shape.device)

# What it does not take is an error that says so, as of any backend.
try:
    kf.KernelFusionManager(kf.KernelFusionConfig(backend="torch")).fuse_attention(q, kv, kv, softcap=5.0)
except NotImplementedError as error:
    print("refused:", error)
else:
    raise AssertionError("no error")
