"""The optional losses: values worked out by hand, finite in every corner, heads only where they are wanted."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from random_glip import load_photo, random_config, random_processor
from torch import Tensor

from glip_hf import GlipConfig, GlipForGrounding
from glip_hf.auxiliary_losses_glip import (
    IGNORED,
    contrastive_alignment_loss,
    default_greenlight_map,
    hide_tokens,
    masked_language_loss,
    token_targets,
)

ANCHORS = torch.tensor([[x, x, x + 63, x + 63] for x in (0.0, 200.0, 300.0, 400.0)])
"""Four locations, of which a box at the origin takes the first: IoUs 1, 0, 0, 0 have mean 0.25 and deviation 0.5."""

WEIGHTS = {"mlm_loss_weight": 1.0, "soft_token_loss_weight": 1.0, "contrastive_loss_weight": 1.0}
TERMS = {"mlm_loss_weight": "loss_mlm", "soft_token_loss_weight": "loss_soft_token"}
TERMS["contrastive_loss_weight"] = "loss_contrastive"


def build(**fields) -> GlipForGrounding:
    return GlipForGrounding(GlipConfig(**{**random_config().to_dict(), **fields})).train()


def batch_of(boxes: list[list[float]]) -> dict:
    things = [{"bbox": box, "category_id": k % 2} for k, box in enumerate(boxes)]
    return random_processor()(
        images=load_photo().resize((128, 96)),
        text=["cat", "pink sofa"],
        annotations={"image_id": 0, "annotations": things},
        size={"shortest_edge": 96},
        return_tensors="pt",
    )


# -- masked language modelling ---------------------------------------------------------------------


def test_masked_language_loss_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0], [5.0, 1.0]]])
    # ln 2 for the first token, -ln(1/4) for the second, which is class 1; the third is not asked for
    loss = masked_language_loss(logits, torch.tensor([[0, 1, IGNORED]]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_no_hidden_token_gives_zero_and_zero_gradients() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = masked_language_loss(logits, torch.full((2, 3), IGNORED))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_tokens_are_hidden_as_the_greenlight_map_says() -> None:
    ids = torch.full((4, 50_000), 7)
    real = torch.ones_like(ids)
    real[3] = 0
    green = torch.tensor([1, 0, -1, 1])[:, None].expand_as(ids)
    read, asked = hide_tokens(ids, real, green, mask_token_id=103, vocab_size=1000, probability=0.15)
    hidden = asked[0] != IGNORED
    assert hidden.float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert (asked[0][hidden] == 7).all()
    kinds = read[0][hidden]
    assert (kinds == 103).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (kinds == 7).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert (read[0][~hidden] == 7).all()
    assert (read[1] != 7).any() and (asked[1] == IGNORED).all()  # read hidden, never asked for
    assert torch.equal(read[2], ids[2]) and (asked[2] == IGNORED).all()  # not to be touched
    assert torch.equal(read[3], ids[3]) and (asked[3] == IGNORED).all()  # padding


def test_greenlight_default_and_shape() -> None:
    positive_map = torch.tensor([[0, 1, 0, 0], [0, 0, 1, 0]])
    labels = [{"positive_map": positive_map}, {"positive_map": positive_map[:0]}]
    assert default_greenlight_map(labels, 4).tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]
    given = {"positive_map": positive_map, "greenlight_map": torch.tensor([-1.0, 0, 0, 1])}
    assert default_greenlight_map([given], 4).tolist() == [[-1, 0, 0, 1]]
    with pytest.raises(ValueError, match=r"shape \(4,\), not \(5,\)"):
        default_greenlight_map([given], 5)


def test_hidden_words_reach_the_text_encoder_in_training_only() -> None:
    model = build(mlm_loss_weight=1.0, mlm_probability=0.9)
    batch = batch_of([[10, 10, 50, 60], [40, 10, 50, 60]])
    outputs = model(**batch)
    assert not torch.equal(outputs.input_ids, batch["input_ids"]) and "loss_mlm" in outputs.loss_dict
    outputs = model.eval()(**batch)
    assert torch.equal(outputs.input_ids, batch["input_ids"]) and "loss_mlm" not in outputs.loss_dict


def test_one_caption_for_many_images_has_no_tokens_to_hide() -> None:
    model = build(mlm_loss_weight=1.0)
    batch = batch_of([[10, 10, 50, 60]])
    batch["pixel_values"] = batch["pixel_values"].repeat(2, 1, 1, 1)
    batch["pixel_mask"] = batch["pixel_mask"].repeat(2, 1, 1)
    batch["labels"] = batch["labels"] * 2
    with pytest.raises(ValueError, match="1 captions for 2 labels"):
        model(**batch)


# -- contrastive alignment -------------------------------------------------------------------------


def test_contrastive_loss_by_hand() -> None:
    # Two locations, two tokens; location 0 goes with token 1. A third column is padding.
    logits = torch.tensor([[[1.0, 2.0, 9.0], [0.5, 0.0, 9.0]]])
    targets = torch.tensor([[[False, True, False], [False, False, False]]])
    mask = torch.tensor([[True, True, False]])
    location = math.log(math.exp(1) + math.exp(2)) - 2
    token = math.log(math.exp(2) + math.exp(0)) - 2
    loss = contrastive_alignment_loss(logits, targets, mask)
    assert loss.item() == pytest.approx((location + token) / 2)


def test_contrastive_loss_takes_the_mean_over_several_tokens() -> None:
    logits = torch.tensor([[[1.0, 3.0]]])
    everything = math.log(math.exp(1) + math.exp(3))
    # the tokens each have one location: log-sum-exp of one number minus itself
    loss = contrastive_alignment_loss(logits, torch.ones(1, 1, 2, dtype=torch.bool), torch.ones(1, 2).bool())
    assert loss.item() == pytest.approx((everything - 2) / 2)


def test_contrastive_loss_of_nothing_is_zero() -> None:
    logits = torch.randn(2, 4, 3, requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    loss = contrastive_alignment_loss(logits, torch.zeros(2, 4, 3, dtype=torch.bool), mask)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


# -- targets and heads -----------------------------------------------------------------------------


def test_token_targets_follow_the_assignment() -> None:
    label = {"boxes": torch.tensor([[0.0, 0, 63, 63]]), "positive_map": torch.tensor([[0.0, 0.5, 0.5]])}
    targets, matched = token_targets([label], ANCHORS, [4], 3, top_k=9)
    assert targets.tolist() == [[[False, True, True], *[[False] * 3] * 3]]
    assert matched.tolist() == [[True, False, False, False]]


def test_no_head_unless_wanted() -> None:
    model = build()
    assert model.auxiliary is None
    outputs = model(**batch_of([[10, 10, 50, 60]]))
    assert set(outputs.loss_dict) == {"loss_token", "loss_bbox", "loss_centerness"}


@pytest.mark.parametrize("field", WEIGHTS)
def test_each_loss_alone(field: str) -> None:
    model = build(**{field: 2.0}, mlm_probability=0.9)
    torch.manual_seed(1)
    outputs = model(**batch_of([[10, 10, 50, 60], [40, 10, 50, 60]]))
    assert set(outputs.loss_dict) == {"loss_token", "loss_bbox", "loss_centerness", TERMS[field]}
    extra = outputs.loss_dict[TERMS[field]]
    assert extra.item() > 0
    assert outputs.loss.item() == pytest.approx(sum(v.item() for v in outputs.loss_dict.values()), rel=1e-6)
    extra.backward()
    heads = dict(model.auxiliary.named_parameters())
    assert heads and all(p.grad is not None and p.grad.any() for p in heads.values())
    assert model.model.tower["blocks"][0].fusion.gamma_text.grad is not None


@pytest.mark.parametrize("boxes", [[], [[10.0, 10, 50, 60]]])
def test_all_together_are_finite_with_and_without_boxes(boxes: list) -> None:
    model = build(**WEIGHTS)
    outputs = model(**batch_of(boxes))
    assert all(math.isfinite(value.item()) for value in outputs.loss_dict.values())
    outputs.loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_initial_values_of_the_heads() -> None:
    heads = build(**WEIGHTS).auxiliary
    assert heads.soft_tokens.bias.sigmoid().tolist() == pytest.approx([0.01] * 256)
    assert heads.contrastive_log_scale.exp().item() == pytest.approx(0.07), "the temperature of MDETR"


def test_soft_token_loss_by_hand() -> None:
    """Logits 0 everywhere: a focal loss of 0.25 * 0.25 ln 2 a target, 0.75 * 0.25 ln 2 any other real token."""
    model = build(soft_token_loss_weight=1.0)
    torch.nn.init.zeros_(model.auxiliary.soft_tokens.weight)
    torch.nn.init.zeros_(model.auxiliary.soft_tokens.bias)
    label = {"boxes": torch.tensor([[0.0, 0, 63, 63]]), "positive_map": torch.tensor([[0.0, 1, 0]])}
    vision, text = torch.randn(1, 4, 32), torch.randn(1, 3, 32)
    losses = model.auxiliary(vision, text, torch.tensor([[1, 1, 0]]), [label], ANCHORS, [4], None)
    # one target and seven others on the two real tokens of four locations; one location with a box
    expected = (0.25 + 7 * 0.75) * 0.25 * math.log(2)
    assert losses["loss_soft_token"].item() == pytest.approx(expected, rel=1e-5)


def test_a_full_caption_has_no_object_at_its_last_token() -> None:
    model = build(soft_token_loss_weight=1.0, max_text_length=3)
    torch.nn.init.zeros_(model.auxiliary.soft_tokens.weight)
    with torch.no_grad():
        model.auxiliary.soft_tokens.bias.copy_(torch.tensor([-30.0, -30, 30]))
    nothing = {"boxes": torch.zeros(0, 4), "positive_map": torch.zeros(0, 3)}
    state: Tensor = torch.randn(1, 3, 32)
    losses = model.auxiliary(torch.randn(1, 4, 32), state, torch.ones(1, 3), [nothing], ANCHORS, [4], None)
    assert losses["loss_soft_token"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("field", [*WEIGHTS, "mlm_probability", "prompt_table_length"])
def test_negative_values_are_refused(field: str) -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match=f"(?s){field}.*greater or equal to 0.*got -1"):
        GlipConfig(**{field: -1})


def test_saved_and_loaded(tmp_path) -> None:
    model = build(**WEIGHTS)
    model.save_pretrained(tmp_path)
    again = GlipForGrounding.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
