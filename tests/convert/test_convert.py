import json
import re
import stat
import zipfile
from collections import OrderedDict

import pytest
import torch
from checkpoints import (
    RELEASED,
    SMALL,
    VOCAB,
    foreign_class,
    forget_module,
    prefixed,
    same_bits,
    small_config,
    small_state,
)
from huggingface_hub import ModelCard
from parity.architectures import recorded_config
from parity.synthetic import key_list, synthetic_state_dict
from safetensors.torch import load_file, save_file

from glip_hf import GlipConfig, GlipForGrounding, GlipProcessor
from glip_hf.conversion import (
    CheckpointError,
    ConversionError,
    RecordError,
    VariantError,
    WeightMapError,
    convert_checkpoint,
    load_tokenizer,
    model_directory,
    push_to_hub,
    read_config,
    restore_checkpoint,
    restored_tensors,
    sha256_of,
    to_ours,
)
from glip_hf.conversion.record import BUFFERS_NAME, RECORD_NAME
from glip_hf.conversion.variants import FAMILIES, build_config, infer_fields, recognise


def convert(tmp_path, content, name="out", **options):
    """Saves `content` and converts it; options go to `convert_checkpoint`."""
    path = tmp_path / "source.pth"
    torch.save(content, path)
    options = {"config": small_config(content), "tokenizer": VOCAB, **options}
    return convert_checkpoint(path, tmp_path / name, **options)


