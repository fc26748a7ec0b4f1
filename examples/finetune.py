"""Fine-tune GLIP on your own images: COCO, YOLO, Pascal VOC or ODVG.

Cost:    not measured on a GPU yet. With the package's tiny model 900 steps take minutes on 2 CPU cores. --mode prompt,
         linear and head keep no optimiser state for frozen parameters.
Command: accelerate launch examples/finetune.py --model user/glip-tiny
             --train ann.json|data.yaml|rows.jsonl|voc_folder [--images dir] [--validation ... --validation-images dir]
             [--mode full|linear|head|prompt|lora] [--shots 10] [--output-dir out/finetune] [--max-steps 500]
             [--lr 1e-4] [--size 640] [--replay SOURCE[:share] ...] [--set key=value ...]
Result:  OUTPUT_DIR/final, the weights of the best validation: a model that from_pretrained loads; with --mode prompt a
         table of some hundred kilobytes for model.load_prompt_table, with --mode lora an adapter. The class names are
         saved with it: glip ground photo.jpg --model OUTPUT_DIR/final

The data's classes are the class names in the caption, so use names that people would use. Images without boxes are
useful: they serve as negatives.
"""

import argparse
import sys

from glip_hf._program import explain, leave, run_program
from glip_hf.cli.common import model_name, positive

MODES = ("full", "head", "linear", "prompt", "lora")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument  # a `dest` with a dot is the key of the recipe that an option overrides
    add("--model", required=True, type=model_name, metavar="DIR|HUB", help="GLIP to start from; demo: the shipped one")
    data = "COCO file, YOLO data.yaml, ODVG .jsonl or Pascal VOC folder; of several, classes match by name"
    add("--train", required=True, nargs="+", metavar="PATH", help=data)
    folder = "their folder (one, or one each); default: what the format says, or beside the file"
    add("--images", nargs="+", metavar="DIR", help=folder)
    validation = "the same; default: the split val of --train, else some training images are held out"
    add("--validation", nargs="+", metavar="PATH", help=validation)
    add("--validation-images", nargs="+", metavar="DIR", help="their folder, if it is another")
    add("--allow-outside", action="store_true", help="read images that the files name outside these folders")
    broken = "leave out images that cannot be read, or stop; missing images always stop it"
    add("--on-broken", dest="data.on_broken", choices=("skip", "fail"), default="skip", help=f"{broken} (%(default)s)")
    add("--mode", choices=MODES, default="full", help="which parameters are trained (%(default)s)")
    size = "shortest side of images in pixels, saved with the result; default: that of the model's processor, or with "
    size += "--mode full and a small model that of the images, up to 320"
    replay = "mix in other data, so that the model keeps what it knew: scenes, a known data set, a recipe or source in "
    replay += "YAML, labelled Parquet shards or annotations; the share of training images (0.25) after a colon"
    add("--replay", nargs="+", default=[], metavar="SOURCE[:SHARE]", help=replay)
    add("--size", dest="model.image_size", type=positive, metavar="PIXELS", help=size)
    add("--shots", type=positive, metavar="N", help="images per class to train on; default all")
    add("--prompt-length", type=positive, metavar="N", help="rows of the prompt table; default: a full caption")
    add(
        "--seed", dest="run.seed", type=int, default=0, metavar="N", help="of split, sampling and dropout (%(default)s)"
    )
    add(
        "--output-dir",
        dest="run.output_dir",
        default="out/finetune",
        metavar="DIR",
        help="checkpoints and result (%(default)s)",
    )
    steps = "default: 200 epochs with --shots, else 24, or more for a small model at a larger size"
    add("--max-steps", dest="schedule.max_steps", type=positive, metavar="N", help=steps)
    add("--lr", dest="optimizer.lr", type=float, metavar="LR", help="default: that of the mode")
    add("--resume", dest="run.resume", metavar="PATH", help="'latest' or a checkpoint directory")
    fresh = "delete the run that the output directory holds"
    add("--overwrite", dest="run.overwrite", action="store_const", const=True, help=fresh)
    damage = "share of a file's boxes that may be damaged and are left out (default 0.5); beyond nothing starts"
    add("--allow-damage", dest="data.allow_damage", type=float, metavar="SHARE", help=damage)
    wandb = "log to Weights & Biases in place of TensorBoard"
    add("--wandb", dest="run.trackers", action="store_const", const=["wandb"], help=wandb)
    add("--push-to-hub", dest="run.push_to_hub", metavar="USER/NAME", help="repository of the result")
    add("--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="e.g. data.batch_size=8")
    return parser.parse_args()


def train(arguments: argparse.Namespace) -> int:
    # Not above: --help answers at once, and without the extras.
    from accelerate.utils import set_seed

    from glip_hf import GlipProcessor
    from glip_hf.conversion import whole_model
    from glip_hf.training.finetuning import TuningRun, Validation, load_tuning_data, tuning_batches, tuning_recipe
    from glip_hf.training.recipe import assign, load_recipe
    from glip_hf.training.replay import load_replay
    from glip_hf.training.start import start_model
    from glip_hf.training.tuning import tune

    overrides = {key: value for key, value in vars(arguments).items() if "." in key and value is not None}
    given = [*(assign(key, value) for key, value in overrides.items()), *arguments.set]
    starts = ("data.allow_damage=", "data.on_broken=", "run.seed=")
    try:
        early = load_recipe(None, [override for override in given if override.startswith(starts)])
        set_seed(early.run.seed)
        reading = early.data
        data = load_tuning_data(
            arguments.train,
            arguments.images,
            arguments.validation,
            arguments.validation_images,
            arguments.shots,
            early.run.seed,
            allow_damage=reading.allow_damage,
            on_broken=reading.on_broken,
            allow_outside=arguments.allow_outside,
        )
        damage, broken = reading.allow_damage, reading.on_broken
        data.replay = load_replay(arguments.replay, len(data.train), damage, broken, held_out=data.validation)
        recipe = tuning_recipe(
            arguments.model,
            arguments.mode,
            data,
            GlipProcessor.from_pretrained(whole_model(arguments.model)),
            arguments.shots,
            given,
        )
        model, processor = start_model(recipe.model)
        processor.class_names = data.class_names
        names = tune(model, recipe.tuning.mode, prompt_length=arguments.prompt_length)
        run = TuningRun(
            recipe,
            model,
            processor,
            lambda accelerator: tuning_batches(data.train, processor, recipe, model, accelerator, data.replay),
            Validation(data, processor, recipe.data.batch_size, recipe.data.on_broken),
        )
    except (ImportError, OSError, ValueError) as error:
        print(f"finetune: {explain(error)}", file=sys.stderr)
        return 2
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    for one in data.replay:
        run.accelerator.print(
            f"replaying {round(one.copies * len(one.source)):,} images of {one.source.name} per epoch"
        )
    size = f"at {min(recipe.data.short_sides)} to {max(recipe.data.short_sides)} pixels"
    counts = f"{count:,} parameters in {len(names)} tensors"
    run.accelerator.print(f"{data.note}; {recipe.tuning.mode}: training {counts} {size}")
    run.accelerator.print(run.train())
    return 0


def main() -> int:
    arguments = parse_arguments()
    return run_program("finetune", lambda: train(arguments))


if __name__ == "__main__":
    leave(main())
