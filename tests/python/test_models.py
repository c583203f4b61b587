"""Whole models: logits against transformers, fused against unfused, generation, bad input."""

from __future__ import annotations

import functools
import json
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
from gguf import GGUFValueType

import sagellm_kernel_fusion as kf
from model_files import BF16, TINY, write_gguf, write_gguf_of, write_safetensors
from projections import errors, project, projected_errors
from repository import ROOT
from sagellm_kernel_fusion.bench.model_bench import prompt_gflop
from sagellm_kernel_fusion.weights import open_model
from sagellm_kernel_fusion.weights.common import parts_of


def relative_error(got, expected):
    return np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64))


# The real model: against transformers in float32 and against float64, kept in tests/data and computed here

TRANSFORMERS_TOLERANCE = 1e-4  # of the logits at every position, in the 2-norm


@pytest.fixture(scope="session")
def smollm2_logits(smollm2, golden):
    """Our logits [256, vocab] of the golden text, by form of the weights and fusion; computed once."""

    @functools.cache
    def logits(weights: str, fusion: str) -> np.ndarray:
        model = kf.load_model(smollm2, weights=weights, fusion=fusion, max_batch_size=1)
        return model.logits(golden["tokens"])

    return logits


@pytest.fixture(scope="session")
def peers():
    """What bench/peers computes with, as a module path."""
    sys.path.append(str(ROOT / "bench/peers"))
    yield
    sys.path.remove(str(ROOT / "bench/peers"))


@pytest.fixture(scope="session")
def transformers_model(smollm2, peers):
    for module in ("torch", "transformers", "accelerate"):
        pytest.importorskip(module)
    import gguf_llama

    return gguf_llama.load_model(smollm2)


@pytest.fixture(scope="session")
def transformers_logits(transformers_model, golden):
    import torch

    with torch.inference_mode():
        return transformers_model(torch.tensor([golden["tokens"]])).logits[0].numpy()


@pytest.mark.parametrize("fusion", ["none", "all"])
def test_smollm2_has_the_logits_of_transformers(smollm2_logits, golden, fusion):
    logits = smollm2_logits("f32", fusion)
    np.testing.assert_array_equal(logits.argmax(-1), golden["top_tokens"])
    assert projected_errors(logits, golden["projections"]).max() <= TRANSFORMERS_TOLERANCE


@pytest.mark.parametrize("fusion", ["none", "all"])
def test_smollm2_has_the_logits_of_transformers_run_here(smollm2_logits, transformers_logits, fusion):
    logits = smollm2_logits("f32", fusion)
    np.testing.assert_array_equal(logits.argmax(-1), transformers_logits.argmax(-1))
    assert errors(logits, transformers_logits).max() <= TRANSFORMERS_TOLERANCE


def test_a_transformers_model_fused_in_place(transformers_model, transformers_logits, golden):
    import torch

    tokens, prompt = torch.tensor([golden["tokens"]]), torch.tensor([golden["prompt_tokens"]])
    greedy = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": -1}
    done = kf.fuse_model(transformers_model)
    try:
        assert len(done.fused) == transformers_model.config.num_hidden_layers + 2 and not done.refused
        with torch.inference_mode():
            fused = transformers_model(tokens).logits[0].numpy()
        made = transformers_model.generate(prompt, **greedy)[0, prompt.shape[1] :].tolist()
    finally:
        kf.unfuse_model(transformers_model)
    assert made == golden["greedy_tokens"][:24]
    assert errors(fused, transformers_logits).max() <= TRANSFORMERS_TOLERANCE
    with torch.inference_mode():
        np.testing.assert_array_equal(transformers_model(tokens).logits[0].numpy(), transformers_logits)


def test_the_golden_answers_are_those_of_transformers_run_here(transformers_logits, golden):
    np.testing.assert_array_equal(transformers_logits.argmax(-1), golden["top_tokens"])
    assert projected_errors(transformers_logits, golden["projections"]).max() <= TRANSFORMERS_TOLERANCE


@pytest.mark.parametrize("weights", ["f32", "file"])
@pytest.mark.parametrize("fusion", ["none", "all"])
def test_smollm2_writes_what_transformers_writes(smollm2, golden, weights, fusion):
    model = kf.load_model(smollm2, weights=weights, fusion=fusion, max_batch_size=1)
    count = len(golden["greedy_tokens"])
    assert count == 64
    result = model.generate([golden["prompt_tokens"]], count, stop=False)[0]
    assert result.tokens == golden["greedy_tokens"]
    assert result.text == golden["greedy_text"] and result.reason == "length"


def test_transformers_run_here_writes_the_golden_tokens(transformers_model, golden):
    import torch

    prompt = torch.tensor([golden["prompt_tokens"]])
    options = dict(do_sample=False, min_new_tokens=64, max_new_tokens=64, pad_token_id=0)
    with torch.inference_mode():
        tokens = transformers_model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    assert tokens[0, prompt.shape[1] :].tolist() == golden["greedy_tokens"]