def load_exactly(directory, **options):
    """The model, loaded with not one key missing, unexpected or mismatched."""
    model, info = GlipForGrounding.from_pretrained(directory, output_loading_info=True, **options)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[problem], problem
    return model


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A small model, converted once."""
    folder = tmp_path_factory.mktemp("converted")
    return convert(folder, {"model": prefixed(small_state()), "iteration": 5}).directory


@pytest.mark.parametrize("name", SMALL)
def test_small_there_and_back(tmp_path, name):
    original = small_state(name, seed=3)
    result = convert(tmp_path, {"model": prefixed(original)})
    model = load_exactly(result.directory)
    ours = to_ours(original)
    state = model.state_dict()
    assert state.keys() == ours.keys()
    assert all(torch.equal(state[key], ours[key]) for key in ours)
    back = restore_checkpoint(result.directory, tmp_path / "back.pth")
    assert same_bits(torch.load(back)["model"], prefixed(original))


def test_contents_of_the_directory(converted):
    names = {path.name for path in converted.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", RECORD_NAME} <= names
    assert {"processor_config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    # the model's own names, not the older ones of Swin
    keys = load_file(converted / "model.safetensors").keys()
    assert keys == GlipForGrounding.from_pretrained(converted).state_dict().keys()
    # readable by others, unlike temporary files
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o044 for path in converted.iterdir())
    processor = GlipProcessor.from_pretrained(converted)
    assert processor.tokenizer("a cat")["input_ids"] == [101, 1037, 4937, 102]
    config = GlipConfig.from_pretrained(converted)
    assert (config.fusion_heads, config.text_config.num_attention_heads) == (4, 4)


def test_model_card_and_record(converted):
    card = ModelCard.load(converted / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "zero-shot-object-detection"
    assert data["license"] == "mit" and "glip" in data["tags"]
    digest = sha256_of(converted.parent / "source.pth")
    assert digest in card.text and "source.pth" in card.text
    record = json.loads((converted / RECORD_NAME).read_text())
    assert record["source_sha256"] == digest
    assert (record["wrapping"], record["prefix"], record["keys"]) == ("model", "module.", None)


def test_a_source_file_of_any_name_stays_in_its_cell():
    from glip_hf.conversion.model_card import build_model_card
    from glip_hf.conversion.record import ConversionRecord

    record = ConversionRecord("a`b | c\n\n# Gone <img src=x>.pth", "0" * 64, 1, "model", "", "float32")
    (row,) = (line for line in build_model_card(record, "x").text.splitlines() if line.startswith("| source file"))
    assert row == "| source file | `a'b \\| c # Gone <img src=x>.pth` (1 bytes) |"


def test_model_card_marks_published_results():
    from glip_hf.conversion.model_card import PUBLISHED, build_model_card
    from glip_hf.conversion.record import ConversionRecord

    record = ConversionRecord("glip_large_model.pth", "0" * 64, 1, "model", "", "float32")
    assert "None: this is not a size that was released" in build_model_card(record, "x").text
    record = ConversionRecord(**{**record.__dict__, "family": "GLIP-L"})
    text = build_model_card(record, "x").text
    assert "*Published*" in text and "51.4" in text and "44.9" not in text
    assert "a name proves nothing" in text
    assert set(PUBLISHED) <= {name for names in FAMILIES.values() for name in names}


@pytest.mark.parametrize(
    ("wrap", "wrapping", "prefix"),
    [
        (lambda s: s, None, ""),
        (lambda s: {"model": s}, "model", ""),
        (lambda s: {"state_dict": prefixed(s), "epoch": 3}, "state_dict", "module."),
        (lambda s: prefixed(prefixed(s)), None, "module.module."),
    ],
)
def test_wrappings_come_back(tmp_path, wrap, wrapping, prefix):
    content = wrap(small_state("small_a"))
    record = convert(tmp_path, content).record
    assert (record.wrapping, record.prefix) == (wrapping, prefix)
    restore_checkpoint(tmp_path / "out", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth")
    assert same_bits(
        back if wrapping is None else back[wrapping],
        content if wrapping is None else content[wrapping],
    )


def test_chosen_wrappings(tmp_path, converted):
    original = small_state()
    for wrapping, pick in (
        ("plain", lambda back: back),
        ("model", lambda back: back["model"]),
    ):
        path = restore_checkpoint(converted, tmp_path / f"{wrapping}.pth", wrapping=wrapping)
        assert same_bits(pick(torch.load(path)), original)
    path = restore_checkpoint(converted, tmp_path / "module.pth", wrapping="model-module")
    assert same_bits(torch.load(path)["model"], prefixed(original))


def test_unusual_order_absent_buffers_and_dtypes_come_back(tmp_path):
    original = small_state("small_a")
    # as a newer library writes it, in another order, and of several precisions
    del original["language_backbone.body.model.embeddings.position_ids"]
    keys = sorted(original, reverse=True)
    shuffled = OrderedDict((key, original[key]) for key in keys)
    shuffled[keys[3]] = shuffled[keys[3]].half()
    shuffled["rpn.head.bias0"] = shuffled["rpn.head.bias0"].double() / 3
    anchor = "rpn.anchor_generator.cell_anchors.0"
    shuffled[anchor] = shuffled[anchor].half()
    shuffled["rpn.head.log_scale"] = torch.tensor([-0.0])
    record = convert(tmp_path, {"model": shuffled}).record
    assert record.dtype == "float32" and len(record.dtypes) == 3
    assert load_exactly(tmp_path / "out").dtype == torch.float64  # holds every one exactly
    restored, _ = restored_tensors(tmp_path / "out")
    assert same_bits(restored, shuffled)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_come_back(tmp_path, dtype):
    original = OrderedDict(
        (key, tensor.to(dtype) if tensor.is_floating_point() and "anchors" not in key else tensor)
        for key, tensor in small_state("small_a").items()
    )
    convert(tmp_path, {"model": original})
    assert load_exactly(tmp_path / "out").dtype == dtype
    restored, _ = restored_tensors(tmp_path / "out")
    assert same_bits(restored, original)


def test_ema_and_drifted_buffers(tmp_path):
    original, average = small_state("small_a"), small_state("small_a", seed=1)
    key = "backbone.body.layers.0.blocks.0.attn.relative_position_index"
    average[key] = average[key] - 1
    anchor = "rpn.anchor_generator.cell_anchors.4"
    average[anchor] = average[anchor] * (1 + 1e-6)
    content = {"model": prefixed(original), "model_ema": prefixed(average)}
    result = convert(tmp_path, content, ema=True)
    assert result.record.altered_buffers == [key, anchor]
    assert "drifted" in result.notes[0]
    assert load_file(tmp_path / "out" / BUFFERS_NAME).keys() == {key, anchor}
    load_exactly(tmp_path / "out")
    restore_checkpoint(tmp_path / "out", tmp_path / "back.pth")
    assert same_bits(torch.load(tmp_path / "back.pth")["model_ema"], prefixed(average))
    # in the weights themselves the same is an error
    with pytest.raises(ConversionError, match=f"{key}: 2401 of 2401 entries"):
        convert(tmp_path, {"model": average}, name="other")


def test_config_objects_beside_convert_too(tmp_path):
    node = foreign_class("yacs.config", "CfgNode")(A=1)
    original = small_state("small_a")
    path = tmp_path / "x.pth"
    torch.save({"model": original, "cfg": node, "optimizer": {"lr": 1.0}}, path)
    forget_module("yacs")
    convert_checkpoint(path, tmp_path / "out", config=recorded_config("small_a"), tokenizer=VOCAB)
    assert same_bits(restored_tensors(tmp_path / "out")[0], original)


def test_safetensors_source(tmp_path):
    original = small_state("small_a")
    save_file(original, tmp_path / "x.safetensors")
    convert_checkpoint(tmp_path / "x.safetensors", tmp_path / "out", config=recorded_config("small_a"), tokenizer=VOCAB)
    restored, _ = restored_tensors(tmp_path / "out")
    assert same_bits({key: restored[key] for key in original}, original)


def test_shards(tmp_path):
    original = small_state()
    convert(tmp_path, {"model": original}, max_shard_size="4MB")
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    load_exactly(tmp_path / "out")
    assert same_bits(restored_tensors(tmp_path / "out")[0], original)


def test_without_record_the_standard_layout(tmp_path, converted):
    """A model saved after training: no record, and save_pretrained's default names."""
    model = GlipForGrounding.from_pretrained(converted)
    model.save_pretrained(tmp_path / "trained")
    restored, record = restored_tensors(tmp_path / "trained")
    assert record is None
    assert same_bits(restored, small_state())
    restore_checkpoint(tmp_path / "trained", tmp_path / "back.pth")
    assert list(torch.load(tmp_path / "back.pth")) == ["model"]


