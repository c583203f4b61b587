"""Tokenizers and chat templates."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
from gguf import GGUFValueType
from tokenizers import Tokenizer, decoders, models

import sagellm_kernel_fusion as kf
from model_files import TINY, write_gguf, write_safetensors
from sagellm_kernel_fusion.tokens import TextStream, TokenizerOf, load_tokenizer
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


def test_a_stream_of_a_tokenizer_that_strips_the_first_space():
    vocab = {token: i for i, token in enumerate(["▁def", "▁", "foo", "\n", "▁bar", "\ufffd"])}
    model = Tokenizer(models.WordLevel(vocab, unk_token="\ufffd"))
    model.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer, ids = TokenizerOf(model), [0, 3, 1, 1, 2, 3, 4, 3, 3, 4, 5]
    stream = TextStream(tokenizer)
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) == tokenizer.decode(ids[:-1]) and pieces[-1] == ""
    assert "".join(pieces) + stream.rest() == tokenizer.decode(ids) == "def\n  foo\n bar\n\n bar\ufffd"


def test_chat_template(tokenizer):
    text = tokenizer.chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )  # fmt: skip
    assert tokenizer.stop_ids == [2]


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1/0 }}",
        "{{ messages[9].content + 1 }}",
        "{{ 'a' + 1 }}",
        "{{ [1]|tojson(indent=[]) }}",
        "{{ strftime_now(5) }}",
        "{{ raise_exception('no') }}",
        "{{ 'a' * 10**15 }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'x' %}",
        "{{",
    ],
)
def test_templates_that_fail_or_reach_out(tiny_gguf, template):
    tokenizer = load_tokenizer(open_model(tiny_gguf))
    tokenizer.chat_template = template
    with pytest.raises(kf.InvalidArgumentError, match="chat template"):
        tokenizer.chat([{"role": "user", "content": "Hi"}])


def refused(path, words):
    with pytest.raises(kf.KernelFusionError, match=words):
        load_tokenizer(open_model(path)).encode("ab")


_ID, _TEXT, _TEXTS = GGUFValueType.UINT32, GGUFValueType.STRING, GGUFValueType.ARRAY


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model", (7, _ID), "model: expected a text, got 7"),
        ("model", ("unigram", _TEXT), "unigram is not served"),
        ("tokens", (7, _ID), "tokens: expected a list of texts, got 7"),
        ("tokens", ([1, 2], _TEXTS), "tokens: expected a list of texts"),
        ("tokens", (["a"], _TEXTS), "token_type: expected a list of 1 numbers"),
        ("merges", ("t h", _TEXT), "merges: expected a list of texts"),
        ("merges", ([3], _TEXTS), "merges: expected a list of texts"),
        ("merges", (["th"], _TEXTS), "merges: expected pairs"),
        ("merges", (["t zz"], _TEXTS), "do not fit together"),
        ("token_type", (3, _ID), "token_type: expected a list of 272"),
        ("token_type", ([3], _TEXTS), "token_type: expected a list of 272"),
        ("pre", (7, _ID), "pre: expected a text"),
        ("pre", ("other", _TEXT), "pre other is not served"),
        ("pre", (["a"], _TEXTS), "pre: expected a text"),
        ("bos_token_id", ("a", _TEXT), "bos_token_id: expected a token id"),
        ("bos_token_id", (-1, GGUFValueType.INT32), "bos_token_id: expected a token id"),
        ("eos_token_id", (1.5, GGUFValueType.FLOAT32), "eos_token_id: expected a token id"),
        ("eos_token_id", (2**40, GGUFValueType.UINT64), "eos_token_id: expected a token id"),
        ("eos_token_id", (["a"], _TEXTS), "eos_token_id: expected a token id"),
        ("add_bos_token", ("yes", _TEXT), "add_bos_token: expected true or false"),
    ],
)
def test_hostile_tokenizers_of_gguf(tmp_path, key, value, words):
    refused(write_gguf(tmp_path / "x.gguf", TINY, **{f"tokenizer__ggml__{key}": value}), words)


def test_a_chat_template_that_is_no_text(tmp_path):
    refused(write_gguf(tmp_path / "x.gguf", TINY, tokenizer__chat_template=(7, _ID)), "chat_template: expected a text")


@pytest.fixture
def folder(tmp_path):
    """A safetensors folder with a tokenizer of one word."""
    folder = write_safetensors(tmp_path / "model", TINY)
    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(folder / "tokenizer.json"))
    return folder


def test_a_folders_tokenizer(folder):
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "b"}, "chat_template": [{"name": "default", "template": "a"}]})
    )
    tokenizer = load_tokenizer(open_model(folder))
    assert tokenizer.encode("ab") == [0, 1] and tokenizer.stop_ids == [1] and tokenizer.chat([]) == "a"


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", "{}", "not a tokenizer"),
        ("tokenizer.json", "[" * 100_000, "not a tokenizer"),
        ("tokenizer.json", '{"version":"1.0","model":{"type":"BPE","vocab":{"a":-1},"merges":[]}}', "not a tokenizer"),
        (
            "tokenizer.json",
            '{"version":"1.0","model":{"type":"WordLevel","vocab":{"z":0},"unk_token":"x"}}',
            "cannot be encoded",
        ),
        ("tokenizer_config.json", "[1]", "expected a JSON object"),
        ("tokenizer_config.json", "[" * 100_000, "cannot be read"),
        ("tokenizer_config.json", '{"bos_token": 5}', "bos_token: expected a text"),
        ("tokenizer_config.json", '{"eos_token": {"content": 5}}', "content: expected a text"),
        ("tokenizer_config.json", '{"add_bos_token": "yes"}', "add_bos_token: expected true or false"),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template: expected a text"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": 5}]}', "template: expected"),
        ("generation_config.json", '{"eos_token_id": "a"}', "eos_token_id: expected a token id"),
        ("generation_config.json", '{"eos_token_id": [1.5]}', "eos_token_id: expected a token id"),
        ("generation_config.json", "7", "expected a JSON object"),
        ("chat_template.jinja", b"\xff", "cannot be read"),
    ],
)
def test_hostile_tokenizers_of_folders(folder, file, content, words):
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(folder, words)


def test_text_that_is_no_unicode(tiny_gguf):
    with pytest.raises(kf.InvalidArgumentError, match="cannot be encoded"):
        load_tokenizer(open_model(tiny_gguf)).encode("\ud800")


def test_without_a_template(tiny_gguf):
    with pytest.raises(kf.InvalidArgumentError, match="no chat template"):
        load_tokenizer(open_model(tiny_gguf)).chat([])


def test_without_a_tokenizer(tiny_folder):
    with pytest.raises(kf.InvalidArgumentError, match=r"expected tokenizer\.json"):
        load_tokenizer(open_model(tiny_folder))


_PIECES = {"▁": -8, "h": -9, "e": -10, "l": -11, "o": -12, "w": -13, "r": -14, "d": -15, "he": -2, "ll": -1, "llo": -4}
_PIECES |= {
    "hello": -3,
    "▁hello": -0.5,
    "lo": -1.5,
    "▁w": -5,
    "or": -6,
    "▁wor": -6.5,
    "ld": -7,
    "el": -0.7,
    "hel": -3.5,
}


def sentencepiece_file(tmp_path, space_prefix=True):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *_PIECES, "<|end|>", "  "]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(_PIECES), 3, 4]
    scores = [0.0] * 259 + [float(s) for s in _PIECES.values()] + [0.0, 0.0]
    rest = {
        "tokens": (tokens, GGUFValueType.ARRAY), "token_type": (kinds, GGUFValueType.ARRAY),
        "scores": (scores, GGUFValueType.ARRAY), "model": ("llama", GGUFValueType.STRING),
        "bos_token_id": (1, _ID), "add_space_prefix": (space_prefix, GGUFValueType.BOOL),
    }  # fmt: skip
    shape = replace(TINY, vocab=len(tokens))
    path = write_gguf(tmp_path / "x.gguf", shape, **{f"tokenizer__ggml__{k}": v for k, v in rest.items()})
    return path, {token: i for i, token in enumerate(tokens)}


def merged_by_score(text, ids):
    """SentencePiece's BPE as it is written down: again and again the two neighbours of the best score, the first."""
    pieces = list(text.replace(" ", "▁"))
    while True:
        found = [(-_PIECES[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(pieces)) if a + b in _PIECES]
        if not found:
            break
        _, i = min(found)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return [t for p in pieces for t in ([ids[p]] if p in ids else [ids[f"<0x{b:02X}>"] for b in p.encode()])]


@pytest.mark.parametrize("space_prefix", [True, False])
def test_sentencepiece_of_gguf(tmp_path, space_prefix):
    path, ids = sentencepiece_file(tmp_path, space_prefix)
    tokenizer = load_tokenizer(open_model(path))
    for text in ("hello world", "hello", "well old hell", "é漢 hello", "lllll oooo", " hello", "helhelo rorlld"):
        got = tokenizer.encode(text)
        assert got == [1, *merged_by_score(f" {text}" if space_prefix else text, ids)]
        assert tokenizer.decode(got) == text
    assert tokenizer.encode("hello<|end|>hello")[2] == ids["<|end|>"]
    assert ids["  "] in tokenizer.encode("hello  world")  # of the user's, with the spaces of the text
    model = kf.load_model(path, fusion="all")
    assert len(model.generate("hello", max_new_tokens=3, stop=False).tokens) == 3


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("scores", ([0.0], GGUFValueType.ARRAY), "scores: expected a list of 2.. numbers"),
        ("scores", (["a"] * 281, GGUFValueType.ARRAY), "scores: expected"),
        ("unknown_token_id", (10**6, _ID), "do not fit together"),
        ("model", ("bert", GGUFValueType.STRING), "served are gpt2 .* and llama"),
    ],
)
def test_sentencepiece_that_does_not_fit(tmp_path, key, value, words):
    tokens = ["<unk>", "a", *(f"<{i}>" for i in range(TINY.vocab - 2))]
    rest = {"model": ("llama", GGUFValueType.STRING), "scores": ([0.0] * TINY.vocab, GGUFValueType.ARRAY)}
    rest |= {"tokens": (tokens, GGUFValueType.ARRAY), "token_type": ([1] * TINY.vocab, GGUFValueType.ARRAY)}
    values = {f"tokenizer__ggml__{k}": v for k, v in (rest | {key: value}).items()}
    with pytest.raises(kf.KernelFusionError, match=words):
        load_tokenizer(open_model(write_gguf(tmp_path / "x.gguf", TINY, **values)))