def float32_tolerance(config: dict, num_tokens: int) -> float:
    """How far float32 logits may be from exact ones, relatively.

    On the longest path from a token to its logits every term of every sum is rounded once, by at most the unit roundoff
    u: in a layer two norms and the projections after them, scores, values, the output projection, gate and down
    projections, two residuals. Norms keep the scale of what passes from layer to layer. The roundings are of either
    sign and do not know of each other, so n of them come to u sqrt(n); twice that, for the worst of all positions.
    """
    c = config
    attention = 2 * c["hidden_size"] + c["head_dim"] + num_tokens + c["num_heads"] * c["head_dim"]
    ffn = 2 * c["hidden_size"] + c["intermediate_size"]
    roundings = c["num_layers"] * (attention + ffn + 2) + 2 * c["hidden_size"]
    return 2 * 2.0**-24 * roundings**0.5


@pytest.mark.parametrize("weights", ["file", "f32"])
@pytest.mark.parametrize("fusion", ["none", "all"])
def test_smollm2_is_what_float64_makes_of_its_weights(smollm2, smollm2_logits, golden, weights, fusion):
    """Weights "file" are the four bits: nothing beyond float32's own rounding is lost to them."""
    logits = smollm2_logits(weights, fusion)
    tolerance = float32_tolerance(open_model(smollm2).config, len(logits))
    assert tolerance < 5e-5  # well below what 16-bit or 8-bit activations would cost
    assert projected_errors(logits, golden["float64_projections"]).max() <= tolerance
    np.testing.assert_array_equal(logits.argmax(-1), golden["top_tokens"])


def test_the_golden_float64_answers_are_those_of_this_file(smollm2, smollm2_logits, golden, peers):
    import llama_float64

    count = 12
    exact = llama_float64.Llama(smollm2).logits(golden["tokens"][:count])
    assert projected_errors(exact, golden["float64_projections"][:count]).max() <= 1e-7  # kept to eight digits
    tolerance = float32_tolerance(open_model(smollm2).config, count)
    for weights in ("file", "f32"):
        assert errors(smollm2_logits(weights, "all")[:count], exact).max() <= tolerance


def test_projections_show_what_an_error_is(rng):
    logits = rng.standard_normal((200, 5000))
    wrong = logits + 1e-3 * rng.standard_normal(logits.shape)
    ratio = projected_errors(wrong, project(logits)) / errors(wrong, logits)
    assert np.mean((ratio > 0.5) & (ratio < 2)) >= 0.99 and 0.95 < np.sqrt(np.mean(ratio**2)) < 1.05


# Made ones, against transformers


def hf_model(kind: str, folder):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    sizes = dict(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300, max_position_embeddings=128, head_dim=32, initializer_range=0.2,
    )  # fmt: skip
    scaling = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    gemma3 = sizes | {
        "num_hidden_layers": 4, "sliding_window": 9, "query_pre_attn_scalar": 25, "sliding_window_pattern": 3,
    }  # fmt: skip
    made = {
        "llama": lambda: transformers.LlamaConfig(**sizes, rope_parameters=scaling),
        "llama-tied": lambda: transformers.LlamaConfig(**sizes, tie_word_embeddings=True),
        "mistral": lambda: transformers.MistralConfig(**sizes, sliding_window=None),
        "mistral-window": lambda: transformers.MistralConfig(**sizes, sliding_window=9),
        "qwen2": lambda: transformers.Qwen2Config(**{k: v for k, v in sizes.items() if k != "head_dim"}),
        "qwen2-window": lambda: transformers.Qwen2Config(
            **{k: v for k, v in sizes.items() if k != "head_dim"},
            use_sliding_window=True,
            sliding_window=17,
            max_window_layers=1,
        ),
        "qwen3": lambda: transformers.Qwen3Config(**sizes),
        "phi3": lambda: transformers.Phi3Config(**{k: v for k, v in sizes.items() if k != "head_dim"}),
        "phi3-window": lambda: transformers.Phi3Config(
            **{k: v for k, v in sizes.items() if k != "head_dim"}, sliding_window=9
        ),
        "gemma2": lambda: transformers.Gemma2Config(
            **sizes, sliding_window=9, query_pre_attn_scalar=25, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
        ),
        "gemma3": lambda: transformers.Gemma3TextConfig(**gemma3),
        "gemma3-scaled": lambda: transformers.Gemma3TextConfig(
            **gemma3, rope_scaling={"rope_type": "linear", "factor": 8.0}, rope_local_base_freq=300.0
        ),
    }
    config = made[kind]()
    config.pad_token_id = 0  # Phi-3's own is beyond this vocabulary
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():  # what is initialised to zeros and ones says nothing
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


