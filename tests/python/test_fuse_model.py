"""fuse_model over transformers' families with random weights and plain torch modules: the same logits and greedy
tokens, restored bit for bit, and what is refused, with the reason."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest

import sagellm_kernel_fusion as kf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
nn = torch.nn

SIZES = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.2, "attn_implementation": "eager",
}  # fmt: skip
WINDOW = {"sliding_window": 6}
UNTIED = SIZES | {"tie_word_embeddings": False}  # tied ones of random weights say the last token again


def configs() -> dict:
    t = transformers
    return {
        "llama": t.LlamaConfig(**SIZES, head_dim=16),
        "llama with biases": t.LlamaConfig(**SIZES, head_dim=16, attention_bias=True),
        "qwen2": t.Qwen2Config(**SIZES, use_sliding_window=True, max_window_layers=1, **WINDOW),
        "qwen3": t.Qwen3Config(**SIZES, head_dim=24),
        "mistral": t.MistralConfig(**SIZES, head_dim=16, **WINDOW),
        "phi3": t.Phi3Config(**SIZES, **WINDOW),
        "phi3, partly rotated": t.Phi3Config(**SIZES, rope_parameters=PARTIAL_ROPE),
        "gemma2": t.Gemma2Config(**UNTIED, head_dim=16, attn_logit_softcapping=1.0, **WINDOW),
        "gemma3": t.Gemma3TextConfig(**UNTIED, head_dim=16, **WINDOW),
    }


PARTIAL_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
WHOLE_ROPE = PARTIAL_ROPE | {"partial_rotary_factor": 1.0}


def random_model(config, seed: int = 0):
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():  # norms and biases that are not 1 and 0
            if p.dim() == 1:
                p += 0.1 * torch.randn_like(p)
    return model


def prompts(padding: int = 4):
    ids = torch.randint(3, 160, (2, 13), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    return ids, mask


def logits(model, ids, mask):
    with torch.no_grad():
        return model(ids, attention_mask=mask).logits[mask.bool()]


def greedy(model, ids, mask, **options):
    return model.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False, **options)


def in_parts(model, ids, mask):
    """The same logits by several tokens a step over what a cache holds."""
    got, cache = [], None
    for start, end in ((0, 7), (7, 10), (10, 13)):
        with torch.no_grad():
            out = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        got.append(out.logits)
    return torch.cat(got, 1)[mask.bool()]


TOLERANCE = 1e-4  # f32 throughout: sums in another order through a few layers


def difference(actual, expected) -> float:
    return float((actual - expected).abs().max()) / float(expected.abs().max())


def close_to(actual, expected):
    assert difference(actual, expected) <= TOLERANCE


@pytest.mark.parametrize("family", list(configs()))
def test_families_give_the_same_logits_and_tokens(family):
    model = random_model(configs()[family])
    ids, mask = prompts()
    expected, tokens = logits(model, ids, mask), greedy(model, ids, mask)
    assert tokens[:, ids.shape[1] :].unique().numel() > 5, "tokens that would hide a difference"
    unfused = copy.deepcopy(model)
    weights = {name: p.data_ptr() for name, p in model.named_parameters()}
    done = kf.fuse_model(model)
    assert [what for _, what in done.fused] == ["decoder layer"] * 2 + ["rms_norm", "linear"], str(done)
    assert done.refused == []
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == weights
    close_to(logits(model, ids, mask), expected)
    close_to(in_parts(model, ids, mask), expected)
    assert torch.equal(greedy(model, ids, mask), tokens)
    assert torch.equal(greedy(model, ids, mask, cache_implementation="static", disable_compile=True), tokens)
    whole = prompts(padding=0)  # without a mask where nothing is padded
    assert torch.equal(greedy(model, *whole, cache_implementation="static"), greedy(unfused, *whole))
    close_to(logits(model, *prompts(padding=0)), logits(kf.unfuse_model(copy.deepcopy(model)), *prompts(padding=0)))
    calls = done.manager.get_stats()["ops"]
    assert calls["attention"]["calls"] > 0 and calls["gated_ffn"]["calls"] == calls["qkv_linear"]["calls"]
    assert kf.unfuse_model(model) is model
    assert torch.equal(logits(model, ids, mask), expected)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("family", "options"),
    [(family, {"sliding_window": 64}) for family in ("qwen2", "mistral", "phi3", "gemma2", "gemma3")]
    + [("gemma2", {"attn_logit_softcapping": None}), ("phi3, partly rotated", {"rope_parameters": WHOLE_ROPE})],
)
def test_what_these_families_have_shows_in_their_logits(family, options):
    """What the test above compares would differ, were it left out."""
    model, other = random_model(configs()[family]), configs()[family]
    for name, value in options.items():
        setattr(other, name, value)
    without = random_model(other)
    without.load_state_dict(model.state_dict())
    assert difference(logits(without, *prompts()), logits(model, *prompts())) > 100 * TOLERANCE


@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_sixteen_bits(dtype, tolerance):
    """No further from the f32 model than eager's own 16 bits, within the rounding of one result."""
    model = random_model(configs()["llama"])
    ids, mask = prompts()
    exact = logits(model, ids, mask)
    model = model.to(getattr(torch, dtype))
    eager = logits(model, ids, mask).float()
    kf.fuse_model(model)
    fused = logits(model, ids, mask).float()
    scale = float(exact.abs().max())
    assert float((fused - exact).norm()) <= float((eager - exact).norm()) + tolerance * float(exact.norm())
    assert float((fused - exact).abs().max()) < 0.2 * scale


