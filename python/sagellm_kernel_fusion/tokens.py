"""Text to token ids and back, and chat templates; through `tokenizers` and `jinja2`."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
import jinja2.sandbox
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from .errors import NotServedError, refusing
from .weights import ModelFile

# How GGUF files name the splitting of text before byte-pair encoding (llama.cpp, llama_vocab_pre_type), with the
# patterns of the models' own tokenizer.json.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SINGLE_DIGITS = ("smollm", "refact", "starcoder", "command-r")
_PATTERNS = {"default": _GPT2, "gpt-2": _GPT2, "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "qwen2": _QWEN2}

_CONTROL, _USER_DEFINED = 3, 4  # GGUF's token types


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    if name in _SINGLE_DIGITS:
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if name not in _PATTERNS:
        served = ", ".join(sorted({*_PATTERNS, *_SINGLE_DIGITS}))
        raise NotServedError(f"tokenizer.ggml.pre {name} is not served; served are {served}")
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERNS[name]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gguf_tokenizer(metadata: Mapping, path: Path) -> Tokenizer:
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise NotServedError(f"{path}: tokenizer.ggml.model {kind} is not served; served is gpt2 (byte-level BPE)")
    tokens, merges = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.merges")
    if not isinstance(tokens, list) or not isinstance(merges, list):
        raise refusing(f"{path}: expected lists tokenizer.ggml.tokens and tokenizer.ggml.merges", file=path)
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    try:
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs, ignore_merges=False))
    except Exception as error:  # the library raises bare Exceptions
        raise refusing(f"{path}: tokenizer vocabulary and merges do not fit together: {error}", file=path) from error
    tokenizer.pre_tokenizer = _pre_tokenizer(metadata.get("tokenizer.ggml.pre", "default"))
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata.get("tokenizer.ggml.token_type") or []
    typed = list(zip(tokens, kinds, strict=False))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token, kind in typed if kind == _CONTROL])
    tokenizer.add_tokens([AddedToken(token) for token, kind in typed if kind == _USER_DEFINED])
    return tokenizer


def _as_ids(value) -> list[int]:
    return [] if value is None else [int(v) for v in (value if isinstance(value, list) else [value])]


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise refusing(f"{path}: cannot be read: {error}", file=path) from error


class TokenizerOf:
    """A model's tokenizer: `encode`, `decode`, `chat`, and the ids that end a text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        bos_id: int | None = None,
        add_bos: bool = False,
        stop_ids: Iterable[int] = (),
        chat_template: str | None = None,
        special: Mapping[str, str] | None = None,
    ):
        self._tokenizer = tokenizer
        self._bos_id, self._add_bos = bos_id, add_bos and bos_id is not None
        self.stop_ids = sorted(set(stop_ids))
        self.chat_template = chat_template
        self._special = dict(special or {})

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self._bos_id, *ids] if self._add_bos and ids[:1] != [self._bos_id] else ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The text that the model's chat template makes of [{"role": "user", "content": "..."}]."""
        if not self.chat_template:
            raise refusing("chat: this model file has no chat template: give the prompt as it is")

        def fail(message: str):
            raise refusing(f"chat template: {message}")

        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = fail
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        environment.filters["tojson"] = lambda value, **kw: json.dumps(value, ensure_ascii=False, **kw)
        try:
            return environment.from_string(self.chat_template).render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **self._special
            )
        except jinja2.TemplateError as error:
            raise refusing(f"chat template: {error}") from error


class TextStream:
    """Ids one at a time to text: a piece is held back until its bytes make whole characters."""

    def __init__(self, tokenizer: TokenizerOf):
        self._tokenizer, self._ids, self._shown = tokenizer, [], 0

    def push(self, token: int) -> str:
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        piece = text[self._shown :]
        self._shown = len(text)
        # A finished line needs not be decoded again: what stands before does not change it.
        if piece.endswith("\n"):
            self._ids, self._shown = [], 0
        return piece


def load_tokenizer(file: ModelFile) -> TokenizerOf:
    """The tokenizer in a GGUF file's metadata, or in tokenizer.json beside safetensors."""
    return _from_gguf(file) if file.format == "gguf" else _from_folder(file.path)


def _from_gguf(file: ModelFile) -> TokenizerOf:
    meta = file.metadata
    tokens = meta.get("tokenizer.ggml.tokens")
    tokenizer = _gguf_tokenizer(meta, file.path)
    bos, eos = meta.get("tokenizer.ggml.bos_token_id"), meta.get("tokenizer.ggml.eos_token_id")
    stops = [*_as_ids(eos), *_as_ids(meta.get("tokenizer.ggml.eot_token_id"))]
    special = {
        name: tokens[i] for name, i in (("bos_token", bos), ("eos_token", eos)) if i is not None and i < len(tokens)
    }
    return TokenizerOf(
        tokenizer,
        bos_id=bos,
        add_bos=bool(meta.get("tokenizer.ggml.add_bos_token", False)),
        stop_ids=stops,
        chat_template=meta.get("tokenizer.chat_template"),
        special=special,
    )


def _from_folder(folder: Path) -> TokenizerOf:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise refusing(f"{folder}: expected tokenizer.json, found none", file=path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise refusing(f"{path}: not a tokenizer: {error}", file=path) from error
    options, generation = _read_json(folder / "tokenizer_config.json"), _read_json(folder / "generation_config.json")
    model = _read_json(folder / "config.json")

    def content(name: str) -> str | None:
        value = options.get(name)
        return value.get("content") if isinstance(value, dict) else value

    special = {name: text for name in ("bos_token", "eos_token", "unk_token", "pad_token") if (text := content(name))}
    template = options.get("chat_template")
    if template is None and (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text("utf-8")
    stops = _as_ids(generation.get("eos_token_id", model.get("eos_token_id")))
    if eos := special.get("eos_token"):
        stops += _as_ids(tokenizer.token_to_id(eos))
    return TokenizerOf(
        tokenizer,
        bos_id=tokenizer.token_to_id(special["bos_token"]) if "bos_token" in special else None,
        add_bos=bool(options.get("add_bos_token", False)),
        stop_ids=stops,
        chat_template=template,
        special=special,
    )
