"""Pre-train GLIP.

Cost: without arguments 35 minutes on 2 CPU cores; the released recipe took 32 GPUs for days.
Command: accelerate launch examples/pretrain.py
         accelerate launch examples/pretrain.py --config examples/configs/glip_swin_t_o365_goldg.yaml --data-root DIR
Result: OUTPUT_DIR/final and final-ema, directories that GlipForGrounding.from_pretrained loads, with a card that states
        data, steps, hardware and figures.
"""

import argparse
import sys
from pathlib import Path

from accelerate.utils import set_seed

from glip_hf.data.scene_metrics import evaluate_scenes
from glip_hf.training.loop import Run
from glip_hf.training.recipe import RecipeError, load_recipe
from glip_hf.training.scene_batches import scene_batches
from glip_hf.training.start import start_model

DEFAULT = Path(__file__).parent / "configs" / "scenes.yaml"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--config", default=str(DEFAULT), help="a recipe, see examples/configs")
    parser.add_argument("--data-root", help="folder that the recipe's relative paths start at")
    parser.add_argument("--output-dir", help="checkpoints, logs and the finished model")
    parser.add_argument("--max-steps", type=int, help="optimiser steps")
    parser.add_argument("--checkpoint-every", type=int, help="steps between checkpoints")
    parser.add_argument("--resume", help="'latest' or a checkpoint directory")
    parser.add_argument("--push-to-hub", help="repository of the finished model, user/name")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. optimizer.lr=5e-5")
    return parser.parse_args()


def overrides(arguments: argparse.Namespace) -> list[str]:
    named = {
        "data.root": arguments.data_root,
        "run.output_dir": arguments.output_dir,
        "schedule.max_steps": arguments.max_steps,
        "run.checkpoint_every": arguments.checkpoint_every,
        "run.resume": arguments.resume,
        "run.push_to_hub": arguments.push_to_hub,
    }
    return [f"{key}={value}" for key, value in named.items() if value is not None] + arguments.set


def main() -> int:
    arguments = parse_arguments()
    try:
        recipe = load_recipe(arguments.config, overrides(arguments))
        set_seed(recipe.run.seed)
        model, processor = start_model(recipe.model)
    except (RecipeError, OSError) as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return 2

    if recipe.data.sources:
        from glip_hf.training.source_batches import source_batches

        def make_batches(accelerator):
            return source_batches(recipe, processor, accelerator.process_index, accelerator.num_processes)

        evaluate = None
    else:

        def make_batches(accelerator):
            return scene_batches(
                processor,
                recipe.data.batch_size,
                recipe.data.scenes,
                recipe.run.seed,
                recipe.run.gradient_accumulation,
                accelerator.process_index,
                accelerator.num_processes,
                recipe.data.workers,
            )

        def evaluate(model):
            metrics = evaluate_scenes(model, processor, num_scenes=64)
            return {"AP": metrics["ap"], **metrics}

        if not recipe.run.evaluate_every:
            evaluate = None

    final = Run(recipe, model, processor, make_batches, evaluate).train()
    print(final)
    return 0


if __name__ == "__main__":
    sys.exit(main())
