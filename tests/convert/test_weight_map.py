import pytest
import torch
from checkpoints import RELEASED, SMALL, same_bits, small_state
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.architectures import recorded_config
from parity.synthetic import key_list

from glip_hf import GlipConfig, GlipForGrounding
from glip_hf.conversion.variants import expected_tensors
from glip_hf.conversion.weight_map import (
    TABLE,
    WeightMapError,
    cell_anchor,
    differing_buffers,
    is_buffer,
    is_fused,
    match_original,
    match_ours,
    position_ids,
    relative_position_index,
    standard_order,
    to_original,
    to_ours,
)


def meta_state(name: str) -> dict[str, torch.Tensor]:
    return {
        key: torch.empty(spec[0], dtype=getattr(torch, spec[1]), device="meta") for key, spec in key_list(name).items()
    }


@pytest.mark.parametrize("name", [*SMALL, *RELEASED])
def test_key_lists_there_and_back(name):
    original = meta_state(name)
    restored = to_original(to_ours(original))
    assert list(restored) == list(original)
    for key, tensor in original.items():
        assert (restored[key].shape, restored[key].dtype) == (tensor.shape, tensor.dtype), key


@pytest.mark.parametrize("name", [*SMALL, *RELEASED])
def test_converted_keys_are_those_of_the_model(name):
    original = meta_state(name)
    with torch.device("meta"):
        model = GlipForGrounding(recorded_config(name))
    converted = to_ours(original)
    assert {key: tensor.shape for key, tensor in converted.items()} == {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }


def test_every_row_is_needed_and_every_key_has_one_row():
    used = set()
    for name in [*SMALL, *RELEASED]:
        keys = key_list(name)
        for key in keys:
            rules = [rule for rule in TABLE if rule.pattern.fullmatch(key)]
            assert len(rules) == 1, key
            used.add(rules[0])
    unused = {rule.original for rule in set(TABLE) - used}
    assert unused == {"rpn.tunable_linear.weight"}  # prompt tuning: in no released checkpoint


@pytest.mark.parametrize("name", SMALL)
def test_both_directions_agree_key_by_key(name):
    keys = key_list(name)
    fused = is_fused(keys)
    for key in keys:
        rule, targets = match_original(key, fused)
        for part, ours in enumerate(targets):
            assert match_ours(ours, fused) == (rule, key, part)
        assert bool(targets) is not is_buffer(key)


def test_values_survive_and_qkv_splits_by_rows():
    original = small_state()
    converted = to_ours(original)
    qkv = original["backbone.body.layers.1.blocks.0.attn.qkv.weight"]
    rows = qkv.shape[0] // 3
    for part, name in enumerate("qkv"):
        key = f"model.backbone.swin.encoder.layers.1.blocks.0.attention.{name}_proj.weight"
        assert torch.equal(converted[key], qkv[part * rows : (part + 1) * rows])
    assert same_bits(to_original(converted), original)


@settings(max_examples=15, deadline=None)
@given(
    depths=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    window=st.integers(2, 5),
    blocks=st.integers(1, 12),
    layers=st.integers(1, 12),
    fused=st.booleans(),
    classes=st.sampled_from([0, 3]),
    scale=st.sampled_from([4, 8]),
    shuffle=st.randoms(use_true_random=False),
)
def test_any_size_converts_both_ways(depths, window, blocks, layers, fused, classes, scale, shuffle):
    config = GlipConfig(
        backbone_config={
            "model_type": "swin",
            "embed_dim": 4,
            "depths": depths,
            "num_heads": [1, 1, 2, 2],
            "window_size": window,
            "out_indices": [2, 3, 4],
        },
        text_config={
            "model_type": "bert",
            "vocab_size": 11,
            "hidden_size": 4,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "intermediate_size": 6,
            "max_position_embeddings": 16,
        },
        d_model=16,
        num_blocks=blocks,
        use_fusion=fused,
        fusion_hidden_size=8,
        fusion_heads=2,
        max_text_length=16,
        num_class_channels=classes,
        anchor_scale=scale,
    )
    original = expected_tensors(config)
    shuffled = list(original)
    shuffle.shuffle(shuffled)
    assert standard_order(shuffled) == list(original)
    converted = to_ours({key: original[key] for key in shuffled})
    restored = to_original(converted, scale)
    assert list(restored) == list(original)
    assert all(restored[key].shape == original[key].shape for key in original)


def test_unknown_keys_are_listed():
    original = small_state()
    original["rpn.head.mlm_head.weight"] = torch.zeros(3, 2)
    original["backbone.body.norm0.weight"] = torch.zeros(4)
    with pytest.raises(WeightMapError) as error:
        to_ours(original)
    assert "rpn.head.mlm_head.weight [3, 2]" in str(error.value)
    assert "backbone.body.norm0.weight [4]" in str(error.value)
    assert "(2)" in str(error.value)


def test_tower_modules_out_of_place_are_unknown():
    # 3i + 2 is the DyConv of a fused tower; at 3i it is somebody else's.
    assert match_original("rpn.head.dyhead_tower.0.offset.weight", fused=True) is None
    assert match_original("rpn.head.dyhead_tower.0.offset.weight", fused=False) is not None
    assert match_original("rpn.head.dyhead_tower.0.b_attn.gamma_v", fused=False) is None


def test_foreign_tensors_of_ours_and_incomplete_qkv_are_listed():
    converted = to_ours(small_state())
    with pytest.raises(WeightMapError, match="lora_A"):
        to_original({**converted, "model.text_model.lora_A.weight": torch.zeros(1)})
    key = "model.backbone.swin.encoder.layers.0.blocks.0.attention.k_proj.bias"
    del converted[key]
    with pytest.raises(WeightMapError, match=r"layers\.0\.blocks\.0\.attn\.qkv\.bias"):
        to_original(converted)


def test_qkv_that_does_not_split_is_an_error():
    original = small_state()
    original["backbone.body.layers.0.blocks.0.attn.qkv.bias"] = torch.zeros(71)
    with pytest.raises(WeightMapError, match=r"qkv\.bias \[71\]"):
        to_ours(original)


def test_buffers_by_hand():
    # 2x2 window: cells (0,0) (0,1) (1,0) (1,1); offset (dy, dx) + 1 indexes a 3x3 table
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    assert relative_position_index((4, 4)).tolist() == expected
    assert position_ids((1, 4)).tolist() == [[0, 1, 2, 3]]
    assert cell_anchor((1, 4), 0).tolist() == [[-28.0, -28.0, 35.0, 35.0]]  # 64 wide, centre 3.5
    assert cell_anchor((1, 4), 4).tolist() == [[-448.0, -448.0, 575.0, 575.0]]


def test_differing_buffers_are_found():
    original = small_state()
    assert list(differing_buffers(original)) == []
    key = "backbone.body.layers.0.blocks.0.attn.relative_position_index"
    original[key][0, 1] += 1
    [(found, stored, true)] = differing_buffers(original)
    assert found == key and int((stored != true).sum()) == 1
