# Copyright 2026 The glip_hf authors. MIT licence.
"""Average precision as COCO has it, and a walk through the whole evaluation."""

import contextlib
import io

import numpy as np
import pytest
import torch
from random_glip import random_model, random_processor

from glip_hf.boxes_glip import box_iou
from glip_hf.data import scene_metrics
from glip_hf.data.scene_metrics import Query, average_precision, evaluate_scenes
from glip_hf.data.scenes import HELD_OUT, SceneConfig


def query(scores: list[float], ious: list[list[float]], num_true: int, name: str = "x") -> Query:
    return Query(name, np.array(scores), np.array(ious).reshape(len(scores), num_true))


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        ([query([], [], 1)], 0.0),
        ([query([0.9], [[0.8]], 1)], 1.0),
        ([query([0.9], [[0.49]], 1)], 0.0),
        # the second detection of the same box is false, and comes too late to matter
        ([query([0.9, 0.8], [[0.8], [0.9]], 1)], 1.0),
        # precision 1/2 from the first place on
        ([query([0.9, 0.8], [[0.0], [0.9]], 1)], 0.5),
        # one of two found: recall places 0.00 .. 0.50, 51 of 101
        ([query([0.9], [[0.8, 0.0]], 2)], 51 / 101),
        # an image without the thing: its detection scores higher than the true one
        ([query([0.9], [], 0), query([0.8], [[0.7]], 1)], 0.5),
        # a category that is nowhere does not count, one that is missed does
        ([query([0.9], [], 0, "nowhere"), query([0.8], [[0.7]], 1), query([], [], 1, "y")], 0.5),
    ],
)
def test_average_precision_by_hand(queries, expected) -> None:
    assert average_precision(queries, [0.5]) == pytest.approx(expected)


def test_average_precision_needs_a_true_box() -> None:
    with pytest.raises(ValueError, match="no true box"):
        average_precision([query([0.9], [], 0)])


def test_average_precision_is_that_of_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    rng = np.random.default_rng(0)
    names, truths, found, queries = ["a", "b", "c"], [], [], []
    for image in range(40):
        for category, name in enumerate(names):
            corner = rng.integers(0, 80, (rng.integers(0, 4), 2))
            true = np.concatenate([corner, corner + rng.integers(5, 40, corner.shape)], 1)
            boxes = np.concatenate(
                [true + rng.integers(-4, 5, true.shape), rng.integers(0, 50, (2, 4)) + [0, 0, 50, 50]]
            )
            scores = -np.sort(-rng.random(len(boxes)).round(2))
            ious = box_iou(torch.tensor(boxes).double(), torch.tensor(true).double().reshape(-1, 4))
            queries.append(Query(name, scores, ious.numpy()))

            def xywh(box: np.ndarray) -> list[float]:
                return [*map(float, box[:2]), *map(float, box[2:] - box[:2] + 1)]

            for box in true:
                truths.append(
                    {
                        "id": len(truths) + 1, "image_id": image, "category_id": category,
                        "bbox": xywh(box), "area": 1.0, "iscrowd": 0,
                    }
                )  # fmt: skip
            found += [
                {"image_id": image, "category_id": category, "bbox": xywh(b), "score": float(s)}
                for b, s in zip(boxes, scores)
            ]
    with contextlib.redirect_stdout(io.StringIO()):
        api = coco.COCO()
        api.dataset = {
            "images": [{"id": k} for k in range(40)],
            "categories": [{"id": k} for k in range(3)],
            "annotations": truths,
        }
        api.createIndex()
        run = evaluation.COCOeval(api, api.loadRes(found), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    assert average_precision(queries) == pytest.approx(run.stats[0], abs=1e-9)
    assert average_precision(queries, [0.5]) == pytest.approx(run.stats[1], abs=1e-9)


def test_evaluation_runs_and_leaves_the_model_as_it_was() -> None:
    model, processor = random_model().train(), random_processor()
    config = SceneConfig(resolution=96)
    metrics = evaluate_scenes(
        model, processor, num_scenes=4, config=config, batch_size=3,
        splits=("detection", "sentences", "unseen", "relations", "novel"),
    )  # fmt: skip
    assert model.training
    assert {"ap50", "ap", "recall1", "unseen_ap50", "relation_recall1", "novel_ap50"} <= set(metrics)
    assert all(0 <= value <= 1 for value in metrics.values())
    with pytest.raises(ValueError, match="unknown"):
        evaluate_scenes(model, processor, splits=("train",))


def test_perfect_detections_are_perfect_in_every_metric(monkeypatch) -> None:
    def oracle(model, processor, samples, **options):
        return [
            {
                "scores": torch.linspace(1, 0.5, len(sample.boxes)),
                "boxes": torch.from_numpy(sample.boxes),
                "labels": torch.from_numpy(sample.labels),
            }
            for sample in samples
        ]

    monkeypatch.setattr(scene_metrics, "ground", oracle)
    metrics = evaluate_scenes(torch.nn.Identity(), None, num_scenes=20)
    assert set(metrics.values()) == {1.0}


def test_unseen_metrics_judge_held_out_names_alone(monkeypatch) -> None:
    def finds_others_only(model, processor, samples, **options):
        results = []
        for sample in samples:
            pairs = [tuple(sample.rows[k].split()) for k in sample.labels]
            keep = np.array([pair not in HELD_OUT for pair in pairs], dtype=bool)
            results.append(
                {
                    "scores": torch.ones(int(keep.sum())),
                    "boxes": torch.from_numpy(sample.boxes[keep]),
                    "labels": torch.from_numpy(sample.labels[keep]),
                }
            )
        return results

    monkeypatch.setattr(scene_metrics, "ground", finds_others_only)
    metrics = evaluate_scenes(torch.nn.Identity(), None, num_scenes=20, splits=("unseen",))
    assert set(metrics.values()) == {0.0}