FAMILIES = (
    "llama", "llama-tied", "mistral", "mistral-window", "qwen2", "qwen2-window", "qwen3", "phi3", "phi3-window",
    "gemma2", "gemma3", "gemma3-scaled",
)  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
def test_families_against_transformers(tmp_path, rng, kind):
    model = hf_model(kind, tmp_path)
    torch = pytest.importorskip("torch")
    tokens = rng.integers(0, 300, 70)
    with torch.inference_mode():
        expected = model(torch.tensor(tokens[None])).logits[0].numpy()
    for fusion in ("none", "all"):
        got = kf.load_model(tmp_path, fusion=fusion, max_step_tokens=32).logits(tokens)
        assert relative_error(got, expected) <= 1e-4, fusion


@pytest.mark.parametrize("kind", ["phi3", "gemma2", "gemma3"])
def test_relatives_of_llama_in_memory(tmp_path, rng, kind):
    model = hf_model(kind, tmp_path)
    torch = pytest.importorskip("torch")
    tokens = rng.integers(0, 300, 40)
    shared = [p for p in model.parameters() if p.ndim == 2]
    for name, tensor in open_model(model).tensors.items():  # Phi-3's are rows of the merged ones
        places = [p.data_ptr() <= tensor.ctypes.data < p.data_ptr() + p.nbytes for p in shared]
        assert tensor.ndim == 1 or any(places), name
    with torch.inference_mode():
        expected = model(torch.tensor(tokens[None])).logits[0].numpy()
        wanted = model.generate(torch.tensor(tokens[None]), max_new_tokens=8, do_sample=False, eos_token_id=None)
    fused = kf.load_model(model, fusion="all")
    assert relative_error(fused.logits(tokens), expected) <= 1e-4
    made = fused.generate(tokens, max_new_tokens=8, stop=False)
    assert made.tokens == wanted[0, 40:].tolist()
    figures = kf.benchmark_kernel_fusion(model, kf.KernelFusionConfig(fusion="all"), [tokens], decode_tokens=2)
    assert figures["kernel_calls_reduction"] > 0.3


def test_ids_of_one_prompt(tiny_gguf):
    model = kf.load_model(tiny_gguf, fusion="all")
    expected = model.generate([[3, 4, 5]], max_new_tokens=4, stop=False)[0].tokens
    for ids in ([3, 4, 5], (3, 4, 5), np.array([3, 4, 5]), np.array([3, 4, 5], np.uint8)):
        assert model.generate(ids, max_new_tokens=4, stop=False).tokens == expected
    several = model.generate(np.array([[3, 4, 5], [6, 7, 8]]), max_new_tokens=4, stop=False)
    assert [len(made.tokens) for made in several] == [4, 4] and several[0].tokens == expected
    with pytest.raises(kf.InvalidArgumentError, match=r"prompts: expected a text.* got bytes"):
        model.generate(b"abc")


def test_benchmarks_of_nothing_are_refused(tiny_gguf):
    for name, value, least in (("rounds", 0, 1), ("decode_tokens", -1, 0)):
        with pytest.raises(kf.InvalidArgumentError, match=f"{name}: .* at least {least}, got {value}"):
            kf.benchmark_kernel_fusion(tiny_gguf, **{name: value})


def test_a_model_without_its_last_layer_is_refused(tmp_path):
    with pytest.raises(kf.InvalidArgumentError, match=r"expected a model with its last layer.* got LlamaModel"):
        kf.load_model(hf_model("llama", tmp_path).model)


def with_the_values_of(model, file):
    """The model with the weights that a GGUF file holds in fewer bits."""
    torch = pytest.importorskip("torch")
    offset = 1 if model.config.model_type.startswith("gemma") else 0
    read = open_model(file)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parts = [p for p, _ in parts_of(read.config, name, parameter.shape)]
            values = np.concatenate([read.dequantize(p) for p in parts])
            parameter.copy_(torch.from_numpy(values - offset if parameter.ndim == 1 else values))
    return model