def test_record_that_does_not_fit(tmp_path, converted):
    model = GlipForGrounding.from_pretrained(converted)
    model.save_pretrained(tmp_path / "x")
    record = json.loads((converted / RECORD_NAME).read_text())
    (tmp_path / "x" / RECORD_NAME).write_text(json.dumps({**record, "keys": ["a", "b"]}))
    with pytest.raises(ConversionError, match="other tensors than the weights"):
        restored_tensors(tmp_path / "x")
    for text in ("{", "[]", '{"version": 1}', '{"version": 99}'):
        (tmp_path / "x" / RECORD_NAME).write_text(text)
        with pytest.raises(RecordError, match=RECORD_NAME):
            restored_tensors(tmp_path / "x")


def test_restoring_refuses_what_is_not_a_model(tmp_path, converted):
    with pytest.raises(ConversionError, match=r"no config\.json"):
        restore_checkpoint(tmp_path, tmp_path / "x.pth")
    (tmp_path / "old.pth").write_bytes(b"x")
    with pytest.raises(ConversionError, match="exists"):
        restore_checkpoint(converted, tmp_path / "old.pth")
    with pytest.raises(ConversionError, match="is a file"):
        restore_checkpoint(tmp_path / "old.pth", tmp_path / "x.pth")
    for name in (tmp_path / "absent", "nobody/nothing-of-this-name"):
        with pytest.raises(ConversionError, match="no such directory"):
            restore_checkpoint(name, tmp_path / "x.pth")
    restore_checkpoint(converted, tmp_path / "old.pth", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.pth"]


@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes_are_recognised_by_shape(name):
    shapes = {
        key: torch.empty(spec[0], dtype=getattr(torch, spec[1]), device="meta") for key, spec in key_list(name).items()
    }
    family = recognise(shapes)
    assert name in FAMILIES[family]
    config, found = build_config(shapes)
    assert found == family
    given, _ = build_config(shapes, recorded_config(name))
    for field in infer_fields(shapes):
        inferred, expected = getattr(config, field), getattr(given, field)
        assert inferred == expected or inferred.to_dict() == expected.to_dict(), field
    # stripped of the layer that takes no part in any result
    bare = {key: tensor for key, tensor in shapes.items() if ".cls_logits." not in key}
    assert build_config(bare)[0].num_class_channels == 0


def test_other_sizes_need_a_config_and_it_must_fit(tmp_path):
    original = small_state()
    with pytest.raises(VariantError, match="num_attention_heads and fusion_heads.*--config") as refused:
        build_config(original)
    # what the message infers is a config but for the two fields that it names
    fields = json.loads(str(refused.value).partition("shapes: ")[2])
    fields["text_config"]["num_attention_heads"] = fields["fusion_heads"] = 4
    (tmp_path / "inferred.json").write_text(json.dumps(fields))
    assert build_config(original, tmp_path / "inferred.json")[0].fusion_heads == 4
    with pytest.raises(VariantError, match=r"d_model: the tensors say 64, the config says 256"):
        build_config(original, recorded_config("glip_tiny_model_o365"))
    with pytest.raises(VariantError, match=r"backbone\.body\.patch_embed\.proj\.weight is \[24"):
        build_config(original, recorded_config("glip_tiny_model_o365"))
    config, family = build_config(original, recorded_config("small"))
    assert family is None and config.fusion_heads == 4
    config.save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "config.json", config):
        assert build_config(original, source)[0].to_dict() == config.to_dict()


