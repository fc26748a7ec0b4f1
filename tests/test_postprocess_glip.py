# Copyright 2026 The glip_hf authors. MIT licence.
"""From raw outputs to detections: aggregation, limits and ties, merging, batches."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from glip_hf import postprocess_glip
from glip_hf.postprocess_glip import aggregate_tokens, merge_detections, post_process_grounding

LEVELS = [(4, 6), (2, 3)]
LOCATIONS = 24 + 6
SIZE = (64, 96)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability)) if probability else -100.0


def far_apart(count: int = LOCATIONS) -> Tensor:
    """Boxes [count, 4], relative, that never overlap."""
    index = torch.arange(count)
    corner = torch.stack([index % 6, index // 6], 1) / 6.0
    return torch.cat([corner, corner + 0.1], 1)


def outputs(probabilities: Tensor, maps: Tensor, boxes: Tensor | None = None, **fields) -> SimpleNamespace:
    """Outputs of captions [N, A, T] of probabilities; centerness is 1."""
    count = len(probabilities)
    boxes = far_apart() if boxes is None else boxes
    given = {
        "logits": torch.logit(probabilities, eps=1e-12),
        "centerness_logits": torch.full(probabilities.shape[:2], 100.0),
        "pred_boxes": boxes.expand(count, -1, -1),
        "spatial_shapes": torch.tensor(LEVELS).expand(count, -1, -1),
        "image_sizes": torch.tensor(SIZE).expand(count, -1),
        "original_sizes": None,
        "image_indices": None,
        "positive_map": maps,
        "label_ids": torch.arange(maps.shape[1]).expand(count, -1),
    }
    return SimpleNamespace(**{**given, **fields})


def at(*hits: tuple[int, int, float], tokens: int = 4) -> Tensor:
    """Probabilities [1, A, T], 0 but for (location, token, probability)."""
    made = torch.zeros(1, LOCATIONS, tokens)
    for location, token, probability in hits:
        made[0, location, token] = probability
    return made


ONE_TOKEN_EACH = torch.eye(4, dtype=torch.bool)[None]


# --- aggregation


def test_aggregations_by_hand() -> None:
    probabilities = torch.tensor([[0.2, 0.8, 0.5]])
    positive_map = torch.tensor([[1, 1, 0], [0, 0, 1]]).bool()
    for aggregation, expected in {"mean": 0.5, "max": 0.8, "power": 0.4}.items():
        scores = aggregate_tokens(probabilities, positive_map, aggregation)
        torch.testing.assert_close(scores, torch.tensor([[expected, 0.5]]))
    assert aggregate_tokens(probabilities, positive_map, "onehot").tolist() == probabilities[:, :2].tolist()


@pytest.mark.parametrize("aggregation", ["mean", "max", "power"])
def test_a_class_without_tokens_scores_nothing(aggregation) -> None:
    scores = aggregate_tokens(torch.rand(5, 3), torch.tensor([[0, 0, 0], [0, 1, 1]]).bool(), aggregation)
    assert scores[:, 0].tolist() == [0] * 5 and bool((scores[:, 1] > 0).all())


def test_no_classes_and_no_locations() -> None:
    assert aggregate_tokens(torch.rand(5, 3), torch.zeros(0, 3).bool()).shape == (5, 0)
    assert aggregate_tokens(torch.rand(0, 3), torch.ones(2, 3).bool()).shape == (0, 2)


def test_power_of_a_zero_is_zero() -> None:
    scores = aggregate_tokens(torch.tensor([[0.0, 0.9]]), torch.ones(1, 2).bool(), "power")
    assert scores.item() == 0


def test_aggregation_refusals() -> None:
    with pytest.raises(ValueError, match="'median'.*mean, max, power, onehot"):
        aggregate_tokens(torch.rand(2, 3), torch.ones(1, 3).bool(), "median")
    with pytest.raises(ValueError, match="4 classes and 3 tokens"):
        aggregate_tokens(torch.rand(2, 3), torch.ones(4, 3).bool(), "onehot")


# --- detections


def test_empty() -> None:
    result = post_process_grounding(outputs(torch.zeros(2, LOCATIONS, 4), ONE_TOKEN_EACH.expand(2, -1, -1)))
    assert len(result) == 2
    for found in result:
        assert found["scores"].shape == (0,) and found["boxes"].shape == (0, 4)
        assert found["labels"].shape == (0,) and found["labels"].dtype == torch.int64


def test_scores_boxes_and_labels_by_hand() -> None:
    made = outputs(at((3, 1, 0.25), (26, 2, 0.81)), ONE_TOKEN_EACH)
    made.centerness_logits[0, 3] = logit(0.64)
    found = post_process_grounding(made, target_sizes=[(640, 960)])[0]
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.4]))  # sqrt(0.81), sqrt(0.25 * 0.64)
    assert found["labels"].tolist() == [2, 1]
    # Location 3: x from 3/6, of 96 pixels, ten times as large in the image.
    torch.testing.assert_close(found["boxes"][1], torch.tensor([480.0, 0.0, 576.0, 64.0]))


def test_threshold_counts_before_centerness() -> None:
    made = outputs(at((0, 0, 0.06), (1, 0, 0.04)), ONE_TOKEN_EACH)
    made.centerness_logits[:] = logit(0.1)
    assert len(post_process_grounding(made)[0]["scores"]) == 1
    assert len(post_process_grounding(made, score_threshold=0.03)[0]["scores"]) == 2
    assert len(post_process_grounding(made, threshold=0.5)[0]["scores"]) == 0


@pytest.mark.parametrize("threshold", [0.3, 0.6, {None: 0.6}, 0.0, -1.0])
def test_a_threshold_leaves_what_nms_of_all_leaves_above_it(threshold, monkeypatch) -> None:
    """Bit for bit, and NMS sees fewer boxes."""
    generator, seen, nms = torch.Generator().manual_seed(0), [], postprocess_glip.nms
    corners = torch.rand(1, LOCATIONS, 2, generator=generator) * 0.3
    boxes = torch.cat([corners, corners + 0.5], dim=-1)
    maps = torch.eye(3, 4).bool()[None]
    made = outputs(torch.rand(1, LOCATIONS, 4, generator=generator), maps, boxes)
    made.centerness_logits = torch.randn(1, LOCATIONS, generator=generator)
    monkeypatch.setattr(postprocess_glip, "nms", lambda *given: seen.append(len(given[0])) or nms(*given))
    names = ["a", "b", "c"]
    (all_of_them,) = post_process_grounding(made, threshold=-1.0)
    (found,) = post_process_grounding(made, threshold=threshold, text_labels=names)
    least = threshold[None] if isinstance(threshold, dict) else threshold
    above = all_of_them["scores"] > least
    assert all(torch.equal(found[name], value[above]) for name, value in all_of_them.items())
    assert seen[1] < seen[0] if least > 0 else seen[1] == seen[0]


def test_sizes() -> None:
    made = outputs(at((14, 0, 0.9)), ONE_TOKEN_EACH)
    relative = post_process_grounding(made)[0]["boxes"]
    torch.testing.assert_close(relative, made.pred_boxes[0, 14][None])
    made.original_sizes = torch.tensor([[32, 48]])
    torch.testing.assert_close(post_process_grounding(made)[0]["boxes"], relative * torch.tensor([48.0, 32, 48, 32]))
    for sizes in ([(10, 20)], torch.tensor([[10, 20]]), ((10, 20),)):
        torch.testing.assert_close(
            post_process_grounding(made, target_sizes=sizes)[0]["boxes"], relative * torch.tensor([20.0, 10, 20, 10])
        )
    with pytest.raises(ValueError, match="2 entries for 1 images"):
        post_process_grounding(made, target_sizes=[(1, 1), (2, 2)])


def test_boxes_are_clipped() -> None:
    made = outputs(at((0, 0, 0.9)), ONE_TOKEN_EACH, torch.tensor([[-0.5, -0.5, 2.0, 2.0]]).expand(LOCATIONS, 4))
    box = post_process_grounding(made, target_sizes=[SIZE])[0]["boxes"][0]
    assert box.tolist() == [0, 0, 95, 63]


def test_a_tie_at_the_limit_keeps_all() -> None:
    hits = [(0, 0, 0.9)] + [(i, 0, 0.5) for i in range(1, 6)] + [(7, 0, 0.3)]
    found = post_process_grounding(outputs(at(*hits), ONE_TOKEN_EACH), max_detections=3)[0]
    assert len(found["scores"]) == 6
    torch.testing.assert_close(found["scores"].square(), torch.tensor([0.9] + [0.5] * 5))
    assert len(post_process_grounding(outputs(at(*hits), ONE_TOKEN_EACH), max_detections=1)[0]["scores"]) == 1


def test_a_limit_of_zero_keeps_nothing_and_a_negative_one_is_refused() -> None:
    made = outputs(at((0, 0, 0.9), (1, 1, 0.8)), ONE_TOKEN_EACH)
    for option in ("max_detections", "pre_nms_top_k"):
        found = post_process_grounding(made, **{option: 0})[0]
        assert found["scores"].shape == (0,) and found["boxes"].shape == (0, 4) and found["labels"].shape == (0,)
        with pytest.raises(ValueError, match=f"{option}=-1 must not be negative"):
            post_process_grounding(made, **{option: -1})


def test_unknown_arguments_are_refused() -> None:
    made = outputs(at((0, 0, 0.9)), ONE_TOKEN_EACH)
    with pytest.raises(TypeError, match="'nms_treshold': did you mean 'nms_threshold'"):
        post_process_grounding(made, nms_treshold=0.5)


def test_candidates_are_limited_per_level() -> None:
    hits = [(i, 0, 0.9 - i / 100) for i in range(10)] + [(24 + i, 0, 0.2 + i / 100) for i in range(4)]
    found = post_process_grounding(outputs(at(*hits), ONE_TOKEN_EACH), pre_nms_top_k=2)[0]
    torch.testing.assert_close(found["scores"].square(), torch.tensor([0.9, 0.89, 0.23, 0.22]))


def test_nms_is_per_label() -> None:
    same = torch.tensor([[0.1, 0.1, 0.5, 0.5]]).expand(LOCATIONS, 4)
    made = outputs(at((0, 0, 0.9), (1, 0, 0.8), (25, 0, 0.7), (2, 1, 0.6)), ONE_TOKEN_EACH, same)
    found = post_process_grounding(made)[0]
    assert found["labels"].tolist() == [0, 1]
    assert len(post_process_grounding(made, nms_threshold=1.0)[0]["labels"]) == 4


def test_padding_rows_are_not_classes() -> None:
    made = outputs(at((0, 0, 0.9), (1, 1, 0.8)), ONE_TOKEN_EACH, label_ids=torch.tensor([[7, -1, -1, -1]]))
    assert post_process_grounding(made)[0]["labels"].tolist() == [7]


def test_different_classes_per_image_and_batch_equals_single() -> None:
    first, second = at((0, 0, 0.9), (5, 2, 0.7)), at((1, 3, 0.8), (9, 1, 0.5), (26, 0, 0.6))
    maps = torch.zeros(2, 3, 4, dtype=torch.bool)
    maps[0, 0, 0] = maps[0, 1, 2] = True
    maps[1, 0, 3] = maps[1, 1, 1] = maps[1, 2, 0] = True
    labels = torch.tensor([[0, 1, -1], [0, 1, 2]])
    batch = post_process_grounding(outputs(torch.cat([first, second]), maps, label_ids=labels))
    for n, probabilities in enumerate((first, second)):
        alone = post_process_grounding(outputs(probabilities, maps[n : n + 1], label_ids=labels[n : n + 1]))[0]
        for key, value in alone.items():
            assert torch.equal(batch[n][key], value)
    assert batch[0]["labels"].tolist() == [0, 1] and batch[1]["labels"].tolist() == [0, 2, 1]


def test_chunks_of_an_image_are_merged() -> None:
    probabilities = torch.cat([at((0, 0, 0.9), (1, 1, 0.5)), at((2, 0, 0.7)), at((3, 0, 0.8), (4, 1, 0.6))])
    maps = torch.eye(4, dtype=torch.bool)[:2].expand(3, -1, -1)
    labels = torch.tensor([[0, 1], [0, 1], [2, 3]])
    made = outputs(probabilities, maps, label_ids=labels, image_indices=torch.tensor([1, 0, 1]))
    merged = post_process_grounding(made, target_sizes=[SIZE, SIZE], max_detections=3)
    assert merged[0]["labels"].tolist() == [0]
    assert merged[1]["labels"].tolist() == [0, 2, 3]  # 0.9, 0.8, 0.6; 0.5 is one too many
    parts = [
        post_process_grounding(outputs(probabilities[n, None], maps[n, None], label_ids=labels[n, None]), 0, [SIZE])[0]
        for n in (0, 2)
    ]
    for key, value in merge_detections(parts, 3).items():
        assert torch.equal(merged[1][key], value)


def test_half_precision_outputs() -> None:
    made = outputs(at((3, 1, 0.25)), ONE_TOKEN_EACH)
    made.logits, made.centerness_logits = made.logits.bfloat16(), made.centerness_logits.bfloat16()
    found = post_process_grounding(made)[0]
    assert found["scores"].dtype == found["boxes"].dtype == torch.float32
    torch.testing.assert_close(found["scores"], torch.tensor([0.5]), atol=5e-3, rtol=0)


def test_integer_positive_maps() -> None:
    made = outputs(at((3, 1, 0.25)), ONE_TOKEN_EACH.long())
    assert post_process_grounding(made)[0]["labels"].tolist() == [1]


# --- arguments that make no sense


NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"threshold": NAN}, ValueError, "threshold=nan must be a number"),
        ({"threshold": None}, TypeError, "threshold=None must be one number"),
        ({"threshold": "0.3"}, TypeError, "threshold='0.3' must be one number"),
        ({"threshold": [0.1, 0.2]}, TypeError, r"threshold=\[0.1, 0.2\] must be one number; for a threshold per class"),
        ({"threshold": torch.tensor([0.1])}, TypeError, "threshold=tensor.* must be one number"),
        ({"score_threshold": torch.tensor(NAN)}, ValueError, "score_threshold=nan must be a number"),
        ({"nms_threshold": np.float32("nan")}, ValueError, "nms_threshold=nan must be a number"),
        ({"max_detections": 2.5}, TypeError, "max_detections=2.5 must be one whole number"),
        ({"max_detections": True}, TypeError, "max_detections=True must be one whole number"),
        ({"pre_nms_top_k": None}, TypeError, "pre_nms_top_k=None must be one whole number"),
        ({"aggregation": None}, ValueError, "aggregation=None is not known"),
        ({"aggregation": ["mean"]}, ValueError, "aggregation=.* is not known"),
        ({"box_threshold": 0.4}, TypeError, "'box_threshold': here it is 'threshold'"),
        ({"iou_threshold": 0.4}, TypeError, "'iou_threshold': here it is 'nms_threshold'"),
        ({"text_threshold": 0.25}, TypeError, "'text_threshold': leave it out"),
        *[
            ({"target_sizes": sizes}, ValueError, r"target_sizes=.* must have \(height, width\)")
            for sizes in (
                (480, 640),
                ["48"],
                torch.tensor([480, 640]),
                480,
                "ab",
                [None],
                [(480, 640, 3)],
                [(0, 640)],
                [(-480, 640)],
                [(NAN, 640)],
                [(math.inf, 640)],
            )
        ],
    ],
)
def test_options_that_make_no_sense(options, error, words) -> None:
    with pytest.raises(error, match=words):
        post_process_grounding(outputs(at((0, 0, 0.9)), ONE_TOKEN_EACH), **options)


def test_options_of_other_types_and_odd_values_mean_what_they_say() -> None:
    made = outputs(at((0, 0, 0.9), (1, 0, 0.5)), ONE_TOKEN_EACH)

    def count(**options) -> int:
        return len(post_process_grounding(made, **options)[0]["scores"])

    for threshold in (np.float32(0.8), torch.tensor(0.8), np.array(0.8)):
        assert count(threshold=threshold) == 1
    assert count(threshold=-1) == count(threshold=-math.inf) == count(nms_threshold=7) == 2
    assert count(threshold=math.inf) == count(score_threshold=1) == 0
    assert count(nms_threshold=-0.1) == 1  # every other box of the class overlaps by more
    assert count(max_detections=np.int64(1)) == count(max_detections=torch.tensor(1)) == 1
    scaled = post_process_grounding(made, target_sizes=np.array([SIZE]))[0]
    assert torch.equal(scaled["boxes"], post_process_grounding(made, target_sizes=[SIZE])[0]["boxes"])


@pytest.mark.parametrize("name", ["logits", "centerness_logits", "pred_boxes"])
def test_outputs_that_are_nan(name) -> None:
    made = outputs(at((0, 0, 0.9)), ONE_TOKEN_EACH)
    setattr(made, name, getattr(made, name).clone())
    getattr(made, name)[0, 0] = NAN
    with pytest.raises(ValueError, match="NaN"):
        post_process_grounding(made)


def test_nan_where_nobody_looks_does_not_matter() -> None:
    made = outputs(at((0, 0, 0.9)), ONE_TOKEN_EACH[:, :1], label_ids=torch.zeros(1, 1, dtype=torch.int64))
    made.pred_boxes = made.pred_boxes.clone()
    made.pred_boxes[0, 5] = NAN  # of no candidate
    assert len(post_process_grounding(made)[0]["scores"]) == 1


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"positive_map": ONE_TOKEN_EACH[..., :3]}, ValueError, r"positive_map \(1, 4, 3\)"),
        ({"positive_map": ONE_TOKEN_EACH[0]}, ValueError, r"positive_map \(4, 4\)"),
        ({"label_ids": torch.zeros(1, 3, dtype=torch.int64)}, ValueError, r"label_ids \(1, 3\) do not fit"),
        ({"image_indices": torch.tensor([-1])}, ValueError, "image_indices=.* must not be negative"),
        ({"image_sizes": torch.tensor([[0, 0]])}, ValueError, "Image 0 has no pixels"),
        ({"image_sizes": torch.tensor([[-8, -8]])}, ValueError, "Image 0 has no pixels"),
        ({"image_sizes": torch.tensor(SIZE)}, ValueError, r"image_sizes \(2,\) do not fit logits"),
        ({"image_indices": torch.tensor([0, 0])}, ValueError, r"image_indices \(2,\) do not fit .* must be \(1,\)"),
        ({"pred_boxes": torch.zeros(1, 3, 4)}, ValueError, r"pred_boxes \(1, 3, 4\) do not fit logits"),
        ({"centerness_logits": torch.zeros(1, 3)}, ValueError, r"centerness_logits \(1, 3\) do not fit logits"),
        ({"original_sizes": torch.tensor([[0, 0]])}, ValueError, "original_sizes"),
    ],
)
def test_outputs_that_do_not_fit(change, error, words) -> None:
    with pytest.raises(error, match=words):
        post_process_grounding(outputs(at((0, 0, 0.9)), ONE_TOKEN_EACH, **change))


def test_outputs_of_another_kind() -> None:
    made = outputs(at((0, 0, 0.9)), ONE_TOKEN_EACH)
    for other in (tuple(vars(made).values()), vars(made), None):
        with pytest.raises(TypeError, match="without 'logits': give what GlipForGrounding returned"):
            post_process_grounding(other)


def test_an_image_without_captions_has_no_detections() -> None:
    made = outputs(
        at((0, 0, 0.9)), ONE_TOKEN_EACH, image_indices=torch.tensor([1]), original_sizes=torch.tensor([SIZE])
    )
    for sizes in (None, [SIZE, SIZE]):
        none, one = post_process_grounding(made, target_sizes=sizes)
        assert none["scores"].shape == none["labels"].shape == (0,) and none["boxes"].shape == (0, 4)
        assert one["labels"].tolist() == [0] and {k: v.dtype for k, v in one.items()} == {
            k: v.dtype for k, v in none.items()
        }


def test_the_last_image_without_captions_has_no_detections() -> None:
    made = outputs(at((0, 0, 0.9)), ONE_TOKEN_EACH, image_indices=torch.tensor([0]))
    for sizes in ([SIZE, SIZE], torch.tensor([SIZE, SIZE])):
        one, none = post_process_grounding(made, target_sizes=sizes)
        assert one["labels"].tolist() == [0] and none["scores"].shape == (0,) and none["boxes"].shape == (0, 4)
    with pytest.raises(ValueError, match="target_sizes=5 must have"):
        post_process_grounding(made, target_sizes=5)


@pytest.mark.parametrize("limit", [-1, 1.5, None])
def test_merging_with_a_limit_that_makes_no_sense(limit) -> None:
    part = {"scores": torch.tensor([0.9, 0.5, 0.1])}
    with pytest.raises((TypeError, ValueError), match=f"limit={limit} must"):
        merge_detections([part], limit)
    assert len(merge_detections([part], 0)["scores"]) == 0
