# Copyright 2026 The glip_hf authors. MIT licence.
"""mmdetection's layout of GLIP, forks of the original, and files of other models."""

import hashlib
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
import transformers
from checkpoints import (
    RELEASED,
    SMALL,
    VOCAB,
    Calls,
    foreign_class,
    forget_module,
    prefixed,
    same_bits,
    small_state,
)
from parity.architectures import recorded_config
from parity.synthetic import key_list
from tiny import tiny_config, tiny_model

from glip_hf import GlipProcessor
from glip_hf.cli import main
from glip_hf.conversion import (
    Checkpoint,
    CheckpointError,
    ConversionError,
    LayoutError,
    VariantError,
    convert_checkpoint,
    locate,
    read_checkpoint,
    restore_checkpoint,
    restored_tensors,
    to_mmdet,
    to_original,
)
from glip_hf.conversion.layouts import OTHERS
from glip_hf.conversion.variants import FAMILIES, build_config
from glip_hf.conversion.weight_map import MMDET_TABLE

JUDGED = {
    "small": ("be30254d0b58d02322cb93e5cf3077eb4223506b7198f4fb51c28eb8259824a9", 279),
    "small_a": ("3c835790cbafabc5e7259247fa38a7c4c15e6be62a959451cac46f8a2d25672c", 211),
}
"""SHA-256 and number of the tensors that mmdetection's own script (`glip_to_mmdet.py` of mmdet 3.3.0) made of the
synthetic weights of seed 0; `tests/convert/judge_mmdet.py` computes them."""
UNUSED = ("rpn.anchor_generator", "rpn.head.cls_logits")
"""What mmdetection's files have not."""


def digest(state) -> str:
    """Of names, order, dtypes, shapes and bytes."""
    value = hashlib.sha256()
    for key, tensor in state.items():
        value.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
        value.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return value.hexdigest()


def without_unused(state):
    return OrderedDict((key, tensor) for key, tensor in state.items() if not key.startswith(UNUSED))


def located(state, ignore=(), path="x.pth"):
    return locate(Checkpoint(dict(state), path, None, ""), ignore)


@pytest.mark.parametrize("name", SMALL)
def test_the_layout_is_that_of_mmdetections_script(name):
    state = to_mmdet(small_state(name))
    assert (digest(state), len(state)) == JUDGED[name]
    found = located(state)
    assert (found.layout, found.prefix, found.foreign, found.ignored) == ("mmdet", "", {}, ())
    assert same_bits(found.tensors, without_unused(small_state(name)))


@pytest.mark.parametrize("name", ["glip_a_tiny_o365", "glip_large_model"])
def test_released_sizes_are_recognised_in_mmdetections_layout(name):
    original = {
        key: torch.empty(spec[0], dtype=getattr(torch, spec[1]), device="meta") for key, spec in key_list(name).items()
    }
    found = located(prefixed(to_mmdet(original), "wrapper."))
    assert (found.layout, found.prefix) == ("mmdet", "wrapper.") and not found.foreign
    assert name in FAMILIES[build_config(found.tensors)[1]]


def test_patch_merging_computes_the_same_in_the_other_order():
    """The original takes every second row and column, mmdetection `nn.Unfold`: 4 C channels in two orders."""
    x = torch.randn(1, 5, 6, 8, dtype=torch.float64)
    norm, reduction = torch.randn(20, dtype=torch.float64), torch.randn(10, 20, dtype=torch.float64)
    slices = torch.cat([x[:, :, 0::2, 0::2], x[:, :, 1::2, 0::2], x[:, :, 0::2, 1::2], x[:, :, 1::2, 1::2]], 1)
    expected = (slices.flatten(2).mT * norm) @ reduction.T
    place = "backbone.body.layers.0.downsample"
    state = to_mmdet({f"{place}.reduction.weight": reduction, f"{place}.norm.weight": norm})
    weight, scale = state.values()
    unfolded = torch.nn.functional.unfold(x, kernel_size=2, stride=2)
    torch.testing.assert_close((unfolded.mT * scale) @ weight.T, expected)