@pytest.mark.parametrize("weights", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("kind", ["phi3", "phi3-window", "gemma2", "gemma3", "gemma3-scaled"])
def test_gguf_of_relatives_of_llama(tmp_path, rng, kind, weights):
    torch = pytest.importorskip("torch")
    model = hf_model(kind, tmp_path)
    u32, f32 = GGUFValueType.UINT32, GGUFValueType.FLOAT32
    config, own = model.config, {}
    if kind.startswith("gemma"):
        own["attention.scale"] = (config.query_pre_attn_scalar**-0.5, f32)
    if kind.startswith("gemma3"):
        own["attention.sliding_window_pattern"] = (3, u32)
    if kind == "gemma3-scaled":
        own |= {
            "rope.scaling.type": ("linear", GGUFValueType.STRING),
            "rope.scaling.factor": (8.0, f32),
            "rope.freq_base_swa": (300.0, f32),
        }
    file = write_gguf_of(model, tmp_path / "x.gguf", weights, **own)
    if weights != "f32":
        with_the_values_of(model, file)
    tokens = rng.integers(0, 300, 70)
    with torch.inference_mode():
        expected = model(torch.tensor(tokens[None])).logits[0].numpy()
    for fusion in ("none", "all"):
        got = kf.load_model(file, fusion=fusion, max_step_tokens=32).logits(tokens)
        assert relative_error(got, expected) <= 1e-4, fusion
    if weights == "q8_0":  # stored as no kernel takes it, and dequantized
        got = kf.load_model(file, weights="f32", fusion="all").logits(tokens)
        assert relative_error(got, expected) <= 1e-4


@pytest.mark.parametrize(
    ("layers", "changes", "expected"),
    [
        (2, {}, {"attention_scale": 32**-0.5, "sliding_window": 9, "full_layers": [1]}),
        (46, {}, {"attention_scale": 16**-0.5, "full_layers": list(range(1, 46, 2))}),
        (2, {"attention.sliding_window": None}, {"sliding_window": 4096}),
        (
            2,
            {"attn_logit_softcapping": None, "final_logit_softcapping": None},
            {"attention_softcap": 50.0, "logit_softcap": 30.0},
        ),
        (2, {"attention.sliding_window_pattern": ([False, True], GGUFValueType.ARRAY)}, {"full_layers": [0]}),
    ],
)
def test_what_gguf_files_of_gemma_do_not_say(tmp_path, layers, changes, expected):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.Gemma2Config(
        hidden_size=64, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=40, head_dim=32, sliding_window=9, max_position_embeddings=64,
    )  # fmt: skip
    with torch.device("cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    read = open_model(write_gguf_of(model, tmp_path / "x.gguf", **changes)).config
    assert {k: read[k] for k in expected} == {
        k: pytest.approx(v) if isinstance(v, float) else v for k, v in expected.items()
    }


@pytest.mark.parametrize(
    ("kind", "changes", "error", "words"),
    [
        (
            "gemma3",
            {"attention.sliding_window_pattern": ([True], GGUFValueType.ARRAY)},
            ValueError,
            "true or false for each of 4",
        ),
        ("gemma3", {"attention.scale": (-1.0, GGUFValueType.FLOAT32)}, ValueError, "scale: expected a positive number"),
        ("gemma3", {"block_count": (2**31 - 1, GGUFValueType.UINT32)}, ValueError, "num_layers"),
        (
            "phi3",
            {"rope.scaling.type": ("yarn", GGUFValueType.STRING)},
            NotImplementedError,
            "none or linear, got yarn",
        ),
        ("phi3", {"feed_forward_length": (80, GGUFValueType.UINT32)}, ValueError, "gate_up_proj.weight.*no use for it"),
    ],
)
def test_gguf_of_relatives_of_llama_with_what_does_not_fit(tmp_path, kind, changes, error, words):
    file = write_gguf_of(hf_model(kind, tmp_path), tmp_path / "x.gguf", **changes)
    with pytest.raises(kf.KernelFusionError, match=words) as caught:
        kf.load_model(file)
    assert isinstance(caught.value, error)


def test_doubles_of_merged_layers(tmp_path, rng):
    model = hf_model("phi3", tmp_path)
    expected = kf.load_model(model, fusion="none").prefill([1, 2, 3])
    model.double().save_pretrained(tmp_path)
    got = kf.load_model(tmp_path, weights="f32", fusion="none").prefill([1, 2, 3])
    np.testing.assert_array_equal(got, expected)


def test_layers_beyond_any_model_are_not_listed(tmp_path):
    hf_model("gemma3", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 2**31 - 1, "layer_types": None}))
    with pytest.raises(kf.InvalidArgumentError, match="num_layers must be 1 to 65536, got 2147483647"):
        kf.load_model(tmp_path)


@pytest.mark.parametrize("kind", ["llama-tied", "qwen2"])
def test_a_model_of_transformers_in_memory(tmp_path, rng, kind):
    model = hf_model(kind, tmp_path)
    torch = pytest.importorskip("torch")
    tokens = rng.integers(0, 300, 40)
    read = open_model(model)
    for name, tensor in read.tensors.items():
        assert tensor.ctypes.data == model.state_dict()[name].data_ptr()  # shared
    with torch.inference_mode():
        expected = model(torch.tensor(tokens[None])).logits[0].numpy()
    assert relative_error(kf.load_model(model, fusion="all").logits(tokens), expected) <= 1e-4
    got = kf.load_model(model.to(torch.bfloat16), fusion="all")
    assert {str(t.dtype) for t in open_model(model).tensors.values()} == {"bfloat16"}
    assert relative_error(got.logits(tokens), expected) <= 0.1  # weights of 8 bits through two layers
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(kf.InvalidArgumentError, match=r"lm_head\.weight: expected weights on the CPU .*e4m3fn"):
        kf.load_model(model)
    with pytest.raises(kf.InvalidArgumentError, match="a model of transformers, got Linear"):
        kf.load_model(torch.nn.Linear(2, 2))


