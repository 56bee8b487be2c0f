from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from guidehall.science import registry
from guidehall.science.pipeline import LocalContext, Manifest, UserError
from guidehall.science.reflectometry.cnn.files import read_statistics, statistics_files
from guidehall.science.reflectometry.cnn.network import Cnn, CnnShape
from guidehall.science.reflectometry.cnn.params import ImportModelResult, Normalisation
from guidehall.science.reflectometry.cnn.plain_pickle import NotPlainError, PlainArray, read_plain

STATISTICS = {
    "nr": {"x": {"min": 0.0081, "max": 0.1975}, "y": {"min": -7.5, "max": 0.01}},
    "sld": {"x": {"min": 0.0, "max": 700.0}, "y": {"min": -0.5, "max": 6.0}},
}
RAN: list[str] = []


class Hostile:
    """Tells when it was unpickled."""

    def __reduce__(self) -> Any:
        return RAN.append, ("ran",)


def network() -> Cnn:
    torch.manual_seed(0)
    return Cnn(CnnShape(3, 8, 5, 32, 20))


def pth(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def npy(content: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, content, allow_pickle=True)
    return buffer.getvalue()


def imported(
    folder: Path, weights: bytes, statistics: bytes, **params: Any
) -> tuple[ImportModelResult, LocalContext]:
    (folder / "weights").write_bytes(weights)
    (folder / "statistics").write_bytes(statistics)
    datasets = {name: folder / name for name in ("weights", "statistics")}
    context = LocalContext(folder, datasets=datasets)
    result = registry.pipeline("reflectometry.import_model").run(params, context)
    assert isinstance(result, ImportModelResult)
    return result, context


@pytest.mark.parametrize("kind", ["plain", "wrapped", "safetensors"])
def test_weights_are_published_as_they_are(tmp_path: Path, kind: str) -> None:
    state = network().state_dict()
    files = {
        "plain": pth(state),
        "wrapped": pth({"model_state_dict": state, "epoch": 3, "loss": 0.1}),
        "safetensors": safetensors.torch.save(dict(state)),
    }
    result, _ = imported(tmp_path, files[kind], npy(STATISTICS), model_name="old")
    assert result.architecture == "reflectometry.pyreflect_cnn/1"
    folder = tmp_path / "models/old"
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
    weights = (folder / "model.safetensors").read_bytes()
    for name, tensor in safetensors.torch.load(weights).items():
        assert torch.equal(tensor, state[name])
    predictor = registry.load_predictor(manifest, weights)
    q = np.geomspace(0.0081, 0.1975, 32)
    r = (0.01 / q) ** 4
    answer = predictor.predict({"q": q[None].astype(np.float32), "reflectivity": r[None].astype(np.float32)})
    x = torch.from_numpy((np.log10(r) + 7.5) / 7.51).float()[None]
    with torch.no_grad():
        z, sld = network().eval()(x)[0].numpy()
    np.testing.assert_allclose(answer["z"][0], 700 * z, rtol=1e-4, atol=0.05)
    np.testing.assert_allclose(answer["sld"][0], 6.5 * sld - 0.5, rtol=1e-4, atol=1e-3)


def test_what_is_exported_can_be_imported(tmp_path: Path) -> None:
    normalisation = Normalisation.model_validate(STATISTICS)
    for name, data in statistics_files(normalisation).items():
        path = tmp_path / name
        path.write_bytes(data)
        assert read_statistics(path) == normalisation


@pytest.mark.parametrize(
    "content",
    [
        STATISTICS,
        {
            curve: {
                axis: {end: np.float32(value) for end, value in ends.items()} for axis, ends in axes.items()
            }
            for curve, axes in STATISTICS.items()
        },
        {
            curve: {
                axis: {end: np.array(value) for end, value in ends.items()} for axis, ends in axes.items()
            }
            for curve, axes in STATISTICS.items()
        },
    ],
    ids=["numbers", "numpy numbers", "arrays"],
)
def test_statistics_of_pyreflect_are_read_without_unpickling(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "statistics.npy"
    path.write_bytes(npy(content))
    found = read_statistics(path)
    assert found.nr.y.min == pytest.approx(-7.5)
    assert found.sld.x.max == pytest.approx(700.0)


@pytest.mark.parametrize("protocol", range(5))
def test_plain_data_of_any_protocol(protocol: int) -> None:
    content = {"a": [1, 2.5, "word", None, True], "b": {"c": (1, 2)}, "d": -(2**40)}
    assert read_plain(pickle.dumps(content, protocol)) == content


def test_arrays() -> None:
    found = read_plain(pickle.dumps(np.arange(6, dtype=">i4").reshape(2, 3), 4))
    assert isinstance(found, PlainArray)
    assert np.array_equal(found.value, np.arange(6).reshape(2, 3))
    found = read_plain(pickle.dumps(np.array([1, "a"], dtype=object), 4))
    assert found.value == [1, "a"]


def deep_tuples() -> bytes:
    # Each doubles the one before: 2^60 items for whoever walks through it.
    return b"\x80\x04)" + b"2\x86" * 60 + b"."


HOSTILE_PICKLES = {
    "code": pickle.dumps(Hostile()),
    "system": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "old code": b"cos\nsystem\n(S'true'\ntR.",
    "inst": b"(S'true'\nios\nsystem\n.",
    "builtins": b"\x80\x04\x8c\x08builtins\x8c\x09bytearray\x93J\x00\x00\x00\x7f\x85R.",
    "numpy name": b"\x80\x04\x8c\x05numpy\x8c\x04load\x93\x8c\x01x\x85R.",
    "persistent": b"\x80\x04\x8c\x01xQ.",
    "long number": b"\x80\x02\x8b\xff\xff\xff\x00" + b"\x01" * 1000 + b".",
    "huge text": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "duplicates": deep_tuples(),
    "no stop": b"\x80\x04}",
    "empty": b"",
    "nothing on the stack": b"\x80\x04.",
    "pop": b"\x80\x04R.",
    "mark": b"\x80\x04(.",
    "unknown reference": b"\x80\x04h\x07.",
    "number keys": pickle.dumps({1: 2}),
    "set": pickle.dumps({1, 2}),
    "complex": pickle.dumps(1j),
    "lambda array": pickle.dumps(np.array([Hostile()], dtype=object)),
    "structured": pickle.dumps(np.zeros(2, dtype="i4,f8")),
    "many": pickle.dumps(list(range(30_000))),
    "large": pickle.dumps("x" * 300_000),
}


@pytest.mark.parametrize("name", HOSTILE_PICKLES)
def test_hostile_pickles_are_refused(name: str) -> None:
    RAN.clear()
    with pytest.raises(NotPlainError):
        read_plain(HOSTILE_PICKLES[name])
    assert not RAN


def test_every_cut_of_a_file_is_refused_or_read(tmp_path: Path) -> None:
    data = npy(STATISTICS)
    path = tmp_path / "statistics.npy"
    for end in range(0, len(data), 3):
        path.write_bytes(data[:end])
        with pytest.raises(UserError, match="allowed"):
            read_statistics(path)


def test_every_changed_byte_is_refused_or_read(tmp_path: Path) -> None:
    data = npy(STATISTICS)
    path = tmp_path / "statistics.npy"
    random = np.random.default_rng(0)
    for _ in range(500):
        changed = bytearray(data)
        for at in random.integers(0, len(data), 3):
            changed[at] = random.integers(0, 256)
        path.write_bytes(bytes(changed))
        try:
            read_statistics(path)
        except UserError:
            continue


def zip_file(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def spoilt(**changes: Any) -> bytes:
    state = OrderedDict(network().state_dict())
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor
    return pth(state)


def old_format() -> bytes:
    buffer = io.BytesIO()
    torch.save(network().state_dict(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


WRONG_WEIGHTS = {
    "empty": b"",
    "text": b"hello",
    "code": pth(Hostile()),
    "code among the tensors": pth({"layers.0.weight": torch.zeros(2), "x": Hostile()}),
    "pickle": pickle.dumps(Hostile()),
    "a whole network": pth(network()),
    "a list": pth([torch.zeros(2)]),
    "words": pth({"layers.0.weight": "x"}),
    "bytes": pth({"a": bytearray(10)}),
    "old torch": old_format(),
    "other archive": zip_file("x/data.pkl", b"."),
    "bomb": zip_file("archive/data.pkl", b"\x00" * 50_000_000),
    "cut": pth(network().state_dict())[:-300],
    "missing": spoilt(linear1__bias=None),
    "missing layer": spoilt(layers__8__weight=None),
    "additional": spoilt(other=torch.zeros(3)),
    "shape": spoilt(layers__1__bias=torch.zeros(7)),
    "NaN": spoilt(linear1__bias=torch.full((40,), float("nan"))),
    "variance": spoilt(layers__1__running_var=torch.full((3,), -1.0)),
    "expanded": spoilt(linear1__weight=torch.zeros(1).expand(1 << 20, 1 << 20)),
    "sparse": pth({"layers.0.weight": torch.zeros(3, 3).to_sparse()}),
    "safetensors of others": safetensors.torch.save({"a": torch.zeros(3)}),
    "safetensors header": (1 << 60).to_bytes(8, "little") + b"{}",
}


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_wrong_weights_are_refused(tmp_path: Path, name: str) -> None:
    RAN.clear()
    with pytest.raises(UserError) as caught:
        imported(tmp_path, WRONG_WEIGHTS[name], npy(STATISTICS))
    assert caught.value.field == "inputs.weights"
    assert caught.value.allowed
    assert not RAN
    assert not (tmp_path / "models").exists()


def changed(path: str, value: Any) -> bytes:
    document = json.loads(json.dumps(STATISTICS))
    curve, axis, end = path.split(".")
    document[curve][axis][end] = value
    return json.dumps(document).encode()


def promising(*shape: int) -> bytes:
    """An .npy file of another shape than its two numbers."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(16)


def locked(archive: bytes) -> bytes:
    """With the flag of encryption at its only member, here and in the directory."""
    content = bytearray(archive)
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def damaged(archive: bytes) -> bytes:
    """With wrong bytes where its member is deflated."""
    content = bytearray(archive)
    begin = 30 + len("nr.x.npy")
    content[begin : begin + 20] = bytes(range(200, 220))
    return bytes(content)


WRONG_STATISTICS = {
    "empty": b"",
    "code": npy(np.array([Hostile()], dtype=object)),
    "code in a dict": npy(np.array({"nr": Hostile()}, dtype=object)),
    "bare pickle": pickle.dumps(STATISTICS),
    "array": npy(np.zeros(3)),
    "list": b"[1, 2]",
    "number": b"3",
    "other": b'{"nr": {}}',
    "word": changed("nr.x.min", "0.1"),
    "boolean": changed("nr.x.min", True),
    "order": changed("sld.y.min", 7.0),
    "NaN": changed("sld.y.min", float("nan")),
    "infinite": changed("sld.y.max", float("inf")),
    "huge": changed("sld.y.max", 1e300),
    "q": changed("nr.x.min", -1.0),
    "large": b" " * 300_000,
    "deep": b"[" * 100_000,
    "npz": zip_file("a.npy", npy(np.zeros(3))),
    "npz bomb": zip_file("nr.x.npy", b"\x00" * 50_000_000),
    "npz with objects": zip_file("nr.x.npy", npy(np.array([Hostile()], dtype=object))),
    "npz that promises much": zip_file("nr.x.npy", promising(10, 10**17)),
    "npz of complex numbers": zip_file("nr.x.npy", npy(np.array([0j, 1j]))),
    "npz with text": zip_file("nr.x", b"0 1"),
    "npz with a password": locked(zip_file("nr.x.npy", npy(np.array([0.0, 1.0])))),
    "npz that is damaged": damaged(zip_file("nr.x.npy", npy(np.arange(40.0)))),
}


@pytest.mark.parametrize("name", WRONG_STATISTICS)
def test_wrong_statistics_are_refused(tmp_path: Path, name: str) -> None:
    RAN.clear()
    with pytest.raises(UserError) as caught:
        imported(tmp_path, pth(network().state_dict()), WRONG_STATISTICS[name])
    assert caught.value.field.startswith("inputs.statistics")
    assert caught.value.allowed
    assert not RAN