def test_configs_that_cannot_be_used(tmp_path):
    original = small_state()
    path = tmp_path / "c.json"
    for content, message in (
        ("nonsense", "--config"),
        ("[1]", "expected a JSON object"),
        ('{"model_type": "bert"}', "model_type is 'bert'"),
        ("{}", "not a GlipConfig .*neither backbone_config nor d_model"),
    ):
        path.write_text(content)
        with pytest.raises(VariantError, match=message):
            build_config(original, path)
    with pytest.raises(VariantError, match="--config"):
        build_config(original, tmp_path / "absent.json")


def test_missing_unexpected_and_misshapen_tensors_are_named(tmp_path):
    original = small_state()
    del original["rpn.head.bbox_pred.weight"]
    original["rpn.head.centerness.weight"] = torch.zeros(2, 64, 1, 1)
    original["rpn.head.extra.weight"] = torch.zeros(1)
    with pytest.raises(VariantError) as error:
        convert(tmp_path, {"model": original})
    text = str(error.value)
    assert "rpn.head.bbox_pred.weight [4, 64, 1, 1] is missing" in text
    assert "rpn.head.centerness.weight is [2, 64, 1, 1], the config asks for [1, 64, 1, 1]" in text
    assert "rpn.head.extra.weight [1] is unexpected" in text
    assert not (tmp_path / "out").exists()


def test_checkpoints_of_other_models(tmp_path):
    with pytest.raises(VariantError, match="no tensor backbone.body.patch_embed.proj.weight"):
        convert(tmp_path, {"model": {"conv1.weight": torch.zeros(1)}}, config=None)


def test_integer_weights_are_refused(tmp_path):
    original = small_state("small_a")
    original["rpn.head.bias0"] = torch.tensor([1])
    with pytest.raises(ConversionError, match=r"rpn\.head\.bias0 torch\.int64"):
        convert(tmp_path, {"model": original})


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    state = small_state()
    key = next(key for key, tensor in state.items() if tensor.is_floating_point() and "cell_anchors" not in key)
    state[key] = torch.full_like(state[key], float(value))
    with pytest.raises(ConversionError, match=rf"1 of \d+ weights have NaN or infinite values \({re.escape(key)}\)"):
        convert(tmp_path, {"model": state})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("checksums", [True, False])
def test_a_zip_file_that_differs_from_its_checksums_is_refused(tmp_path, checksums):
    """Files that were saved without checksums convert."""
    source = tmp_path / "x.pth"
    torch.serialization.set_crc32_options(checksums)
    torch.save({"model": small_state()}, source)
    torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(source) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    data = bytearray(source.read_bytes())
    middle = largest.header_offset + 200 + largest.file_size // 2
    data[middle : middle + 8] = 8 * b"\x01"
    source.write_bytes(data)
    options = {"config": small_config({"model": small_state()}), "tokenizer": VOCAB}
    if checksums:
        with pytest.raises(CheckpointError, match="differs from its checksum. Fetch the file again"):
            convert_checkpoint(source, tmp_path / "out", **options)
    else:
        assert convert_checkpoint(source, tmp_path / "out", **options).directory.is_dir()


def test_tokenizers(tmp_path, converted):
    config = GlipConfig.from_pretrained(converted)
    ids = load_tokenizer(VOCAB, config)("a small cat").input_ids
    for source in (converted, converted / "tokenizer.json", load_tokenizer(VOCAB, config)):
        tokenizer = load_tokenizer(source, config)
        assert tokenizer("A small CAT").input_ids == ids
    short = tmp_path / "vocab.txt"
    short.write_text("\n".join(VOCAB.read_text().splitlines()[:1000]))
    with pytest.raises(ConversionError, match=r"1000 entries.*word_embeddings.weight\) has 30522"):
        load_tokenizer(short, config)
    with pytest.raises(ConversionError, match="could not be loaded"):
        load_tokenizer(tmp_path, config)
    with pytest.raises(ConversionError, match="could not be loaded"):
        load_tokenizer("nobody/nothing-of-this-name", config)


