"""Calls through the binding: keyword arguments in, arrays of the caller's kind out."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import Parameter, Signature

from . import _kf
from .checks import one_of
from .errors import refusing
from .quantized import as_quantized
from .sparse import SparseTensor


@dataclass(frozen=True)
class Selection:
    """Which kernels a call may use.

    families: among "reference", "vanilla" (unfused), "fused", "library", "custom"; kernel: a row's name, and no other
    will do; allow_fallback: what the families cannot serve is taken by the first other kernel that can, instead of
    being an error; batch_invariant: only kernels that give a row the same bits whatever the batch and the threads;
    tf32: products of f32 may round their factors to TF32 (a relative 2^-11), where CUDA's matrix units take it.
    """

    families: tuple[str, ...] = ("custom", "fused", "library")
    kernel: str = ""
    allow_fallback: bool = False
    batch_invariant: bool = False
    tf32: bool = False

    def __post_init__(self):
        names = self.families
        if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
            raise refusing(f'Selection: families: expected a tuple of names, as ("fused",), got {names!r}')
        if not isinstance(self.kernel, str):
            raise refusing(f"Selection: kernel: expected the name of a row, got {self.kernel!r}")
        for name in ("allow_fallback", "batch_invariant", "tf32"):
            if not isinstance(getattr(self, name), bool):
                raise refusing(f"Selection: {name}: expected True or False, got {getattr(self, name)!r}")

    def bound(self) -> _kf.Selection:
        """The selection as the C++ library has it."""
        return _kf.Selection(list(self.families), self.kernel, self.allow_fallback, self.batch_invariant, self.tf32)


FAMILIES = ("reference", "vanilla", "fused", "library", "custom")
FUSED = Selection()
VANILLA = Selection(families=("vanilla",))
REFERENCE = Selection(families=("reference",))
_DEFAULT = FUSED.bound()


def _bound(selection: Selection | None) -> _kf.Selection:
    if selection is None:
        return _DEFAULT
    if not isinstance(selection, Selection):
        raise refusing(f"selection: expected a Selection (kf.FUSED, kf.VANILLA, ...), got {type(selection).__name__}")
    return selection.bound()


def _with_companions(fields: dict) -> dict:
    """Weights that are read with scales or masks as the operands that an op has for them."""
    out = dict(fields)
    for name, value in fields.items():
        if isinstance(value, SparseTensor):
            out |= value.fields(name)
        elif (weight := as_quantized(value)) is not None:
            out |= weight.fields(name)
    return out


def _has_scales_of_its_own(fields: dict) -> bool:
    """Whether the output is quantized with scales that the op finds: they are returned without being asked for."""
    quantized = "out_scales" in fields and fields.get("out_dtype", "none") != "none"
    return quantized and fields.get("static_scale") is None and fields["out_scales"] is None


def call(op: str, fields: dict):
    """Runs `op`. `fields` are its operands and attributes, and "selection".

    Returns its one output, a tuple where there are several, or None where it only writes in place.
    """
    selection = _bound(fields.pop("selection", None))
    fields = _with_companions(fields)
    if _has_scales_of_its_own(fields):
        fields["out_scales"] = True
    return _kf.call(op, fields, selection)


def function_of(op: str):
    """The function of an op, made of its reflection: operands that must be given first, attributes by keyword."""
    description = _kf.ops()[op]
    required, optional, attributes = [], [], []
    for field in description["fields"]:
        name = field["name"]
        if field["kind"] != "tensor":
            attributes.append(Parameter(name, Parameter.KEYWORD_ONLY, default=field["default"]))
        elif field["role"] == "out" or field["optional"]:
            optional.append(Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=None))
        else:
            required.append(Parameter(name, Parameter.POSITIONAL_OR_KEYWORD))
    selection = Parameter("selection", Parameter.KEYWORD_ONLY, default=None)
    signature = Signature([*required, *optional, *attributes, selection])

    def function(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return call(op, dict(bound.arguments))

    function.__name__ = function.__qualname__ = op
    function.__doc__ = description["summary"]
    function.__signature__ = signature
    return function


def explain(op: str, selection: Selection | None = None, **fields) -> list[dict]:
    """Every kernel of `op` in the dispatcher's order for these operands: taken, or refused and why.

    Operands may be arrays or `layout(dtype, shape)`. A row has kernel, families, selected, supported, allowed, reason.
    """
    one_of("explain: op", op, _kf.ops())
    return _kf.explain(op, _with_companions(fields), _bound(selection))
