"""Text to token ids and back, and chat templates; through `tokenizers` and `jinja2`."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import jinja2
import jinja2.sandbox
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from .errors import KernelFusionError, NotServedError, refusing
from .weights import Metadata, ModelFile

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

# Llama 3's vocabulary has words that no merges make, and its texts begin with BOS, whether the file says so or not.
_LLAMA3_NAMES = ("llama3", "llama-bpe")

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # GGUF's token types
_SPACE = "\u2581"  # as SentencePiece writes it


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """What a tokenizer or template from a file brings about is that file's fault. The tokenizers library raises bare
    Exceptions, and panics that are none; a template may fail in any way that Python code may."""
    try:
        yield
    except (KernelFusionError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise refusing(f"{what}: {str(error) or type(error).__name__}") from error


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


def _byte_level(meta: Metadata, tokens: list[str]) -> Tokenizer:
    merges = meta.texts("tokenizer.ggml.merges")
    if any(" " not in merge for merge in merges):
        raise meta.fail("tokenizer.ggml.merges", "pairs of tokens with a space between them")
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    pre = meta.text("tokenizer.ggml.pre", default="default")
    pre_tokenizer = _pre_tokenizer(pre)
    with _refusing(f"{meta.path}: tokenizer vocabulary and merges do not fit together"):
        tokenizer = Tokenizer(
            models.BPE({token: i for i, token in enumerate(tokens)}, pairs, ignore_merges=pre in _LLAMA3_NAMES)
        )
        tokenizer.pre_tokenizer = pre_tokenizer
        tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(meta: Metadata, tokens: list[str]) -> Tokenizer:
    """SentencePiece's BPE, which merges the two neighbours that make the piece of the highest score: every way to
    halve a piece is a merge, ranked by the piece's score."""
    scores = _one_a_token(meta, "tokenizer.ggml.scores", tokens)
    if not all(isinstance(score, (int, float)) for score in scores):
        raise meta.fail("tokenizer.ggml.scores", "numbers")
    kinds = _one_a_token(meta, "tokenizer.ggml.token_type", tokens, default=[_NORMAL] * len(tokens))
    ids = {token: i for i, token in enumerate(tokens)}
    ranked = sorted((i for i, kind in enumerate(kinds) if kind == _NORMAL), key=lambda i: -scores[i])
    halves = ((piece[:at], piece[at:]) for piece in map(tokens.__getitem__, ranked) for at in range(1, len(piece)))
    merges = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
    unknown = (meta.ids("tokenizer.ggml.unknown_token_id") or [0])[0]
    prefixed = meta.flag("tokenizer.ggml.add_space_prefix", default=True)
    with _refusing(f"{meta.path}: tokenizer vocabulary and scores do not fit together"):
        tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True))
        spaces = normalizers.Replace(" ", _SPACE)
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefixed else spaces
        steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    return tokenizer


def _one_a_token(meta: Metadata, key: str, tokens: list[str], default: list | None = None) -> list:
    values = meta.values.get(key, default)
    if not isinstance(values, list) or len(values) != len(tokens):
        raise meta.fail(key, f"a list of {len(tokens)} numbers, one a token")
    return values


_KINDS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _gguf_tokenizer(meta: Metadata) -> Tokenizer:
    kind = meta.text("tokenizer.ggml.model", default="none")
    if kind not in _KINDS:
        raise NotServedError(
            f"{meta.path}: tokenizer.ggml.model {kind} is not served; served are gpt2 (byte-level BPE) and llama "
            "(SentencePiece's BPE)"
        )
    tokens = meta.texts("tokenizer.ggml.tokens")
    typed = list(
        zip(tokens, _one_a_token(meta, "tokenizer.ggml.token_type", tokens, default=[0] * len(tokens)), strict=True)
    )
    tokenizer = _KINDS[kind](meta, tokens)
    with _refusing(f"{meta.path}: tokens of the tokenizer that do not fit together"):
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token, kind in typed if kind == _CONTROL])
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in typed if kind == _USER_DEFINED])
    return tokenizer


def _read_json(path: Path) -> Metadata:
    try:
        values = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise refusing(f"{path}: cannot be read: {error}", file=path) from error
    if not isinstance(values, dict):
        raise refusing(f"{path}: expected a JSON object, got {type(values).__name__}", file=path)
    return Metadata(values, path)


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
        with _refusing("tokenizer: the text cannot be encoded"):
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self._bos_id, *ids] if self._add_bos and ids[:1] != [self._bos_id] else ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        with _refusing("tokenizer: the ids cannot be decoded"):
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
        with _refusing("chat template"):
            return environment.from_string(self.chat_template).render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **self._special
            )