# Fused against unfused, and the ways to feed


@pytest.mark.parametrize("fusion", ["none", "all", "measured"])
def test_ways_to_feed_agree(tiny_gguf, fusion):
    model = kf.load_model(tiny_gguf, fusion=fusion, max_step_tokens=8)
    tokens = np.arange(3, 33)
    everything = model.logits(tokens)
    np.testing.assert_allclose(model.prefill(tokens[:20]), everything[19], rtol=1e-4, atol=1e-4)
    for i in range(20, 30):
        np.testing.assert_allclose(model.decode(tokens[i]), everything[i], rtol=1e-4, atol=1e-4)


def test_fused_and_unfused_agree(tiny_gguf):
    tokens = np.arange(40)
    unfused, fused = (kf.load_model(tiny_gguf, fusion=f).logits(tokens) for f in ("none", "all"))
    assert relative_error(fused, unfused) <= 1e-3


def test_fusion_needs_fewer_kernels(tiny_gguf):
    launches = {}
    for fusion in ("none", "all"):
        model = kf.load_model(tiny_gguf, fusion=fusion)
        model.prefill([1, 2, 3])
        launches[fusion] = model.engine.last_step["launches"]
    assert launches["all"] * 2 <= launches["none"]


@pytest.mark.parametrize("rule", [r["name"] for r in kf.rules()])
def test_every_rule_alone_keeps_the_logits(tiny_gguf, rule):
    tokens = np.arange(20)
    expected = kf.load_model(tiny_gguf, fusion="none").logits(tokens)
    config = kf.KernelFusionConfig(fusion="all", only_rules=[rule])
    options = dict(fusion_config=config)
    got = kf.load_model(tiny_gguf, families=("fused", "vanilla"), **options).logits(tokens)
    assert relative_error(got, expected) <= 1e-3


def test_a_switch_of_the_configuration_turns_its_rules_off(tiny_gguf):
    for flag in sorted({r["flag"] for r in kf.rules()}):
        config = kf.KernelFusionConfig(fusion="all", **{flag: "vanilla" if flag == "attention_backend" else False})
        engine = kf.load_model(tiny_gguf, fusion_config=config, families=("fused", "vanilla")).engine
        ran = {a["rule"] for a in engine.applied(engine.shape_of("ids", 4, 1, 1, 4)) if a["kept"]}
        assert not ran & {r["name"] for r in kf.rules() if r["flag"] == flag}, flag


def test_the_configurations_switches_mean_what_they_mean_in_cpp():
    """Every switch that C++ knows; attention is unfused by two of them."""
    names = [r["name"] for r in kf.rules()]
    of_flag = {flag: [r["name"] for r in kf.rules() if r["flag"] == flag] for flag in {r["flag"] for r in kf.rules()}}
    attention = of_flag["attention_backend"]
    assert kf._kf.rules_off({}) == []
    assert kf._kf.rules_off({"use_online_softmax": False}) == kf._kf.rules_off({"attention_backend": "vanilla"})
    assert kf._kf.rules_off({"attention_backend": "vanilla"}) == attention
    everything = dict.fromkeys((f for f in of_flag if f != "attention_backend"), False)
    assert kf._kf.rules_off(everything | {"attention_backend": "vanilla"}) == names
    with pytest.raises(kf.InvalidArgumentError, match="attention_backend: expected one of flash2"):
        kf._kf.rules_off({"attention_backend": "flash9"})


def test_the_configuration_sets_the_pages(tiny_gguf):
    pages = []
    for options in (dict(fusion_config=kf.KernelFusionConfig(page_size=64)), dict(), dict(fuse_kernels=False)):
        engine = kf.load_model(tiny_gguf, **options).engine
        pages.append(engine.shape_of("ids", 64, 1, 1, 64).max_pages)
    assert pages == [1, 4, 1]
    with pytest.raises(kf.InvalidArgumentError, match="page_size must be 0 to"):
        kf.load_model(tiny_gguf, fusion_config=kf.KernelFusionConfig(page_size=2**40))


def test_attention_without_online_softmax_is_unfused(tiny_gguf):
    config = kf.KernelFusionConfig(fusion="all", use_online_softmax=False)
    engine = kf.load_model(tiny_gguf, fusion_config=config).engine
    ran = {a["rule"] for a in engine.applied(engine.shape_of("ids", 4, 1, 1, 4)) if a["kept"]}
    assert ran and not any(rule.startswith("attention") for rule in ran)


