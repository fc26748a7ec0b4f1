import tarfile
from collections import OrderedDict

import pytest
import torch
from checkpoints import (
    VOCAB,
    foreign_class,
    forget_module,
    prefixed,
    same_bits,
    with_pickle,
)
from safetensors.torch import save_file

from glip_hf.conversion import CheckpointError, read_checkpoint, sha256_of

STATE = OrderedDict(a=torch.arange(6.0).view(2, 3), b=torch.tensor([True, False]))
EMA = OrderedDict((key, tensor.float() + 1) for key, tensor in STATE.items())
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2, 3), "step": 7}}, "param_groups": [{"lr": 1e-4}]}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("content", "wrapping", "prefix"),
    [
        ({"model": STATE}, "model", ""),
        ({"model": prefixed(STATE)}, "model", "module."),
        ({"model": prefixed(prefixed(STATE))}, "model", "module.module."),
        ({"state_dict": dict(STATE)}, "state_dict", ""),
        (STATE, None, ""),
        (prefixed(STATE), None, "module."),
        (OrderedDict((k, torch.nn.Parameter(v.float())) for k, v in STATE.items()), None, ""),
        (
            {
                "model": prefixed(STATE),
                "model_ema": prefixed(EMA),
                "optimizer": OPTIMIZER,
                "scheduler": {"last_epoch": 3, "milestones": (1, 2)},
                "iteration": 12,
            },
            "model",
            "module.",
        ),
    ],
)
def test_wrappings(tmp_path, content, wrapping, prefix, zipped):
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.wrapping, checkpoint.prefix) == (wrapping, prefix)
    assert list(checkpoint.tensors) == ["a", "b"]
    assert torch.equal(checkpoint.tensors["a"], STATE["a"])
    assert not any(tensor.requires_grad for tensor in checkpoint.tensors.values())
    beside = ("model_ema", "optimizer", "scheduler", "iteration")
    assert checkpoint.beside == (beside if "optimizer" in content else ())


