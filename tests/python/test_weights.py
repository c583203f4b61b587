"""Model files: what is read, and what damaged or hostile ones are refused with."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sagellm_kernel_fusion as kf
from model_files import TINY, tiny_weights, write_gguf, write_safetensors
from sagellm_kernel_fusion.arrays import to_numpy
from sagellm_kernel_fusion.weights import open_model


def test_gguf_keeps_the_files_own_types(tiny_gguf):
    file = open_model(tiny_gguf)
    assert file.format == "gguf" and set(file.tensors) == set(tiny_weights(TINY))
    assert file.config == {
        "architecture": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
        "vocab_size": 272,
        "max_positions": 256,
        "sliding_window": 0,
        "rms_norm_eps": pytest.approx(1e-5),
        "rope_theta": 10000.0,
        "rope_interleaved": True,
        "tie_embeddings": False,
    }
    weight = file.tensors["model.layers.0.mlp.up_proj.weight"]
    assert isinstance(weight, kf.GgufTensor) and weight.dtype == "q4_1" and weight.shape == (96, 64)
    assert file.tensors["model.norm.weight"].dtype == np.float32


def test_our_dequantization_is_the_librarys(tiny_gguf):
    file = open_model(tiny_gguf)
    name = "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_allclose(to_numpy(file.tensors[name]), file.dequantize(name), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
def test_safetensors(tmp_path, dtype, shards):
    file = open_model(write_safetensors(tmp_path / "model", TINY, dtype, shards))
    assert file.config["rope_interleaved"] is False and file.config["num_kv_heads"] == 2
    for name, weight in tiny_weights(TINY).items():
        np.testing.assert_array_equal(file.tensors[name], weight.astype(dtype))
        assert not file.tensors[name].flags.owndata  # it lies in the file's mapping


def test_llama3_rope_scaling_in_both_spellings(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    old = open_model(write_safetensors(tmp_path / "old", TINY, rope_scaling=scaling))
    new = open_model(write_safetensors(tmp_path / "new", TINY, rope_parameters=scaling | {"rope_theta": 5e5}))
    assert old.config["rope_scaling"] == new.config["rope_scaling"]
    assert new.config["rope_theta"] == 5e5 and old.config["rope_scaling"]["original_max_position"] == 64


def refused(path, words):
    with pytest.raises(kf.InvalidArgumentError, match=words) as caught:
        open_model(path)
    assert str(path) in str(caught.value)


def test_nothing_there(tmp_path):
    refused(tmp_path / "none.gguf", "found nothing there")
    refused(tmp_path, "config.json")


def test_a_file_of_another_kind(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\3\4" + bytes(100))
    refused(path, "magic")
    path.write_bytes(b"")
    refused(path, "GGUF")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999))
def test_truncated_gguf(tiny_gguf, tmp_path, share):
    data = tiny_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(share * len(data))])
    refused(path, "not a whole GGUF file")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(4, 4000), value=st.binary(min_size=1, max_size=8))
def test_damaged_gguf_is_read_or_refused_but_never_worse(tiny_gguf, tmp_path, place, value):
    data = bytearray(tiny_gguf.read_bytes())
    data[place : place + len(value)] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    with contextlib.suppress(kf.KernelFusionError):
        kf.load_model(path)


@pytest.fixture(scope="module")
def tensor_infos(tiny_gguf):
    """Where the descriptions of tensors lie in the file."""
    data = tiny_gguf.read_bytes()
    return data.index(b"token_embd.weight") - 8, data.index(b"output.weight") + 80


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1), value=st.binary(min_size=1, max_size=8))
def test_damaged_tensor_descriptions_are_read_or_refused_but_never_worse(
    tiny_gguf, tensor_infos, tmp_path, share, value
):
    begin, end = tensor_infos
    data = bytearray(tiny_gguf.read_bytes())
    place = begin + int(share * (end - begin))
    data[place : place + len(value)] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    with contextlib.suppress(kf.KernelFusionError):
        kf.load_model(path).prefill([1, 2])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("block_count", 2**31 - 1, "num_layers must be 1 to 65536, got 2147483647"),
        ("block_count", 60_000, "num_layers is 60000, but there are 21 tensors"),
        ("block_count", 2**32 - 1, "block_count: expected an integer"),
        ("attention.head_count", 2**31 - 1, "num_heads must be a multiple|must be 1 to"),
        ("embedding_length", 2**31 - 1, "expected shape"),
        ("attention.key_length", 2**31 - 2, "expected keys and values of one head_dim"),
        ("feed_forward_length", 2**31 - 1, "expected shape"),
        ("context_length", 0, "context_length: expected an integer of at least 1"),
    ],
)
def test_sizes_that_no_model_has(tmp_path, key, value, words):
    path = write_gguf(tmp_path / "x.gguf", TINY, **{f"llama.{key}": (value, GGUFValueType.UINT32)})
    with pytest.raises(kf.KernelFusionError, match=words):
        kf.load_model(path)


def test_expected_weights_of_sizes_that_no_model_has(tiny_gguf):
    config = open_model(tiny_gguf).config
    assert len(kf._kf.expected_weights(config)) == 21
    for change in ({"num_layers": 2**31 - 1}, {"num_heads": 2**40, "head_dim": 2**40}, {"hidden_size": 2**62}):
        with pytest.raises(kf.InvalidArgumentError, match=r"model config: .* must be 1 to"):
            kf._kf.expected_weights(config | change)


def test_a_context_beyond_memory_is_refused_as_such(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", TINY, **{"llama.context_length": (2**31 - 1, GGUFValueType.UINT32)})
    assert np.isfinite(kf.load_model(path).prefill([1, 2])).all()
    with pytest.raises(kf.KernelFusionError, match=r"num_pages must be 1|more than memory|cannot allocate"):
        kf.load_model(path, context=2**31 - 1, max_batch_size=64)


def test_gguf_with_an_array_longer_than_the_file(tmp_path):
    key = b"general.architecture"
    for item_type in (GGUFValueType.UINT8, GGUFValueType.STRING, GGUFValueType.ARRAY):
        path = tmp_path / f"{item_type}.gguf"
        path.write_bytes(
            b"GGUF"
            + struct.pack("<IQQ", 3, 0, 1)
            + struct.pack("<Q", len(key))
            + key
            + struct.pack("<IIQ", GGUFValueType.ARRAY, item_type, 2**60)
        )
        refused(path, "it ends at byte")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"llama__rope__scaling__type": ("yarn", GGUFValueType.STRING)}, "rope.scaling.type: expected none"),
        ({"llama__rope__dimension_count": (16, GGUFValueType.UINT32)}, "all 32 of a head, got 16"),
    ],
)
def test_gguf_of_what_is_not_served(tmp_path, overrides, words):
    with pytest.raises(kf.NotServedError, match=words):
        open_model(write_gguf(tmp_path / "x.gguf", TINY, **overrides))


def test_an_unknown_architecture_names_those_that_are_served(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", TINY, architecture="gpt2")
    with pytest.raises(kf.NotServedError, match=r"gpt2.*served are: llama"):
        kf.load_model(path)


def test_a_format_that_no_kernel_takes_can_be_dequantized(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", TINY, kind="q5_1")
    with pytest.raises(kf.NotServedError, match=r'q5_1.*weights="f32"'):
        kf.load_model(path)
    assert np.isfinite(kf.load_model(path, weights="f32").prefill([1, 2, 3])).all()


def edit_config(folder, tmp_path, **changes):
    copy = tmp_path / "edited"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text()) | changes
    (copy / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))
    return copy


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": "absent"}, "hidden_size: expected an integer of at least 1, got nothing"),
        ({"hidden_size": -64}, "hidden_size: .* got -64"),
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"num_attention_heads": "four"}, "num_attention_heads: .* got 'four'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: expected a positive number"),
        ({"model_type": 7}, "model_type: expected a text"),
        ({"rope_scaling": [1]}, "rope_scaling: expected an object"),
        ({"num_key_value_heads": 3}, "num_heads must be a multiple"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "no use for it"),
        ({"vocab_size": 300}, r"expected shape \[300, 64\], got \[272, 64\]"),
    ],
)
def test_configurations_that_do_not_fit(tiny_folder, tmp_path, changes, words):
    with pytest.raises(kf.InvalidArgumentError, match=words):
        kf.load_model(edit_config(tiny_folder, tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act gelu is not served"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling of type yarn"),
        ({"model_type": "mamba"}, "mamba"),
    ],
)
def test_configurations_that_are_not_served(tiny_folder, tmp_path, changes, words):
    with pytest.raises(kf.NotServedError, match=words):
        kf.load_model(edit_config(tiny_folder, tmp_path, **changes))


def test_damaged_safetensors(tiny_folder, tmp_path):
    copy = edit_config(tiny_folder, tmp_path)
    data = (copy / "model.safetensors").read_bytes()
    for damaged in (data[: len(data) // 2], data[:4], b"\xff" * 64, b""):
        (copy / "model.safetensors").write_bytes(damaged)
        with pytest.raises(kf.InvalidArgumentError, match="not a whole safetensors file"):
            open_model(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(kf.InvalidArgumentError, match="not JSON"):
        open_model(copy)


def raw_safetensors(path, tensors, pad=True):
    """A file with these (name, dtype name, array) end to end, as the format allows and its library does not write."""
    header, data = {}, b""
    for name, kind, array in tensors:
        stored = array.tobytes()
        entry = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(stored)]}
        header[name], data = entry, data + stored
    text = json.dumps(header).encode()
    if pad:
        text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def rewritten(folder, tmp_path, before, dtypes=None, pad=True):
    """The model's tensors behind others, in a file of our own."""
    copy = edit_config(folder, tmp_path)
    kinds = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.float64): "F64"}
    weights = {n: w.astype((dtypes or {}).get(n, w.dtype)) for n, w in tiny_weights(TINY).items()}
    tensors = [*before, *((n, kinds[w.dtype], w) for n, w in weights.items())]
    raw_safetensors(copy / "model.safetensors", tensors, pad)
    return copy