def test_weights_are_shared_and_read_at_every_call():
    model = random_model(configs()["llama"])
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    kf.fuse_model(model)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    other = random_model(configs()["llama"], seed=1)
    model.load_state_dict(other.state_dict())
    close_to(logits(model, *prompts()), logits(other, *prompts()))
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.zeros(96, 64))
    other.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.zeros(96, 64))
    close_to(logits(model, *prompts()), logits(other, *prompts()))


def test_what_it_tries_the_modules_with_is_gone_afterwards():
    model = random_model(configs()["llama"])
    kf.fuse_model(random_model(configs()["llama"]))  # what is made once
    gc.collect()
    gc.disable()
    try:
        before = sum(type(o) is nn.Linear for o in gc.get_objects())
        kf.fuse_model(model)
        assert sum(type(o) is nn.Linear for o in gc.get_objects()) == before
    finally:
        gc.enable()


def test_copies_are_fused_and_apart():
    model = random_model(configs()["llama"])
    kf.fuse_model(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.zero_()
    assert not torch.equal(logits(other, *prompts()), logits(model, *prompts()))
    kf.unfuse_model(other)
    assert other.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "kernel_fusion"
    with pytest.raises(ValueError, match="unfuse_model"):
        pickle.dumps(model)
    pickle.dumps(other)


def test_configurations_choose_what_is_fused():
    model = random_model(configs()["llama"])
    expected = logits(model, *prompts())
    config = kf.KernelFusionConfig(fuse_ffn=False, attention_backend="vanilla")
    done = kf.fuse_model(model, config)
    close_to(logits(model, *prompts()), expected)
    kernels = {kernel for op in done.manager.get_stats()["ops"].values() for kernel in op["kernels"]}
    assert {"cpu::gated_ffn_unfused", "cpu::attention_unfused"} <= kernels
    assert "cpu::qkv_linear_unfused" not in kernels


def test_a_custom_kernel_serves_a_model():
    model = random_model(configs()["llama"])
    expected = logits(model, *prompts())
    manager = kf.KernelFusionManager()

    def norm(x, weight, eps):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

    manager.register_custom_kernel("mine", norm, op="rms_norm")
    done = kf.fuse_model(model, manager=manager)
    assert done.manager is manager
    close_to(logits(model, *prompts()), expected)
    assert manager.get_stats()["ops"]["rms_norm"]["kernels"]["custom::mine"]["calls"] == 1


class Doubled(transformers.models.llama.modeling_llama.LlamaDecoderLayer):
    def forward(self, hidden_states, **kwargs):
        return 2 * super().forward(hidden_states, **kwargs)


Doubled.__name__ = "LlamaDecoderLayer"


def test_what_computes_something_else_is_left_as_it_was():
    model = random_model(configs()["llama"])
    model.model.layers[1].__class__ = Doubled
    model.model.layers[0].mlp.act_fn = nn.Tanh()
    expected = logits(model, *prompts())
    done = kf.fuse_model(model)
    refused = dict(done.refused)
    assert "activation Tanh: expected SiLU, GELU or ReLU" in refused["model.layers.0"]
    assert "differs by" in refused["model.layers.1"]
    assert {"model.layers.0.input_layernorm", "model.layers.1.mlp", "model.norm"} <= {name for name, _ in done.fused}
    assert "left as it was" in str(done)
    close_to(logits(model, *prompts()), expected)


def test_layers_with_hooks_and_adapters_are_left_as_they_were():
    model = random_model(configs()["llama"])

    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    model.model.layers[0].self_attn.o_proj.__class__ = Adapted
    seen = []
    model.model.layers[1].mlp.register_forward_hook(lambda *args: seen.append(1))
    expected = logits(model, *prompts())
    refused = dict(kf.fuse_model(model).refused)
    assert "o_proj is a Adapted, not torch.nn.Linear" in refused["model.layers.0"]
    assert "has hooks" in refused["model.layers.1"]
    close_to(logits(model, *prompts()), expected)
    assert len(seen) == 2


def test_a_family_without_a_recipe_keeps_its_layers():
    config = transformers.OlmoConfig(**SIZES)
    model = random_model(config)
    expected = logits(model, *prompts())
    done = kf.fuse_model(model)
    assert "OlmoDecoderLayer is not one of" in dict(done.refused)["model.layers.0"]
    assert ("model.layers.0.mlp", "gated_ffn") in done.fused
    close_to(logits(model, *prompts()), expected)


def test_the_attention_alone_by_its_name():
    from sagellm_kernel_fusion.integrations import register_attention

    model = random_model(transformers.OlmoConfig(**SIZES))
    expected, tokens = logits(model, *prompts()), greedy(model, *prompts())
    model.set_attn_implementation(register_attention())
    close_to(logits(model, *prompts()), expected)
    assert torch.equal(greedy(model, *prompts()), tokens)


def test_plain_torch_modules():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), nn.LayerNorm(48), nn.GELU(), nn.RMSNorm(48, eps=1e-6), nn.RMSNorm(48))
    x = torch.randn(2, 3, 32)
    with torch.no_grad():
        expected = model(x)
        done = kf.fuse_model(model)
        assert done.fused == [("1", "layer_norm"), ("3", "rms_norm"), ("4", "rms_norm")]
        close_to(model(x), expected)
        assert torch.equal(kf.unfuse_model(model)(x), expected)


def test_wrong_use_says_what_to_do():
    with pytest.raises(ValueError, match=r"expected a torch\.nn\.Module, got list"):
        kf.fuse_model([])
    with pytest.raises(ValueError, match="manager: expected a KernelFusionManager, got int"):
        kf.fuse_model(nn.RMSNorm(8), manager=3)
    model = random_model(configs()["llama"])
    with pytest.raises(ValueError, match="expected one that fuse_model has changed"):
        kf.unfuse_model(model)
    kf.fuse_model(model)
    with pytest.raises(ValueError, match="unfuse_model"):
        kf.fuse_model(model)
    ids, mask = prompts()
    with pytest.raises(ValueError, match="inference_mode"):
        model(ids, attention_mask=mask)
    with torch.no_grad(), pytest.raises(ValueError, match="output_attentions"):
        model(ids, attention_mask=mask, output_attentions=True)
    model.config.attention_dropout = 0.1
    dropping = random_model(transformers.LlamaConfig(**SIZES, head_dim=16, attention_dropout=0.1))
    kf.fuse_model(dropping)
    dropping.train()
    with torch.no_grad(), pytest.raises(ValueError, match=r"model\.eval\(\)"):
        dropping(ids, attention_mask=mask)