def test_ema(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model": STATE, "model_ema": prefixed(EMA)}, path)
    checkpoint = read_checkpoint(path, ema=True)
    assert checkpoint.is_ema and checkpoint.prefix == "module."
    assert same_bits(checkpoint.tensors, EMA)
    torch.save({"model": STATE, "iteration": 3}, path)
    with pytest.raises(CheckpointError, match="model_ema.*model, iteration"):
        read_checkpoint(path, ema=True)


def test_prefix_stays_unless_every_key_has_it(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model": {"module.a": STATE["a"], "b": STATE["b"]}}, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.prefix == "" and list(checkpoint.tensors) == ["module.a", "b"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_config_objects_beside_the_weights(tmp_path, zipped):
    """A nested yacs CfgNode, an argparse.Namespace, numpy scalars, paths: none of them loaded."""
    import argparse
    import datetime
    import pathlib
    import types

    import numpy as np

    node = foreign_class("yacs.config", "CfgNode")
    outer, inner = node(LR=0.1), node(NAME="swin", STEPS=(1, 2))
    outer["SOLVER"] = inner
    outer.__dict__["__immutable__"] = True
    content = {
        "model": prefixed(STATE),
        "cfg": outer,
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("/x"), nested=[outer]),
        "more": types.SimpleNamespace(when=datetime.datetime(2022, 1, 2), tags={"a"}, raw=b"\xff"),
        "iteration": np.int64(7),
        "best": np.float64(0.5),
        "history": np.arange(3.0),
        "unknown": foreign_class("maskrcnn_benchmark.solver", "Thing", object)(),
    }
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    forget_module("yacs")
    forget_module("maskrcnn_benchmark")
    checkpoint = read_checkpoint(path)
    assert same_bits(checkpoint.tensors, STATE)
    assert "cfg" in checkpoint.beside


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool"])
def test_restricted_reader_reads_every_dtype_and_layout(tmp_path, dtype, zipped):
    base = torch.randn(4, 6).mul(3).to(getattr(torch, dtype))
    state = OrderedDict(
        whole=base,
        row=base[2],
        column=base[:, 1],
        transposed=base.T,
        empty=base[:0],
        one=base[0, 0],
    )
    path = tmp_path / "x.pth"
    thing = foreign_class("yacs.config", "CfgNode")()
    torch.save({"model": state, "cfg": thing}, path, _use_new_zipfile_serialization=zipped)
    forget_module("yacs")
    assert same_bits(read_checkpoint(path).tensors, state)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_of_other_kinds(tmp_path, zipped):
    """Attributes of tensors and parameters are dropped, new dtypes are read, what is not dense may lie beside."""
    marked, parameter = torch.arange(3.0), torch.nn.Parameter(torch.arange(2.0))
    marked.note = parameter.note = "x"
    state = {"marked": marked, "parameter": parameter, "new": torch.arange(4).to(torch.uint16)}
    beside = {"sparse": torch.eye(3).to_sparse(), "meta": torch.ones(1, device="meta"), "size": torch.Size([1])}
    path = tmp_path / "x.pth"
    torch.save({"model": state, **beside}, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert same_bits(checkpoint.tensors, {key: tensor.detach() for key, tensor in state.items()})
    assert checkpoint.beside == tuple(beside)


def test_zip_files_are_mapped_and_storages_shared(tmp_path):
    base = torch.zeros(1 << 22)
    node = foreign_class("yacs.config", "CfgNode")()
    torch.save({"model": {"a": base, "b": base[1:], "c": base[None]}, "cfg": node}, tmp_path / "x.pth")
    forget_module("yacs")
    tensors = read_checkpoint(tmp_path / "x.pth").tensors
    a, b, c = (tensor.data_ptr() for tensor in tensors.values())
    assert b == a + 4 and c == a
    assert not tensors["a"].untyped_storage().resizable()  # mapped, not read


def test_safetensors_with_original_keys(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(prefixed(STATE), path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.wrapping is None and checkpoint.prefix == "module."
    assert torch.equal(checkpoint.tensors["a"], STATE["a"])
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="damaged, cut off .*SafetensorError"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"\xef\xbb\xbf\n  <HTML>404</HTML>", "web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS"),
        (b"\x1f\x8b\x08\x00rest", "gzip"),
        (b"PK\x03\x04" + b"\0" * 100, "cut off"),
        (b"\x80\x02}q\x00.", "damaged, cut off or not a PyTorch checkpoint"),
        (b"\x80", "damaged, cut off or not a PyTorch checkpoint"),
        (b"\x00\x01\x02\x03", "neither a PyTorch nor a safetensors file"),
        (b"\x05\x00\x00\x00\x00\x00\x00\x00{not json", "damaged"),
    ],
)
def test_other_files_are_reported_as_what_they_are(tmp_path, data, message):
    path = tmp_path / "x.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_directories_archives_and_absent_files(tmp_path):
    with pytest.raises(CheckpointError, match="is a directory"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="converted already"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="There is no file"):
        read_checkpoint(tmp_path / "absent.pth")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(VOCAB)
    with pytest.raises(CheckpointError, match="tar archive"):
        read_checkpoint(tmp_path / "x.tar")
    script = torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1))
    script.save(str(tmp_path / "x.pt"))
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "with objects"])
def test_cut_off_files(tmp_path, zipped, share, plain):
    path = tmp_path / "x.pth"
    content = {"model": {"a": torch.arange(5000.0)}}
    if not plain:
        content["cfg"] = foreign_class("yacs.config", "CfgNode")()
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    forget_module("yacs")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match="cut off"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "builtins.list"),
        ({"model": {}}, "not a dict of weights"),
        ({"model": [1]}, "not a dict of weights"),
        ({"iteration": 3, "epoch": 4}, "no weights; its keys are iteration, epoch"),
        ({"model": {"a": torch.ones(1), "_extra": "x"}}, "not tensors: _extra"),
        ({"model": {1: torch.ones(1), "a": torch.ones(1)}}, "not tensors: 1"),
        ({"model": {"a": torch.ones(1).to_sparse()}}, "plain dense"),
        ({"model": {"a": torch.ones(1, dtype=torch.complex64)}}, "plain dense"),
        ({"model": {"a": torch.ones(1, device="meta")}}, "plain dense"),
    ],
)
def test_contents_that_are_not_weights(tmp_path, content, message):
    path = tmp_path / "x.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_a_whole_pickled_module_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    cls = foreign_class("maskrcnn_benchmark.modeling", "Model", torch.nn.Module)
    torch.save({"model": cls()}, path)
    forget_module("maskrcnn_benchmark")
    with pytest.raises(CheckpointError, match=r"maskrcnn_benchmark\.modeling\.Model"):
        read_checkpoint(path)


def test_not_a_torch_archive(tmp_path):
    with pytest.raises(CheckpointError, match="damaged, cut off or not a PyTorch checkpoint"):
        read_checkpoint(with_pickle(tmp_path / "x.pth", b"not a pickle"))


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == ("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
