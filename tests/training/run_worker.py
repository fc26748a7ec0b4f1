"""A tiny training run for tests that need real processes: `python run_worker.py OUTPUT [KEY=VALUE ...]`.

Data: random images of 64 x 64 with one box each; every second half of a global batch has no box at all, so that with
two processes one of them never sees any. Environment: KILL_AT=n kills the process (as kill -9 does) during step n;
TERM_AT=n sends it SIGTERM then; NAN_AT=n puts NaN into an image of step n; STRAY=1 draws random numbers between the
steps; BREAK_AT=n makes the gradient of step n infinite; WORKERS=n reads with so many; FAIL_AT=n raises an error at the
last image of step n; HANG_AT=n never gives that image; WRAP_ONLY=1 has a compiled
model run as it is. Every process leaves the losses of its steps in OUTPUT/losses_RANK.json.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from random_glip import random_config

from glip_hf._program import leave, run_program
from glip_hf.data import SequentialBatchSampler
from glip_hf.modeling_glip import GlipForGrounding
from glip_hf.training.batches import Batches, per_process
from glip_hf.training.loop import Run
from glip_hf.training.recipe import load_recipe

GROUP = 4
NUM_TOKENS = 7


class RandomImages(torch.utils.data.Dataset):
    """Sample number to an image, a function of the number alone."""

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, key: tuple[int, int]) -> dict:
        _, number = key
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randn(3, 64, 64, generator=generator)
        step = number // GROUP
        if step == int(os.environ.get("KILL_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == int(os.environ.get("TERM_AT", -1)):
            os.kill(os.getpid(), signal.SIGTERM)
        if number == GROUP * int(os.environ.get("FAIL_AT", -1)) + GROUP - 1:
            raise ValueError(f"image-{number} is no image\n(in two lines)")
        if number == GROUP * int(os.environ.get("HANG_AT", -1)) + GROUP - 1:
            time.sleep(1000)
        if step == int(os.environ.get("NAN_AT", -1)):
            pixels[0, 0, 0] = torch.nan
        boxes = torch.rand(1, 4, generator=generator) * 20 + torch.tensor([2.0, 2.0, 40.0, 40.0])
        rows = torch.zeros(1, NUM_TOKENS)
        rows[0, 1 + number % 4] = 1
        if number % GROUP >= GROUP // 2:
            boxes, rows = boxes[:0], rows[:0]
        ids = torch.randint(5, 60, (NUM_TOKENS,), generator=generator)
        return {
            "pixels": pixels,
            "ids": ids,
            "labels": {"boxes": boxes, "positive_map": rows},
            "name": f"image-{number}",
        }


def collate(samples: list[dict]) -> dict:
    return {
        "pixel_values": torch.stack([sample["pixels"] for sample in samples]),
        "input_ids": torch.stack([sample["ids"] for sample in samples]),
        "labels": [sample["labels"] for sample in samples],
        "sample_ids": [sample["name"] for sample in samples],
    }


class NoProcessor:
    """Stands in for the processor that a run saves beside its model."""

    def save_pretrained(self, directory: Path) -> None: ...


def main() -> None:
    output, *overrides = sys.argv[1:]
    if "NO_ONEDNN" in os.environ:
        torch.backends.mkldnn.set_flags(False)
    if "WRAP_ONLY" in os.environ:
        torch.compiler.set_stance("force_eager")
    recipe = load_recipe(
        None,
        [
            f"run.output_dir={output}",
            f"data.batch_size={GROUP}",
            "schedule.max_steps=6",
            "schedule.warmup_steps=0",
            "optimizer.lr=1e-3",
            "run.checkpoint_every=2",
            "run.log_every=1",
            "run.trackers=[]",
            *overrides,
        ],
    )
    set_seed(recipe.run.seed)
    config = random_config()
    if "NO_DROPOUT" in os.environ:
        config.fusion_dropout = config.dropblock_prob = config.backbone_config.drop_path_rate = 0.0
        config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    model = GlipForGrounding(config)

    def make_batches(accelerator: Accelerator) -> Batches:
        processes = accelerator.num_processes
        size = per_process(recipe.data.batch_size, recipe.run.gradient_accumulation, processes)
        sampler = SequentialBatchSampler(size, rank=accelerator.process_index, world_size=processes)
        return Batches(RandomImages(), sampler, collate, int(os.environ.get("WORKERS", 0)))

    run = Run(recipe, model, NoProcessor(), make_batches)
    update, steps = run._update, []

    def recorded(batches: Iterator[dict]) -> tuple[dict[str, float], int]:
        if "STRAY" in os.environ:
            torch.rand(1)
        breaks = int(os.environ.get("BREAK_AT", -1)) == run.progress.step
        parameter = next(parameter for parameter in model.parameters() if parameter.requires_grad)
        hook = parameter.register_hook(lambda gradient: gradient * torch.inf) if breaks else None
        losses, count = update(batches)
        if hook:
            hook.remove()
        steps.append(losses)
        return losses, count

    run._update = recorded
    run.train()
    (Path(output) / f"losses_{run.accelerator.process_index}.json").write_text(json.dumps(steps))
    if run.accelerator.is_main_process:
        torch.save(
            {"model": run.unwrapped.state_dict(), "average": run.average and run.average.average},
            Path(output) / f"end_{run.progress.step}.pt",
        )


if __name__ == "__main__":
    leave(run_program("run_worker", main))