def test_unaligned_tensors_are_copied_and_no_others(tiny_folder, tmp_path):
    # Frequencies that older files carry and the model ignores, an odd number of halves.
    odd = ("model.layers.0.self_attn.rotary_emb.inv_freq", "F16", np.ones(3, np.float16))
    folder = rewritten(tiny_folder, tmp_path, [odd])
    file = open_model(folder)
    for name, weight in tiny_weights(TINY).items():
        got = file.tensors[name]
        np.testing.assert_array_equal(got, weight)
        assert got.ctypes.data % 4 == 0 and got.flags.aligned and got.flags.owndata
    assert not file.tensors[odd[0]].flags.owndata  # before the odd one all is in place
    expected = kf.load_model(tiny_folder, fusion="all").prefill([1, 2, 3])
    np.testing.assert_array_equal(kf.load_model(folder, fusion="all").prefill([1, 2, 3]), expected)
    # A header that is not padded moves everything.
    shutil.rmtree(folder)
    bare = rewritten(tiny_folder, tmp_path, [], pad=False)
    np.testing.assert_array_equal(kf.load_model(bare, fusion="all").prefill([1, 2, 3]), expected)


def test_unaligned_tensors_of_gguf_are_copied(tiny_gguf, tmp_path):
    # An alignment of 1 puts the tensors wherever the description of them ends.
    key = b"general.alignment"
    setting = struct.pack("<Q", len(key)) + key + struct.pack("<II", GGUFValueType.UINT32, 1)
    data = tiny_gguf.read_bytes()
    reader = GGUFReader(tiny_gguf)
    end = max(int(t.field.offset) + sum(int(p.nbytes) for p in t.field.parts) for t in reader.tensors)
    start, count = int(reader.data_offset), struct.unpack_from("<Q", data, 16)[0]
    rest = data[24:end]
    for filler in range(1, 5):  # of any length
        flag = struct.pack("<Q", filler) + b"x" * filler + struct.pack("<IB", GGUFValueType.BOOL, 1)
        path = tmp_path / f"{filler}.gguf"
        path.write_bytes(data[:16] + struct.pack("<Q", count + 2) + setting + flag + rest + data[start:])
        for tensor in open_model(path).tensors.values():
            array, size = (tensor.data, 2) if isinstance(tensor, kf.GgufTensor) else (tensor, tensor.itemsize)
            assert array.ctypes.data % size == 0
        got = kf.load_model(path, fusion="all").prefill([1, 2, 3])
        np.testing.assert_array_equal(got, kf.load_model(tiny_gguf, fusion="all").prefill([1, 2, 3]))