@pytest.mark.parametrize("fusion", ["qkv_merge,attention_causal", ["qkv_merge", "attention_causal"]])
def test_named_rules_and_no_others(tiny_gguf, fusion):
    for options in (dict(fusion=fusion), dict(fusion_config=kf.KernelFusionConfig(fusion=fusion))):
        engine = kf.load_model(tiny_gguf, **options).engine
        ran = {a["rule"] for a in engine.applied(engine.shape_of("ids", 4, 1, 1, 4)) if a["kept"]}
        assert ran == {"qkv_merge", "attention_causal"}


def test_measured_fusions_are_remembered_and_can_be_cleared(tiny_gguf, tmp_path):
    path = str(tmp_path / "verdicts.json")
    kf.load_model(tiny_gguf, fusion="measured", verdicts=kf.VerdictStore(path)).prefill([1, 2, 3])
    store = kf.VerdictStore(path)
    verdicts = store.list()
    assert verdicts and all(v["unfused_ms"] > 0 and v["fused_ms"] > 0 for v in verdicts)
    store.clear()
    store.save()
    assert kf.VerdictStore(path).list() == []


def test_prompts_together_give_what_each_gives_alone(tiny_gguf):
    model = kf.load_model(tiny_gguf, fusion="all")
    prompts = [[1, 2, 3], [4] * 17, [5]]
    together = model.generate(prompts, 12)
    for prompt, result in zip(prompts, together, strict=True):
        assert model.generate([prompt], 12)[0].tokens == result.tokens


