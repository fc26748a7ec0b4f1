"""Pre-train GLIP.

Cost: without arguments 35 minutes on 2 CPU cores; the released recipe took 32 GPUs for days.
Command: accelerate launch examples/pretrain.py
         accelerate launch examples/pretrain.py --config examples/configs/glip_swin_t_o365_goldg.yaml --data-root DIR
Result: OUTPUT_DIR/final and final-ema, directories that GlipForGrounding.from_pretrained loads, with a card that states
        data, steps, hardware and metrics.
"""

import argparse
import sys
from pathlib import Path

from glip_hf._program import explain, leave, run_program
from glip_hf.cli.common import positive

ALLOW_DAMAGE = "share of a source's boxes that may be damaged and are left out (default 0.5); beyond nothing starts"
DEFAULT = Path(__file__).parent / "configs" / "scenes.yaml"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument  # `dest` is the key of the recipe that an option overrides
    add("--config", default=str(DEFAULT), metavar="YAML", help="a recipe (default: examples/configs/scenes.yaml)")
    add("--data-root", dest="data.root", metavar="DIR", help="folder that relative paths are resolved against")
    add("--output-dir", dest="run.output_dir", metavar="DIR", help="checkpoints, logs and the finished model")
    add("--max-steps", dest="schedule.max_steps", type=positive, metavar="N", help="optimiser steps")
    add("--checkpoint-every", dest="run.checkpoint_every", type=int, metavar="N", help="steps between checkpoints")
    add("--resume", dest="run.resume", metavar="PATH", help="'latest' or a checkpoint directory")
    fresh = "delete the run that the output directory holds"
    add("--overwrite", dest="run.overwrite", action="store_const", const=True, help=fresh)
    add("--allow-damage", dest="data.allow_damage", type=float, metavar="SHARE", help=ALLOW_DAMAGE)
    wandb = "log to Weights & Biases in place of TensorBoard"
    add("--wandb", dest="run.trackers", action="store_const", const=["wandb"], help=wandb)
    add("--push-to-hub", dest="run.push_to_hub", metavar="USER/NAME", help="repository of the finished model")
    add("--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="e.g. optimizer.lr=5e-5")
    return parser.parse_args()


def train(arguments: argparse.Namespace) -> int:
    # Not above: --help answers at once, and without the extras.
    from accelerate.utils import set_seed

    from glip_hf.data.scene_metrics import evaluate_scenes
    from glip_hf.training.batches import recipe_batches, recipe_sources
    from glip_hf.training.loop import Run
    from glip_hf.training.recipe import assign, load_recipe
    from glip_hf.training.start import start_model
    from glip_hf.training.tuning import tune

    named = [assign(key, value) for key, value in vars(arguments).items() if "." in key and value is not None]
    try:
        recipe = load_recipe(arguments.config, [*named, *arguments.set])
        set_seed(recipe.run.seed)
        sources = recipe_sources(recipe)
        model, processor = start_model(recipe.model)
        tune(model, recipe.tuning.mode)

        def make_batches(accelerator):
            rank, processes = accelerator.process_index, accelerator.num_processes
            return recipe_batches(recipe, processor, model.config, rank, processes, sources)

        def evaluate(model):
            metrics = evaluate_scenes(model, processor, num_scenes=64)
            return {"AP": metrics["ap"], **metrics}

        has_metrics = recipe.run.evaluate_every and not recipe.data.sources
        run = Run(recipe, model, processor, make_batches, evaluate if has_metrics else None)
    except (ImportError, OSError, ValueError) as error:
        print(f"pretrain: {explain(error)}", file=sys.stderr)
        return 2
    run.accelerator.print(run.train())
    return 0


def main() -> int:
    arguments = parse_arguments()
    return run_program("pretrain", lambda: train(arguments))


if __name__ == "__main__":
    leave(main())
