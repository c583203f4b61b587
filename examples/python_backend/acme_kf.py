"""Acme's accelerator as a backend of kf: its operators as rows of a table, found by an entry point."""

from sagellm_kernel_fusion.vendors import Library, Vendor, VendorRow, conditions

FLOATS = ("f32", "f16", "bf16")
SOURCE = "acme_ops 0.1"


def needing(**functions):
    """What a row calls, with the parameters that it gives: without them it says so instead of failing in the call."""
    return Library("acme_ops", "it comes with Acme's SDK", SOURCE, functions)


NORMS = needing(rms_norm=("x", "weight", "eps"), add_rms_norm=("x", "residual", "weight", "eps"))
RELU = needing(relu=("x", "out"))
PRODUCT = needing(matmul_nt=("x", "weight", "bias"))


# A row's function is given what its parameters name, as torch tensors. kf refuses, before it is asked, every call with
# something else set; what else it does not take, `declines` says, of shapes, strides and dtypes.
def rms_norm(x, weight, residual=None, residual_out=None, eps=1e-6):
    if residual is None:
        return NORMS("rms_norm")(x, weight, eps)
    y, total = NORMS("add_rms_norm")(x, residual, weight, eps)
    if residual_out is not None:
        residual_out.copy_(total)
    return y


def norm_declines(x, weight, residual=None, **rest):
    given = {"x": x, "weight": weight} | ({} if residual is None else {"residual": residual})
    return conditions.dtypes(given, FLOATS) or conditions.not_empty({"x": x})


def relu(x, out):  # naming an output: it is written in place, and nothing is returned
    RELU("relu")(x, out)


def linear(x, weight, bias=None):
    return PRODUCT("matmul_nt")(x, weight, bias)


def linear_declines(x, weight, bias=None, **rest):
    given = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    return conditions.dtypes(given, FLOATS) or conditions.not_empty({"x": x, "weight": weight})


def on_host(name, op, library, condition, function, declines, **more):
    return VendorRow(f"acme::{name}", op, "library", library, condition, function, declines, devices=("cpu",), **more)


ROWS = (
    on_host("rms_norm", "rms_norm", NORMS, "f32, f16 and bf16; a residual", rms_norm, norm_declines,
            saves="one launch for the sum and the norm"),
    on_host("relu", "activation", RELU, "relu", relu, lambda x, **rest: conditions.not_empty({"x": x}),
            fixed={"kind": ("relu",)}, saves="one launch"),
    on_host("linear", "linear", PRODUCT, "f32, f16 and bf16, all of one dtype; a bias", linear, linear_declines,
            saves="the bias in the product's launch"),
)  # fmt: skip

ACME = Vendor(
    name="acme",
    device="cpu",
    device_type="cpu",
    plug_in="acme_ops",
    install="pip install acme-ops",
    advice="look at acme-smi",
    table=lambda: ROWS,
)