def test_sampling_is_a_function_of_the_seed(tiny_gguf):
    model = kf.load_model(tiny_gguf, fusion="all")
    draws = [model.generate([[1, 2]], 16, temperature=1.0, seed=s, stop=False)[0].tokens for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_text_comes_piece_by_piece_and_can_be_stopped(tiny_gguf):
    model = kf.load_model(tiny_gguf, fusion="all")
    pieces: list[str] = []

    def show(_, piece):
        pieces.append(piece)
        return len(pieces) < 3

    result = model.generate([[70, 71]], 64, stop=False, temperature=1.0, on_text=show)[0]
    assert len(pieces) == 3 and result.reason == "cancelled"


def test_an_error_in_the_callback_comes_through(tiny_gguf):
    model = kf.load_model(tiny_gguf, fusion="all")

    def fail(_, piece):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        model.generate([[70, 71]], 64, stop=False, temperature=1.0, on_text=fail)
    assert model.generate([[1, 2]], 4, stop=False)[0].tokens


# One caller at a time


def test_calls_from_a_callback_are_refused_and_disturb_nothing(tiny_gguf):
    model = kf.load_model(tiny_gguf, fusion="all")
    requests = [{"prompt": p, "max_new_tokens": 5} for p in ([1, 2, 3], [4, 5])]
    expected = [r["tokens"] for r in model.engine.generate(requests)]
    refused = []

    def on_token(request, token):
        for call in (
            lambda: model.engine.step([(sequence, np.array([1], np.int32), "last")]),
            lambda: model.engine.generate(requests),
            lambda: model.engine.prepare(shape),
            lambda: model.engine.explain(shape),
        ):
            with pytest.raises(kf.InvalidArgumentError, match="in use: a call is under way around this one"):
                call()
            refused.append(token)
        # What does not touch the step is allowed.
        other = model.engine.create_sequence()
        assert model.engine.length(other) == 0 and model.engine.last_step["num_tokens"] > 0
        model.engine.release_sequence(other)
        return True

    sequence, shape = model.engine.create_sequence(), model.engine.shape_of("ids", 1, 1, 1, 9)
    assert [r["tokens"] for r in model.engine.generate(requests, on_token)] == expected
    assert len(refused) == 4 * sum(map(len, expected)) and model.engine.length(sequence) == 0

    def on_text(*_):
        with pytest.raises(kf.InvalidArgumentError, match="model: in use"):
            model.prefill([1, 2])
        return True

    model.generate([[70, 71]], 4, stop=False, temperature=1.0, on_text=on_text)
    assert np.isfinite(model.prefill([1, 2])).all()


def test_a_callback_that_releases_the_running_sequence(tiny_gguf):
    model = kf.load_model(tiny_gguf, fusion="all")
    first = model.engine.create_sequence() + 1  # ids count up
    request = {"prompt": [1, 2, 3], "max_new_tokens": 5}

    def on_token(*_):
        model.engine.release_sequence(first)
        return True

    with pytest.raises(kf.InvalidArgumentError, match=f"no sequence {first}"):
        model.engine.generate([request], on_token)
    assert len(model.engine.generate([request])[0]["tokens"]) == 5


def test_threads_on_one_engine_are_refused_or_right(tiny_gguf):
    model = kf.load_model(tiny_gguf, fusion="all", max_batch_size=1)
    tokens = np.arange(3, 40)
    expected = model.prefill(tokens)
    refused, wrong = [], []

    def work():
        for _ in range(60):
            try:
                if not np.array_equal(model.prefill(tokens), expected):
                    wrong.append("logits")
            except kf.InvalidArgumentError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and all("in use" in text for text in refused)
    np.testing.assert_array_equal(model.prefill(tokens), expected)


def test_threads_on_the_bare_engine_are_refused_or_right(tiny_gguf):
    engine = kf.load_model(tiny_gguf, fusion="all").engine
    tokens = np.arange(3, 40, dtype=np.int32)
    sequences = [engine.create_sequence() for _ in range(3)]
    expected = engine.step([(sequences[0], tokens, "last")])
    engine.truncate(sequences[0], 0)
    refused, wrong = [], []

    def again(call):
        while True:
            try:
                return call()
            except kf.InvalidArgumentError as error:
                refused.append(str(error))

    def work(sequence):
        for _ in range(40):
            if not np.array_equal(again(lambda: engine.step([(sequence, tokens, "last")])), expected):
                wrong.append(sequence)
            again(lambda: engine.truncate(sequence, 0))
            again(lambda: engine.release_sequence(again(engine.create_sequence)))

    threads = [threading.Thread(target=work, args=(s,)) for s in sequences]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and all("in another thread" in text for text in refused)


# Element types of activations


@pytest.mark.parametrize("dtype", [np.float16, BF16])
def test_logits_are_float32_whatever_the_activations_are(tmp_path, dtype):
    file = open_model(write_safetensors(tmp_path / "model", TINY, dtype))
    name = {np.float16: "f16", BF16: "bf16"}[dtype]
    tokens = np.arange(20, dtype=np.int32)
    got = {}
    for activations in ("f32", name):
        engine = kf._kf.Engine(file.config, file.tensors, {"activation_dtype": activations, "max_seq_len": 64})
        got[activations] = engine.step([(engine.create_sequence(), tokens, "all")])
        assert got[activations].dtype == np.float32 and got[activations].shape == (20, TINY.vocab)
        assert engine.step([(engine.create_sequence(), tokens, "none")]).shape == (0, TINY.vocab)
    # Every one of a layer's 16 results and some at both ends is rounded.
    roundoff = float(ml_dtypes.finfo(dtype).eps) / 2
    assert relative_error(got[name], got["f32"]) <= (16 * TINY.layers + 4) * roundoff
    model = kf._kf.Engine(file.config, file.tensors, {"activation_dtype": name, "max_seq_len": 64})
    request = {"prompt": tokens.tolist(), "max_new_tokens": 4, "temperature": 1.0}
    assert len(model.generate([request])[0]["tokens"]) == 4


def test_the_baseline_needs_no_length(tiny_gguf):
    file = open_model(tiny_gguf)
    engine = kf._kf.Engine(file.config, file.tensors, {"baseline": True})
    assert engine.max_seq_len == 256
    assert np.isfinite(engine.step([(engine.create_sequence(), np.array([1, 2], np.int32), "last")])).all()


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda m: m.prefill([]), "at least one id"),
        (lambda m: m.prefill([2**32 + 1]), "token id 4294967297 .* vocabulary of 272"),
        (lambda m: m.prefill([2**64 + 1]), "tokens: expected integers"),
        (lambda m: m.prefill(np.array([1, 2**32 + 1])), "token id 4294967297"),
        (lambda m: m.prefill([1.5]), "tokens: expected integers .* got float64"),
        (lambda m: m.prefill([True]), "tokens: expected integers .* got bool"),
        (lambda m: m.prefill([[1], [2, 3]]), "tokens: expected"),
        (lambda m: m.decode(1.0), "tokens: expected integers"),
        (lambda m: m.decode("1"), "tokens: expected integers"),
        (lambda m: m.logits([None]), "tokens: expected integers"),
        (lambda m: m.generate([[1.9]], 4), "tokens: expected integers"),
        (lambda m: m.generate([[2**32 + 1]], 4), "token id 4294967297"),
        (lambda m: m.generate([1, [2]], 4), r"tokens: expected ids \[n\], got shape \[\]"),
        (lambda m: m.generate([[1]], 2.5), "max_new_tokens: cannot be 2.5"),
        (lambda m: m.generate([[1]], np.float64(2.5)), "max_new_tokens: cannot be"),
        (lambda m: m.engine.step([(0, np.array([1.0]), "last")]), "tokens: expected a contiguous int32 array"),
        (lambda m: m.engine.step([(0, np.array([2**32]), "last")]), "tokens: expected a contiguous int32 array"),
        (lambda m: m.engine.shape_of("ids", 1, 1, 1, 2**63 - 1), "context_len of a step must be 1 to 256"),
        (lambda m: m.engine.shape_of("ids", 513, 1, 1, 513), "must be 1 to"),
        (lambda m: m.prefill([[1]]), r"expected ids \[n\], got shape \[1, 1\]"),
        (lambda m: m.prefill([272]), "token id 272 .* vocabulary of 272"),
        (lambda m: m.prefill([-1]), "token id -1"),
        (lambda m: m.generate([[]], 4), "prompt is empty"),
        (lambda m: m.generate([[1]], -4), "max_new_tokens"),
        (lambda m: m.generate([[1]], 4, temperature=-1.0), "temperature"),
        (lambda m: m.generate([[1]], 4, temperature=1.0, top_p=0.0), "top_p"),
        (lambda m: m.engine.step([(0, np.array([1], np.int32), "some")]), "rows: expected none, last or all"),
    ],
)  # fmt: skip
def test_bad_input(tiny_gguf, use, words):
    model = kf.load_model(tiny_gguf)
    with pytest.raises(kf.InvalidArgumentError, match=words):
        use(model)