def test_outputs_are_not_overwritten(tmp_path):
    content = {"model": small_state("small_a")}
    (tmp_path / "out").mkdir()
    convert(tmp_path, content)  # an empty directory is fine
    with pytest.raises(ConversionError, match="not empty"):
        convert(tmp_path, content)
    (tmp_path / "out" / "stale").write_text("x")
    convert(tmp_path, content, force=True)
    assert not (tmp_path / "out" / "stale").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").write_text("mine")
    with pytest.raises(ConversionError, match="not an earlier conversion"):
        convert(tmp_path, content, name="other", force=True)
    assert (tmp_path / "other" / "notes").read_text() == "mine"
    with pytest.raises(ConversionError, match="is a file"):
        convert(tmp_path, content, name="source.pth")


def test_nothing_is_left_of_a_conversion_that_fails(tmp_path, monkeypatch):
    content = {"model": small_state("small_a")}
    convert(tmp_path, content)
    before = sha256_of(tmp_path / "out" / "model.safetensors")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(GlipForGrounding, "save_pretrained", fail)
    for name in ("out", "new"):
        with pytest.raises(OSError, match="disk full"):
            convert(tmp_path, content, name=name, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source.pth"]
    assert sha256_of(tmp_path / "out" / "model.safetensors") == before


def test_unknown_keys_reach_the_user(tmp_path):
    # The table is the last guard; shapes are compared before it.
    with pytest.raises(WeightMapError, match="no place in GLIP's layout"):
        to_ours({"something.else": torch.zeros(1)})


def test_push_to_hub(converted, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options["exist_ok"]))
            return f"https://example.test/{repo_id}"

        def upload_folder(self, *, folder_path, repo_id, **options):
            calls.append((sorted(path.name for path in folder_path.iterdir()), repo_id))

    monkeypatch.setattr("glip_hf.conversion.convert.HfApi", Api)
    assert push_to_hub(converted, "me/glip") == "https://example.test/me/glip"
    assert calls[0] == ("me/glip", True)
    assert "model.safetensors" in calls[1][0] and calls[1][1] == "me/glip"
    assert 'from_pretrained("me/glip")' in (converted / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_full_size_there_and_back(tmp_path, name):
    original = synthetic_state_dict(name)
    result = convert(tmp_path, {"model": prefixed(original), "iteration": 1}, config=None)
    assert name in FAMILIES[result.record.family]
    load_exactly(result.directory)
    restore_checkpoint(result.directory, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", mmap=True)["model"]
    assert same_bits(back, prefixed(original))


@pytest.mark.parametrize(
    "name, message",
    [
        ("out/glip-tony", "out/glip-tony: no such directory; did you mean out/glip-tiny?"),
        ("out/nothing", "out/nothing: no such directory; a model on the Hub is named USER/NAME"),
        ("glip-tiny", "no such directory"),
        ("", "'': no such directory"),
        ("./a", "no such directory"),
        ("a/b/c", "no such directory"),
        ("C:\\models\\glip", "no such directory"),
        ("two words", "no such directory"),
        ("name\x00", "no such directory"),
        ("x" * 5000, "xxx...: no such directory"),
        ("file.pth", "file.pth is a file; convert it first: glip convert file.pth file"),
        ("user/glip", "user/glip: there is no such directory, and the Hub cannot be reached"),
    ],
)
def test_misspelt_paths_are_never_looked_up_on_the_hub(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "glip-tiny").mkdir(parents=True)
    (tmp_path / "file.pth").touch()
    if name != "user/glip":
        monkeypatch.setattr("glip_hf.conversion.restore.snapshot_download", None)
    for find in (model_directory, read_config):
        with pytest.raises(ConversionError, match=re.escape(message)) as error:
            find(name)
        assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_a_tokenizer_that_cannot_be_fetched_is_told_before_the_checkpoint_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.pth").touch()
    with pytest.raises(CheckpointError, match="nothing.pth"):
        convert_checkpoint("nothing.pth", "output")
    for tokenizer in ("bert-base-uncased-of-nobody", "vocab.txt", "missing/vocab.txt"):
        with pytest.raises(ConversionError, match=f"{tokenizer}: .*no such directory.* Give .* with --tokenizer"):
            convert_checkpoint("empty.pth", "output", tokenizer=tokenizer)
