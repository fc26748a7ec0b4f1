"""Fine-tune GLIP on your own COCO file.

Cost:    not measured on a GPU yet. With the package's tiny model 900 steps take minutes on 2 CPU cores. --mode prompt,
         linear and head keep no optimiser state for what they freeze.
Command: accelerate launch examples/finetune.py --model user/glip-tiny --train ann.json --images dir
             [--validation val.json --validation-images dir] [--mode full|linear|head|prompt|lora] [--shots 10]
             [--output-dir out/finetune] [--max-steps 500] [--lr 1e-4] [--set key=value ...]
Result:  OUTPUT_DIR/final, the weights that did best on validation: a model that from_pretrained loads; with --mode
         prompt a table of some hundred kilobytes for model.load_prompt_table, with --mode lora an adapter.

The file's categories are the names that are looked for, so call them what a person would. Pictures without boxes are
welcome: they teach what is not there.
"""

import argparse
import sys

from accelerate.utils import set_seed

from glip_hf import GlipProcessor
from glip_hf.training.finetuning import (
    TuningRun,
    Validation,
    load_tuning_data,
    tuning_batches,
    tuning_recipe,
)
from glip_hf.training.recipe import assign
from glip_hf.training.start import start_model
from glip_hf.training.tuning import MODES, tune


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", required=True, help="GLIP to start from: a directory or a Hub id")
    parser.add_argument("--train", required=True, help="COCO file of the training pictures")
    parser.add_argument("--images", required=True, help="their folder")
    parser.add_argument("--validation", help="COCO file; without one some training pictures are held out")
    parser.add_argument("--validation-images", help="their folder, if it is another")
    parser.add_argument("--mode", choices=MODES, default="full", help="what is trained")
    parser.add_argument("--shots", type=int, help="pictures a class to train on; default all")
    parser.add_argument("--prompt-length", type=int, help="rows of the prompt table; default: a full caption")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", default="out/finetune")
    parser.add_argument("--max-steps", type=int, help="default: 200 epochs with --shots, else 24")
    parser.add_argument("--lr", type=float, help="default: that of the mode")
    parser.add_argument("--resume", help="'latest' or a checkpoint directory")
    parser.add_argument("--wandb", action="store_true", help="log to Weights & Biases in place of TensorBoard")
    parser.add_argument("--push-to-hub", help="repository of the result, user/name")
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="e.g. data.batch_size=8"
    )
    return parser.parse_args()


def overrides(arguments: argparse.Namespace) -> list[str]:
    named = {
        "run.output_dir": arguments.output_dir,
        "run.seed": arguments.seed,
        "schedule.max_steps": arguments.max_steps,
        "optimizer.lr": arguments.lr,
        "run.resume": arguments.resume,
        "run.push_to_hub": arguments.push_to_hub,
    }
    trackers = ["run.trackers=[wandb]"] if arguments.wandb else []
    return [assign(key, value) for key, value in named.items() if value is not None] + trackers + arguments.set


def main() -> int:
    arguments = parse_arguments()
    set_seed(arguments.seed)
    try:
        data = load_tuning_data(
            arguments.train,
            arguments.images,
            arguments.validation,
            arguments.validation_images,
            arguments.shots,
            arguments.seed,
        )
        recipe = tuning_recipe(
            arguments.model,
            arguments.mode,
            data,
            GlipProcessor.from_pretrained(arguments.model),
            arguments.shots,
            overrides(arguments),
        )
        model, processor = start_model(recipe.model)
        names = tune(model, recipe.tuning.mode, prompt_length=arguments.prompt_length)
        run = TuningRun(
            recipe,
            model,
            processor,
            lambda accelerator: tuning_batches(data.train, processor, recipe, model, accelerator),
            Validation(data, processor, recipe.data.batch_size, recipe.data.on_broken),
        )
    except (ImportError, OSError, ValueError) as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 2
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    run.accelerator.print(f"{data.note}; {recipe.tuning.mode}: {count:,} numbers in {len(names)} tensors are trained")
    run.accelerator.print(run.train())
    return 0


if __name__ == "__main__":
    sys.exit(main())