def test_more_tokens_than_there_is_room_for(tiny_gguf):
    model = kf.load_model(tiny_gguf, context=32)
    with pytest.raises(kf.ResourceExhaustedError, match="32"):
        model.generate([[1] * 20], 20)
    with pytest.raises(kf.ResourceExhaustedError, match="max_seq_len is 32"):
        model.prefill([1] * 33)
    assert np.isfinite(model.prefill([1] * 32)).all()
    model = kf.load_model(tiny_gguf, context=32, max_step_tokens=8)
    model.prefill([1, 2, 3])
    with pytest.raises(kf.ResourceExhaustedError, match="max_seq_len is 32"):
        model.prefill([1] * 33)
    # The refused prompt has not taken the place of the one before it.
    whole = kf.load_model(tiny_gguf, context=32).prefill([1, 2, 3, 4])
    assert relative_error(model.decode(4), whole) < 1e-5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(fusion_config={}), "fusion_config: expected a KernelFusionConfig, got dict"),
        (dict(fusion="some"), "fusion: expected measured, all, none, or rules among .*; got some"),
        (dict(fusion="qkv_merge,some"), "got qkv_merge,some"),
        (dict(fusion=""), "fusion: expected"),
        (dict(fusion="qkv_merge", only_rules=["residual_rms_norm"]), "no rule in common"),
        (dict(threads=100_000), "num_threads must be 0 to .*, got 100000"),
        (dict(threads=-1), "num_threads must be 0 to"),
        (dict(weights="int8"), "weights: expected one of f32, file"),
        (dict(context=512), "max_seq_len must be 1 to 256"),
        (dict(cache_dtype="int3"), "dtype: expected one of"),
        (dict(fusion="all", only_rules=["no_such_rule"]), "no_such_rule"),
        (dict(max_batch_size=0), "max_batch_size"),
        (dict(device="gpu"), "device: expected cpu, cuda, .* got 'gpu'"),
    ],
)
def test_bad_options(tiny_gguf, options, words):
    with pytest.raises(kf.InvalidArgumentError, match=words):
        kf.load_model(tiny_gguf, **options).prefill([1])


def test_a_device_without_a_backend_is_refused(tiny_gguf):
    assert kf.load_model(tiny_gguf, device="cpu:0").prefill([1]).size
    with pytest.raises(kf.UnavailableError, match="rocm:0"):
        kf.load_model(tiny_gguf, device="rocm")


def test_tied_and_untied_low_bit_files(tmp_path):
    for kind in ("q4_0", "q8_0", "f16", "bf16"):
        model = kf.load_model(write_gguf(tmp_path / f"{kind}.gguf", TINY, kind=kind), fusion="all")
        exact = kf.load_model(tmp_path / f"{kind}.gguf", weights="f32", fusion="none")
        assert relative_error(model.logits(range(9)), exact.logits(range(9))) <= 1e-3


def test_prompt_gflop_counts_every_product():
    config = {"num_layers": 2, "num_heads": 6, "num_kv_heads": 2, "head_dim": 8, "hidden_size": 40,
              "intermediate_size": 56, "vocab_size": 100}  # fmt: skip
    length, product = 5, lambda *sizes: 2 * float(np.prod(sizes))
    layer = sum(
        product(length, n, k) for n, k in [(48, 40), (16, 40), (16, 40), (40, 48), (56, 40), (56, 40), (40, 56)]
    )
    layer += sum(2 * product(6, 8, seen) for seen in range(1, length + 1))  # scores and values of each row
    assert prompt_gflop(config, length) == pytest.approx((2 * layer + product(1, 100, 40)) / 1e9)