def test_doubles_can_be_dequantized_and_integers_not(tiny_folder, tmp_path):
    folder = rewritten(tiny_folder, tmp_path, [], dtypes={"model.norm.weight": np.float64})
    with pytest.raises(kf.NotServedError, match=r'model.norm.weight is stored as f64.*weights="f32"'):
        kf.load_model(folder)
    expected = kf.load_model(tiny_folder, fusion="none").prefill([1, 2])
    np.testing.assert_array_equal(kf.load_model(folder, weights="f32", fusion="none").prefill([1, 2]), expected)
    raw_safetensors(folder / "model.safetensors", [("x", "I64", np.ones(2, np.int64))])
    with pytest.raises(kf.NotServedError, match="x is stored as i64, which is not dequantized"):
        kf.load_model(folder, weights="f32")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999))
def test_truncated_safetensors(tiny_folder, tmp_path, share):
    data = (tiny_folder / "model.safetensors").read_bytes()
    folder = tmp_path / "cut"
    folder.mkdir(exist_ok=True)
    shutil.copy(tiny_folder / "config.json", folder)
    (folder / "model.safetensors").write_bytes(data[: int(share * len(data))])
    refused(folder, "not a whole safetensors file")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 2600), value=st.binary(min_size=1, max_size=8))
def test_damaged_headers_are_read_or_refused_but_never_worse(tiny_folder, tmp_path, place, value):
    data = bytearray((tiny_folder / "model.safetensors").read_bytes())
    data[place : place + len(value)] = value
    folder = tmp_path / "damaged"
    folder.mkdir(exist_ok=True)
    shutil.copy(tiny_folder / "config.json", folder)
    (folder / "model.safetensors").write_bytes(data)
    with contextlib.suppress(kf.KernelFusionError):
        kf.load_model(folder).prefill([1, 2])


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [4, 0]}},
        {"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}},
        {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [2**64 - 4, 2**64]}},
        {"x": 5},
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "xy"},
        [],
        "[" * 100_000,
    ],
)  # fmt: skip
def test_hostile_safetensors_headers(tiny_folder, tmp_path, header):
    copy = edit_config(tiny_folder, tmp_path)
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    refused(copy, "not a whole safetensors file")


def test_shards_that_are_missing_or_lie_elsewhere(tmp_path):
    folder = write_safetensors(tmp_path / "model", TINY, shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "missing model-00002")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    refused(folder, "files of this folder")
