"""Label images with captions by a teacher: records that pre-training reads (GLIP's self-training).

Cost:    one forward pass of the teacher per pair. Every process owns whole shards, so the same command serves a laptop
         and a cluster: accelerate knows the processes and machines.
Command: accelerate launch examples/label_captions.py --teacher DIR_OR_ID --input 'pairs/*.parquet' --output labelled
             [--threshold 0.5] [--batch-size 8] [--format parquet|tar] [--caption-column NAME]
         Shards are Parquet files or WebDataset tars, local or on the Hub: --input 'hf://datasets/user/name/*.parquet'.
Result:  shards of images, captions and boxes, each with its counts beside it; the last line of output is the entry for
         `data.sources` of a recipe. A second run resumes where the first stopped; with another teacher or other
         options it is refused.
"""

import argparse
import sys

from glip_hf._program import explain, leave, run_program
from glip_hf.cli.common import add_label_options, model_name


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--teacher", required=True, type=model_name, help="model, adapter or prompt table: directory or Hub id"
    )
    parser.add_argument("--output", required=True, help="folder of the labelled shards, local or hf://")
    add_label_options(parser)
    return parser.parse_args()


def label(arguments: argparse.Namespace) -> int:
    # Not above: --help answers at once, and without the extras.
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    from glip_hf.cli.common import CliError, load_model
    from glip_hf.data.shards import list_shards, shard_format
    from glip_hf.evaluation.distributed import broadcast
    from glip_hf.runs import on_main
    from glip_hf.training.self_training import CaptionLabeller, LabelOptions, claim_labels, label_shards, summary

    # Explicitly: several processes that find no accelerator would otherwise not form a group.
    state = PartialState(cpu=not torch.accelerator.is_available())
    try:
        shards = list_shards(arguments.input)
        options = LabelOptions(arguments.threshold, arguments.nms_threshold, batch_size=arguments.batch_size)
        teacher = load_model(arguments.teacher, str(state.device), arguments.precision)
        labeller = CaptionLabeller(*teacher, options)
        output, wanted = arguments.output.rstrip("/"), (arguments.format, arguments.caption_column)
        lock = on_main(
            lambda: claim_labels(labeller, output, *wanted, arguments.overwrite), state.is_main_process, broadcast
        )
        processes = state.process_index, state.num_processes
        counts = label_shards(labeller, shards, output, arguments.format, *processes, arguments.caption_column)
    except (CliError, ImportError, OSError, ValueError) as error:
        print(f"label_captions: {explain(error)}", file=sys.stderr)
        return 2
    if lock is not None:
        lock.release()
    everyone = sum(gather_object([counts]), start=type(counts)())
    state.print(summary(everyone, output, arguments.format or shard_format(shards[0])))
    return 0


def main() -> int:
    arguments = parse_arguments()
    return run_program("label_captions", lambda: label(arguments))


if __name__ == "__main__":
    leave(main())
