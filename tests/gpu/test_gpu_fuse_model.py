"""fuse_model on the device: greedy tokens and logits of transformers' families with random weights, memory shared."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as t

import sagellm_kernel_fusion as kf

SIZES = {
    "vocab_size": 160, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.2, "attn_implementation": "eager", "head_dim": 32,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: t.LlamaConfig(**SIZES),
    "qwen3": lambda: t.Qwen3Config(**(SIZES | {"head_dim": 64})),
    "mistral": lambda: t.MistralConfig(**SIZES, sliding_window=6),
    "gemma2": lambda: t.Gemma2Config(**SIZES, sliding_window=6),
    "gemma3": lambda: t.Gemma3TextConfig(**SIZES, sliding_window=6),
}


def random_model(family: str, dtype):
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
    for p in model.parameters():
        if p.dim() == 1:
            p += 0.1 * torch.randn_like(p)
    return model.to("cuda", dtype)


def prompts():
    ids = torch.randint(3, 160, (2, 13), generator=torch.Generator().manual_seed(1)).cuda()
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    return ids, mask


def greedy(model, ids, mask, **options):
    return model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, **options)


def logits(model, ids, mask):
    return model(ids, attention_mask=mask).logits[mask.bool()].double()


@pytest.mark.parametrize("family", list(CONFIGS))
def test_f32_gives_the_same_tokens(family):
    model, (ids, mask) = random_model(family, torch.float32), prompts()
    expected, tokens = logits(model, ids, mask), greedy(model, ids, mask)
    done = kf.fuse_model(model)
    assert not done.refused and any("decoder layer" in what for _, what in done.fused), str(done)
    # f32 throughout: sums in another order through a few layers, as on the CPU.
    assert float((logits(model, ids, mask) - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    assert torch.equal(greedy(model, ids, mask), tokens)
    assert torch.equal(greedy(model, ids, mask, cache_implementation="static"), tokens)
    kernels = [k for op in done.manager.get_stats()["ops"].values() for k in op["kernels"]]
    assert kernels and not [k for k in kernels if k.startswith("cpu")]
    kf.unfuse_model(model)
    assert torch.equal(logits(model, ids, mask), expected)


@pytest.mark.parametrize("family", list(CONFIGS))
def test_bf16_is_as_near_to_f32_as_eager_is(family):
    model, (ids, mask) = random_model(family, torch.bfloat16), prompts()
    exact = logits(copy.deepcopy(model).float(), ids, mask)
    of_eager = float((logits(model, ids, mask) - exact).norm())
    done = kf.fuse_model(model)
    assert not done.refused, str(done)
    # It rounds at fewer places; 1.5 for the chance of one draw.
    assert float((logits(model, ids, mask) - exact).norm()) <= 1.5 * of_eager


def test_weights_are_shared_and_a_side_stream_serves():
    model, (ids, mask) = random_model("llama", torch.float32), prompts()
    expected = greedy(model, ids, mask)
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    kf.fuse_model(model)
    greedy(model, ids, mask)
    torch.cuda.synchronize()
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places
    of_layers = sum(p.nbytes for p in model.model.layers.parameters())
    assert torch.cuda.memory_allocated() - before < of_layers / 4
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.inference_mode():
        torch.cuda._sleep(20_000_000)
        got = greedy(model, ids, mask)
    stream.synchronize()
    assert torch.equal(got, expected)
