"""Label images with captions on a Ray cluster: the same rows as examples/label_captions.py writes on one machine.

Cost:    one forward pass of the teacher per pair. Ray Data gives actors, one model each, parts of shards.
Command: python examples/label_captions_ray.py --teacher DIR_OR_ID --input 's3://bucket/*.parquet' --output labelled
             [--num-gpus 8 | --num-actors 2 --cpus-per-actor 2] [--address auto] [the options of label_captions.py]
         Without a cluster (`ray start`; --address, or RAY_ADDRESS) Ray starts one on this machine. Folders of teacher,
         input and output lie on a disk that all machines share, or in buckets (pip install s3fs, gcsfs) or on the Hub.
Result:  shards of images, captions and boxes; what became of every pair in the Parquet files of OUTPUT/report; the last
         line of output is the entry for `data.sources` of a recipe. A lost actor changes nothing; a second run resumes
         where the first stopped; with another teacher or other options it is refused.
"""

import argparse
import logging
import os
import sys
from collections import Counter

from glip_hf._program import explain, leave, run_program
from glip_hf.cli.common import CliError, add_label_options, count, load_model, model_name, positive


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True, help="a GLIP: directory or Hub id")
    parser.add_argument("--output", required=True, help="folder of the labelled shards, local, in a bucket or hf://")
    add_label_options(parser)
    parser.add_argument("--num-gpus", type=count, default=0, metavar="N", help="actors with a GPU each (%(default)s)")
    parser.add_argument(
        "--num-actors", type=positive, default=1, metavar="N", help="actors without a GPU (%(default)s)"
    )
    parser.add_argument(
        "--cpus-per-actor", type=positive, default=1, metavar="N", help="CPUs and threads of each (%(default)s)"
    )
    part = "what an actor does, and may lose, at a time (%(default)s)"
    parser.add_argument("--pairs-per-part", type=positive, default=128, metavar="N", help=part)
    parser.add_argument("--address", help="of the cluster; default RAY_ADDRESS, or one on this machine")
    return parser.parse_args()


def label(arguments: argparse.Namespace) -> int:
    # Not above: --help answers at once, and without the extras.
    from tqdm.auto import tqdm

    from glip_hf import ray as glip_ray  # before Ray itself: it names the extra
    from glip_hf.data.shards import list_shards, shard_format
    from glip_hf.training.self_training import CaptionLabeller, LabelOptions, claim_labels, fingerprints, summary

    import ray  # isort: skip

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors end in one line of ours

    teacher, output = (os.path.abspath(p) if os.path.exists(p) else p for p in (arguments.teacher, arguments.output))
    size, wanted = arguments.pairs_per_part, (arguments.format, arguments.caption_column)
    try:
        output = output.rstrip("/") if "://" in output else os.path.abspath(output)
        shards = [shard if "://" in shard else os.path.abspath(shard) for shard in list_shards(arguments.input)]
        options = LabelOptions(arguments.threshold, arguments.nms_threshold, batch_size=arguments.batch_size)
        labeller = CaptionLabeller(*load_model(model_name(teacher), dtype=arguments.precision), options)
        lock = claim_labels(labeller, output, *wanted, arguments.overwrite, pairs_per_part=size)
        finished, expected = glip_ray.finished_parts(output), fingerprints(labeller.engine)
        del labeller  # the actors have their own
        ray.init(arguments.address, log_to_driver=False, ignore_reinit_error=True)
        actors, column = arguments.num_gpus or arguments.num_actors, arguments.caption_column
        if (gpus := ray.cluster_resources().get("GPU", 0)) < arguments.num_gpus:
            print(f"label_captions_ray: {gpus:.0f} of {actors} GPUs are there, waiting for the others", file=sys.stderr)
        parts = glip_ray.read_parts(shards, options.batch_size, size, column, finished, readers=2 * actors)
        reports = parts.map_batches(
            glip_ray.LabelParts,
            fn_constructor_args=[teacher, output, options, arguments.format, arguments.precision, expected],
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_gpus=int(arguments.num_gpus > 0),
            num_cpus=arguments.cpus_per_actor,
            batch_size=1,
            batch_format="pyarrow",
        )
        broken = 0
        with tqdm(unit="pair", desc="label") as progress:
            for batch in reports.iter_batches(batch_size=None, batch_format="pyarrow"):
                progress.update(len(batch))
                broken += batch["outcome"].to_pylist().count("broken_shard")
    except (CliError, ImportError, OSError, ValueError) as error:
        print(f"label_captions_ray: {explain(error) or error}", file=sys.stderr)
        return 2
    except ray.exceptions.RayError as error:
        print(f"label_captions_ray: {glip_ray.reason(error)}", file=sys.stderr)
        return 1
    if lock is not None:
        lock.release()
    counts = glip_ray.count_outcomes(output) | Counter(broken_shard=broken)
    print(summary(counts, output, arguments.format or shard_format(shards[0])))
    return 0


def main() -> int:
    arguments = parse_arguments()
    return run_program("label_captions_ray", lambda: label(arguments))


if __name__ == "__main__":
    leave(main())
