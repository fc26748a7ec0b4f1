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
from glip_hf.training.batches import recipe_batches
from glip_hf.training.loop import Run
from glip_hf.training.recipe import assign, load_recipe
from glip_hf.training.start import start_model
from glip_hf.training.tuning import tune

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
    parser.add_argument("--wandb", action="store_true", help="log to Weights & Biases in place of TensorBoard")
    parser.add_argument("--push-to-hub", help="repository of the finished model, user/name")
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="e.g. optimizer.lr=5e-5"
    )
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
    trackers = ["run.trackers=[wandb]"] if arguments.wandb else []
    return [assign(key, value) for key, value in named.items() if value is not None] + trackers + arguments.set


def main() -> int:
    arguments = parse_arguments()
    try:
        recipe = load_recipe(arguments.config, overrides(arguments))
        set_seed(recipe.run.seed)
        model, processor = start_model(recipe.model)
        tune(model, recipe.tuning.mode)

        def make_batches(accelerator):
            rank, processes = accelerator.process_index, accelerator.num_processes
            return recipe_batches(recipe, processor, model.config, rank, processes)

        def evaluate(model):
            metrics = evaluate_scenes(model, processor, num_scenes=64)
            return {"AP": metrics["ap"], **metrics}

        measured = recipe.run.evaluate_every and not recipe.data.sources
        run = Run(recipe, model, processor, make_batches, evaluate if measured else None)
    except (ImportError, OSError, ValueError) as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return 2
    run.accelerator.print(run.train())
    return 0


if __name__ == "__main__":
    sys.exit(main())
