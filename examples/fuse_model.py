"""A transformers model with fused operators in place, its tokens before, while and after."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sagellm_kernel_fusion as kf

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=512, hidden_size=256, intermediate_size=640, num_hidden_layers=3, num_attention_heads=8,
    num_key_value_heads=2, pad_token_id=0, attn_implementation="sdpa",
)  # fmt: skip
model = LlamaForCausalLM(config).eval()  # or AutoModelForCausalLM.from_pretrained(...)
prompt = torch.randint(1, 512, (1, 40))


def tokens():
    return model.generate(prompt, max_new_tokens=16, min_new_tokens=16, do_sample=False)[0, 40:].tolist()


before = tokens()
weight = model.model.layers[0].mlp.gate_proj.weight.data_ptr()
done = kf.fuse_model(model)
print(done)
assert not done.refused and model.model.layers[0].mlp.gate_proj.weight.data_ptr() == weight  # shared, not copied
assert tokens() == before
print("the same", len(before), "tokens while fused")

report = done.manager.report()  # measured now, on the calls that came
print("kernel calls saved:", f"{report['kernel_calls_reduction']:.0%}")

kf.unfuse_model(model)
assert tokens() == before
print("and after")
