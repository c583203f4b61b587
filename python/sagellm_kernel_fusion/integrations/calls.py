"""What the modules of one fused model share: the manager that they call, and where they keep it."""

from __future__ import annotations

import torch

from ..config import KernelFusionConfig
from ..errors import refusing
from ..manager import KernelFusionManager

STATE = "_kernel_fusion"  # a fused module's attribute; unfuse_model takes it away


class Calls:
    """Ops under one manager and configuration. Copies of a model share it."""

    def __init__(self, manager: KernelFusionManager, config: KernelFusionConfig):
        self.manager, self.config = manager, config
        self._rotations: tuple = ()

    def __call__(self, op: str, fields: dict, rows: bool = False):
        if torch.compiler.is_compiling():  # by name, so that what is traced ends here
            return _outside_of_the_graph(self, op, fields, rows)
        return self.manager._run((op, fields, (), rows, None), self.config, None, None)

    def rotation(self, cos: torch.Tensor, sin: torch.Tensor, batch: int) -> tuple:
        """The operands of `rope` for transformers' cos and sin [1 or batch, seqlen, rotary_dim], whose halves are
        alike: tables f32 [rows, rotary_dim / 2] and the row of each token. Made once a forward pass, which hands the
        same tensors to every layer; two kinds of layers (local and global ones) may alternate."""
        for kept in self._rotations:
            if kept[0] is cos and kept[1] is sin and kept[2] == batch:
                return kept[3]
        half = cos.shape[-1] // 2
        tables = [t[..., :half].reshape(-1, half).to(torch.float32).contiguous() for t in (cos, sin)]
        tokens = torch.arange(len(tables[0]), dtype=torch.int32, device=cos.device)
        if cos.shape[0] != batch:
            tokens = tokens.repeat(batch)
        made = (tokens, *tables)
        self._rotations = ((cos, sin, batch, made), *self._rotations[:1])
        return made

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        raise refusing("fuse_model: a fused model cannot be pickled: unfuse_model(model) first, or save its state_dict")


@torch.compiler.disable
def _outside_of_the_graph(calls: Calls, op: str, fields: dict, rows: bool):
    return calls(op, fields, rows)


def parameter(module: torch.nn.Module, name: str = "weight") -> torch.Tensor | None:
    """As `module.weight`, without the search that nn.Module does for a missing attribute."""
    return module._parameters[name]


def in_inference(module: torch.nn.Module, dropout: float) -> None:
    if module.training and dropout > 0:
        raise refusing(
            f"fuse_model: {type(module).__name__}: fused modules have no dropout, configured is {dropout}: call "
            "model.eval(), or unfuse_model(model) to train"
        )