class TextStream:
    """Ids one at a time to text: a piece is held back until its bytes make whole characters."""

    def __init__(self, tokenizer: TokenizerOf):
        self._tokenizer, self._ids, self._shown = tokenizer, [], 0
        self._line: list[int] = []  # ids since the last line's end

    def push(self, token: int) -> str:
        self._ids.append(token)
        self._line.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        piece = text[self._shown :]
        self._shown = len(text)
        # Of what was shown the last line alone is decoded again, for some tokenizers make something else of a text's
        # first token than of the same one after others.
        if piece.endswith("\n"):
            self._ids, self._line = self._line, []
            self._shown = len(self._tokenizer.decode(self._ids))
        return piece

    def rest(self) -> str:
        """What is still held back when no more ids come."""
        return self._tokenizer.decode(self._ids)[self._shown :]


def has_tokenizer(file: ModelFile) -> bool:
    if file.format == "gguf":
        return "tokenizer.ggml.model" in file.metadata
    return (file.path / "tokenizer.json").is_file()


def load_tokenizer(file: ModelFile) -> TokenizerOf:
    """The tokenizer in a GGUF file's metadata, or in tokenizer.json beside safetensors."""
    return _from_gguf(file) if file.format == "gguf" else _from_folder(file.path)


def _from_gguf(file: ModelFile) -> TokenizerOf:
    meta = Metadata(file.metadata, file.path)
    tokenizer = _gguf_tokenizer(meta)
    kind, pre = meta.text("tokenizer.ggml.model"), meta.text("tokenizer.ggml.pre", default="default")
    tokens = meta.texts("tokenizer.ggml.tokens")
    bos, eos = meta.ids("tokenizer.ggml.bos_token_id"), meta.ids("tokenizer.ggml.eos_token_id")
    special = {
        name: tokens[ids[0]] for name, ids in (("bos_token", bos), ("eos_token", eos)) if ids and ids[0] < len(tokens)
    }
    return TokenizerOf(
        tokenizer,
        bos_id=bos[0] if bos else None,
        add_bos=meta.flag("tokenizer.ggml.add_bos_token", default=pre in _LLAMA3_NAMES or kind == "llama"),
        stop_ids=[*eos, *meta.ids("tokenizer.ggml.eot_token_id")],
        chat_template=meta.text("tokenizer.chat_template", default=""),
        special=special,
    )


def _from_folder(folder: Path) -> TokenizerOf:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise refusing(f"{folder}: expected tokenizer.json, found none", file=path)
    with _refusing(f"{path}: not a tokenizer"):
        tokenizer = Tokenizer.from_file(str(path))
    options, generation = _read_json(folder / "tokenizer_config.json"), _read_json(folder / "generation_config.json")
    model = _read_json(folder / "config.json")

    def content(name: str) -> str:
        value = options.values.get(name)
        return Metadata(value, options.path).text("content") if isinstance(value, dict) else options.text(name, "")

    special = {name: text for name in ("bos_token", "eos_token", "unk_token", "pad_token") if (text := content(name))}
    stops = generation.ids("eos_token_id") or model.ids("eos_token_id")
    if "eos_token" in special and (eos := tokenizer.token_to_id(special["eos_token"])) is not None:
        stops.append(eos)
    return TokenizerOf(
        tokenizer,
        bos_id=tokenizer.token_to_id(special["bos_token"]) if "bos_token" in special else None,
        add_bos=options.flag("add_bos_token", default=_adds_bos(tokenizer, special.get("bos_token"))),
        stop_ids=stops,
        chat_template=_template(folder, options),
        special=special,
    )


def _adds_bos(tokenizer: Tokenizer, bos: str | None) -> bool:
    """Whether the tokenizer's own post-processor begins texts with BOS."""
    ids = tokenizer.encode("", add_special_tokens=True).ids
    return bos is not None and ids[:1] == [tokenizer.token_to_id(bos)]


def _template(folder: Path, options: Metadata) -> str:
    """The chat template: a text, the one named default of several, or a file of its own."""
    value = options.values.get("chat_template")
    if isinstance(value, list):
        named = [Metadata(t, options.path) for t in value if isinstance(t, dict)]
        return next((t.text("template") for t in named if t.values.get("name") == "default"), "")
    if value is not None:
        return options.text("chat_template")
    path = folder / "chat_template.jinja"
    try:
        return path.read_text("utf-8") if path.is_file() else ""
    except (OSError, ValueError) as error:
        raise refusing(f"{path}: cannot be read: {error}", file=path) from error
