"""The Trainer of Transformers trains GLIP with nothing but a data set and a collator."""

import numpy as np
import pytest
import torch
from PIL import Image
from random_glip import random_model, random_processor
from transformers import Trainer, TrainingArguments

SIZE = {"shortest_edge": 96}


def rectangle(color: tuple[int, int, int], box: tuple[int, int, int, int]) -> Image.Image:
    pixels = np.full((96, 128, 3), 40, dtype=np.uint8)
    left, top, width, height = box
    pixels[top : top + height, left : left + width] = color
    return Image.fromarray(pixels)


EXAMPLES = [
    {"image": rectangle((220, 40, 40), (10, 12, 48, 60)), "bbox": [10, 12, 48, 60], "category_id": 0},
    {"image": rectangle((40, 60, 220), (70, 20, 40, 50)), "bbox": [70, 20, 40, 50], "category_id": 1},
]


def collate(examples: list[dict]) -> dict:
    batch = random_processor()(
        images=[example["image"] for example in examples],
        text=["cat", "sofa"],
        annotations=[{"image_id": i, "annotations": [e]} for i, e in enumerate(examples)],
        size=SIZE,
        return_tensors="pt",
    )
    return dict(batch)


def test_trainer_overfits_two_images(tmp_path) -> None:
    torch.manual_seed(0)
    model = random_model()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=80,
        per_device_train_batch_size=2,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        remove_unused_columns=False,  # the columns are the collator's business
        label_names=["labels"],
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=EXAMPLES)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 80 and np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3]), (losses[:3], losses[-5:])


def test_trainer_evaluates(tmp_path) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        remove_unused_columns=False,
        eval_do_concat_batches=False,  # labels are lists of dicts, ragged
        prediction_loss_only=True,
        label_names=["labels"],
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(random_model(), arguments, data_collator=collate, eval_dataset=EXAMPLES)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(random_model()(**collate(EXAMPLES)).loss.item(), rel=1e-4)