def test_every_row_of_the_table_is_needed():
    keys = {key for name in [*SMALL, *RELEASED] for key in key_list(name)}
    unused = [rule.original for rule in MMDET_TABLE if not any(rule.pattern.fullmatch(key) for key in keys)]
    assert unused == ["rpn.tunable_linear.weight"]  # prompt tuning: in no released checkpoint


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The folder of one model converted from both layouts: `original`, `mmdet`, and their sources."""
    folder = tmp_path_factory.mktemp("converted")
    original = small_state("small_a")
    mmdet = OrderedDict(sorted(to_mmdet(original).items()))  # in an order of its own
    mmdet.pop("language_model.language_backbone.body.model.embeddings.position_ids")
    torch.save({"model": prefixed(original)}, folder / "original.pth")
    meta = {"epoch": 12, "dataset_meta": {"classes": ("cat", "small dog")}}
    torch.save({"state_dict": mmdet, "meta": meta}, folder / "mmdet.pth")
    for name in ("original", "mmdet"):
        convert_checkpoint(folder / f"{name}.pth", folder / name, config=recorded_config("small_a"), tokenizer=VOCAB)
    return folder


def test_both_layouts_become_the_same_model_and_either_is_the_way_back(converted, tmp_path, capsys):
    from glip_hf import GlipForGrounding

    ours = {name: GlipForGrounding.from_pretrained(converted / name).state_dict() for name in ("original", "mmdet")}
    unused = {key for key in ours["original"] if "class_logits" in key}
    assert unused and same_bits(ours["mmdet"], {k: v for k, v in ours["original"].items() if k not in unused})
    sources = {name: torch.load(converted / f"{name}.pth") for name in ("original", "mmdet")}
    for name in ("original", "mmdet"):
        restore_checkpoint(converted / name, tmp_path / f"{name}.pth")
        assert list(back := torch.load(tmp_path / f"{name}.pth")) == list(sources[name])[:1]
        (key,) = back
        assert same_bits(back[key], sources[name][key])
        for layout in ("original", "mmdet"):
            output = tmp_path / f"{name}-{layout}.pth"
            assert main(["convert", str(converted / name), str(output), "--to", layout]) == 0
            assert str(output) in capsys.readouterr().out
    back = {path.stem: torch.load(path) for path in tmp_path.glob("*-*.pth")}
    original = small_state("small_a")
    assert same_bits(back["original-original"]["model"], prefixed(original))
    assert same_bits(back["mmdet-mmdet"]["state_dict"], sources["mmdet"]["state_dict"])
    assert same_bits(back["original-mmdet"], to_mmdet(original))  # bare, as mmdetection's script writes it
    expected = {key: tensor for key, tensor in original.items() if "cls_logits" not in key}
    assert same_bits(back["mmdet-original"]["model"], expected)


def test_the_record_tells_the_layout_and_old_records_stay_valid(converted):
    texts = {name: (converted / name / "conversion.json").read_text() for name in ("original", "mmdet")}
    assert '"layout": "mmdet"' in texts["mmdet"] and "layout" not in texts["original"]
    assert "mmdetection's layout" in (converted / "mmdet" / "README.md").read_text()
    names = {name: GlipProcessor.from_pretrained(converted / name).class_names for name in ("original", "mmdet")}
    assert names == {"original": None, "mmdet": ["cat", "small dog"]}


@pytest.mark.parametrize("meta", [None, [], {"dataset_meta": None}, {"dataset_meta": {"classes": "ab"}}])
def test_class_names_that_are_none(tmp_path, meta):
    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": meta}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth").classes == ()


def test_a_prompt_table_is_not_written_where_it_would_be_ignored(tmp_path):
    tuned = tiny_model(prompt_table_length=8)
    tuned.save_pretrained(tmp_path / "tuned")
    with pytest.raises(ConversionError, match="prompt table.*--to original"):
        restored_tensors(tmp_path / "tuned", "mmdet")
    assert "rpn.tunable_linear.weight" in restored_tensors(tmp_path / "tuned", "original")[0]


def test_errors_name_the_keys_of_the_file(tmp_path):
    state = to_mmdet(small_state("small_a"))
    del state["bbox_head.head.bbox_pred.weight"]
    state["backbone.stages.0.downsample.norm.bias"] = torch.zeros(3)
    state["bbox_head.head.extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(VariantError) as error:
        convert_checkpoint(tmp_path / "x.pth", tmp_path / "out", config=recorded_config("small_a"), tokenizer=VOCAB)
    text = str(error.value)
    assert "bbox_head.head.bbox_pred.weight [4, 64, 1, 1] is missing" in text
    assert "backbone.stages.0.downsample.norm.bias is [3]" in text and "backbone.body" not in text
    assert "bbox_head.head.extra [1] is unexpected" in text and "--ignore 'bbox_head.head.extra'" in text


def fork(prefix: str = "detector."):
    """A GLIP under a prefix, with a branch beside it and one inside."""
    state = prefixed(to_original(tiny_model().state_dict()), prefix)
    state[f"{prefix}rpn.head.mask_branch.0.weight"] = torch.ones(2, 3)
    state[f"{prefix}rpn.head.mask_branch.1.weight"] = torch.ones(2)
    state["adapter.fusion.down.weight"] = torch.ones(4)
    return state


@pytest.mark.parametrize("prefix", ["detector.", ""])
def test_forks_are_listed_and_ignored_knowingly(prefix):
    found = located(fork(prefix))
    assert found.prefix == prefix and len(found.foreign) == 3
    with pytest.raises(VariantError) as error:
        build_config(found.tensors, tiny_config(), found.foreign, found.remedy)
    text = str(error.value)
    assert f"{prefix}rpn.head.mask_branch.0.weight [2, 3] is unexpected" in text
    assert "adapter.fusion.down.weight [4] is unexpected" in text and "missing" not in text
    patterns = [f"{prefix}rpn.head.mask_branch.*", "adapter.*"]
    assert text.endswith(f"--ignore '{patterns[0]}' --ignore '{patterns[1]}'")
    found = located(fork(prefix), patterns)
    assert not found.foreign and len(found.ignored) == 3
    build_config(found.tensors, tiny_config(), found.foreign)
    assert same_bits(found.tensors, to_original(tiny_model().state_dict()))


def test_ignore_hides_no_lacking_key_and_takes_none_of_glips(tmp_path):
    state = fork()
    del state["detector.rpn.head.bias0"]
    found = located(state, ["*mask_branch*", "adapter.*"])
    with pytest.raises(VariantError, match=r"rpn\.head\.bias0 \[1\] is missing"):
        build_config(found.tensors, tiny_config(), found.foreign)
    for pattern in ("*", "detector.*", "*cls_logits*"):
        with pytest.raises(LayoutError, match="which GLIP cannot do without"):
            located(fork(), [pattern, "adapter.*"])
    with pytest.raises(LayoutError, match=r"x\.pth: --ignore 'adaptor\.\*' matches no key"):
        located(fork(), ["adaptor.*"])


def test_two_glips_in_one_file():
    student, teacher = fork("student."), fork("teacher.")
    with pytest.raises(LayoutError, match="more than one GLIP.*student.*teacher.*--ignore"):
        located({**student, **teacher})
    found = located({**student, **teacher}, ["teacher.*", "*mask_branch*", "adapter.*"])
    assert found.prefix == "student." and not found.foreign


def test_a_fork_converts_and_the_record_names_what_was_left_out(tmp_path, capsys):
    state = prefixed(small_state("small_a"), "glip.")
    state["adapter.weight"] = torch.ones(2)
    torch.save({"model": state}, tmp_path / "fork.pth")
    recorded_config("small_a").save_pretrained(tmp_path)
    options = ["--tokenizer", str(VOCAB), "--config", str(tmp_path / "config.json")]
    convert = ["convert", str(tmp_path / "fork.pth"), str(tmp_path / "out"), *options]
    assert main(convert) == 1
    assert "adapter.weight [2] is unexpected" in capsys.readouterr().err
    assert main([*convert, "--ignore", "adapter.*"]) == 0
    assert "1 tensors were left out: adapter.weight" in capsys.readouterr().err
    assert '"adapter.weight"' in (tmp_path / "out" / "conversion.json").read_text()
    assert "adapter.weight" in (tmp_path / "out" / "README.md").read_text()
    del state["adapter.weight"]
    back = restore_checkpoint(tmp_path / "out", tmp_path / "back.pth")
    assert same_bits(torch.load(back)["model"], state)


OTHER_FILES = {
    "IDEA's layout.*GroundingDinoForObjectDetection": "module.transformer.encoder.fusion_layers.0.gamma_v",
    "IDEA's layout.*: in Transformers": "transformer.encoder.fusion_layers.0.gamma_v",
    "MM-Grounding-DINO.*MMGroundingDinoForObjectDetection": "bbox_head.cls_branches.0.bias",
    "Grounding DINO in mmdetection's.* GroundingDinoForObjectDetection": "text_feat_map.weight",
    "Mask2Former": "panoptic_head.query_embed.weight",
    "DeformableDetrForObjectDetection": "encoder.layers.0.self_attn.sampling_offsets.weight",
    "DetrForObjectDetection": "bbox_head.fc_reg.weight",
    "two-stage detector.* no class": "roi_head.bbox_head.0.fc_cls.weight",
    "another detector of mmdetection": "bbox_head.rtm_cls.0.weight",
    "a GLIP that is converted already: use its directory": "model.tower.blocks.0.dyconv.offset_conv.weight",
}


@pytest.mark.parametrize("message", OTHER_FILES)
def test_files_of_other_models_are_named_as_what_they_are(tmp_path, capsys, message):
    state = {OTHER_FILES[message]: torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "other.pth")
    with pytest.raises(LayoutError, match=message):
        convert_checkpoint(tmp_path / "other.pth", tmp_path / "out", tokenizer=VOCAB)
    for command in (["info", "other.pth"], ["convert", "other.pth", "out", "--tokenizer", str(VOCAB)]):
        arguments = [str(tmp_path / word) if word.startswith(("other", "out")) else word for word in command]
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert f"{tmp_path}/other.pth holds" in error and error.count("\n") == 1


def test_the_classes_named_exist():
    for _, _, loader in OTHERS:
        assert loader in (None, "GlipForGrounding") or hasattr(transformers, loader)


def test_info_tells_layout_and_foreign_keys(tmp_path, capsys):
    torch.save(to_mmdet(to_original(tiny_model().state_dict())) | {"extra.weight": torch.ones(1)}, tmp_path / "x.pth")
    assert main(["info", str(tmp_path / "x.pth")]) == 0
    text = capsys.readouterr().out
    assert "mmdetection checkpoint" in text and "extra.weight" in text


def test_options_of_the_other_direction_are_refused(tmp_path, capsys):
    for options, message in (
        (["--to", "mmdet", "--config", "x"], "--config does not go with --to"),
        (["--to", "original", "--ignore", "x"], "--ignore does not go with --to"),
        (["--wrap", "plain"], "--wrap goes with --to"),
    ):
        assert main(["convert", "a", "b", *options]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "x.pth").touch()
    assert main(["convert", str(tmp_path / "x.pth"), "b", "--to", "mmdet"]) == 1
    assert "convert it first" in capsys.readouterr().err


@pytest.fixture
def mmengine_objects():
    """What mmengine leaves beside the weights: its classes exist only while they are pickled."""
    history = foreign_class("mmengine.logging.history_buffer", "HistoryBuffer", object)

    def minimum(self):
        raise AssertionError("called")

    minimum.__qualname__, minimum.__module__, history.min = "HistoryBuffer.min", history.__module__, minimum
    node = foreign_class("mmengine.config.config", "ConfigDict")
    node.__reduce_ex__ = lambda self, protocol: (node, (dict(self),))
    buffer = history()
    buffer.__dict__ = {"_log_history": np.random.rand(200_000), "_statistics_methods": {"min": history.min}}
    yield {
        "meta": {"cfg": "model = dict(type='GLIP')", "dataset_meta": node(classes=("a", "b")), "iter": 7},
        "message_hub": {"log_scalars": {"train/loss": buffer}, "runtime_info": {"best": np.float64(0.5)}},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [node(lr=0.1, params=[0])]},
        "param_schedulers": [{"_last_value": [np.float64(1e-4)]}],
    }
    forget_module("mmengine")


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 3}])
def test_files_of_fine_tuning_are_read_without_mmengine(tmp_path, mmengine_objects, options):
    state = OrderedDict(a=torch.arange(6.0).view(2, 3))
    torch.save({"state_dict": state, **mmengine_objects}, tmp_path / "x.pth", **options)
    assert (tmp_path / "x.pth").stat().st_size > 1_600_000  # the history is in the pickle
    forget_module("mmengine")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert same_bits(checkpoint.tensors, state) and checkpoint.wrapping == "state_dict"
    assert checkpoint.beside == tuple(mmengine_objects) and "mmengine" not in sys.modules
    assert checkpoint.classes == ("a", "b")


def test_nothing_of_mmengine_is_called_or_looked_up(tmp_path):
    run = foreign_class("mmengine.runner", "Runner", object)
    evil = Calls(getattr, Calls(getattr, run, "__class__"), "mro")
    content = {"runner": Calls(run, Calls(run, "x")), "method": Calls(getattr, run, "__subclasses__")}
    torch.save({"state_dict": {"a": torch.ones(1)}, **content}, tmp_path / "x.pth")
    torch.save({"state_dict": {"a": torch.ones(1)}, "runner": Calls(run), "evil": evil}, tmp_path / "evil.pth")
    forget_module("mmengine")
    assert list(read_checkpoint(tmp_path / "x.pth").tensors) == ["a"]
    with pytest.raises(CheckpointError, match="builtins.getattr. It was refused and nothing was executed"):
        read_checkpoint(tmp_path / "evil.pth")


def test_the_average_of_mmengine_is_what_it_saves_as_weights(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "ema_state_dict": {"module.a": torch.zeros(1)}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="convert without --ema"):
        read_checkpoint(tmp_path / "x.pth", ema=True)
