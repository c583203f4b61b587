"""Tokenizers and chat templates."""

from __future__ import annotations

import pytest

import sagellm_kernel_fusion as kf
from sagellm_kernel_fusion.tokens import TextStream, load_tokenizer
from sagellm_kernel_fusion.weights import open_model


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return load_tokenizer(open_model(smollm2))


def test_same_tokens_as_transformers(tokenizer, golden):
    assert tokenizer.encode(golden["text"]) == golden["tokens"]
    assert tokenizer.encode(golden["prompt"]) == golden["prompt_tokens"]
    assert tokenizer.decode(golden["greedy_tokens"]) == golden["greedy_text"]


@pytest.mark.parametrize("text", ["", " ", "a\n\n  b", "1234 5.6e7", "naïve 你好 🙂", "<|im_start|>user\n", "x" * 999])
def test_decoding_undoes_encoding(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


def test_a_stream_gives_the_whole_text_in_whole_characters(tokenizer):
    text = "One line.\nA second: 你好 🙂 done."
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)


def test_chat_template(tokenizer):
    text = tokenizer.chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )  # fmt: skip
    assert tokenizer.stop_ids == [2]


def test_a_template_cannot_reach_out(tiny_gguf):
    tokenizer = load_tokenizer(open_model(tiny_gguf))
    tokenizer.chat_template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(kf.InvalidArgumentError, match="chat template"):
        tokenizer.chat([{"role": "user", "content": "Hi"}])


def test_without_a_template(tiny_gguf):
    with pytest.raises(kf.InvalidArgumentError, match="no chat template"):
        load_tokenizer(open_model(tiny_gguf)).chat([])


def test_without_a_tokenizer(tiny_folder):
    with pytest.raises(kf.InvalidArgumentError, match=r"expected tokenizer\.json"):
        load_tokenizer(open_model(tiny_folder))
