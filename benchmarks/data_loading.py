# Copyright 2026 The glip_hf authors. MIT licence.
"""Start-up time and memory of reading a large COCO file: converted once and memory-mapped, or parsed by each worker.

    python benchmarks/data_loading.py --images 1000000 --workers 4 --baseline 1   # 5 GiB of memory, 1 GiB of disk

Prints one line per step. *Own* memory is private to a process (anonymous pages); *mapped* memory is pages of files
(Arrow, libraries), which all processes share. With `--baseline N`, N workers parse the JSON with the standard library
and group it by image, as `pycocotools` does.
"""

import sys
from pathlib import Path

# the parent folder in place of this one: see __init__.py
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import multiprocessing
import random
import resource
import time

MEGA = 1 << 20


def memory() -> tuple[float, float]:
    """Own and mapped resident memory of this process, MiB."""
    fields = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        fields[name] = int(value.split()[0]) / 1024
    return fields["Anonymous"], fields["Rss"] - fields["Anonymous"]


def generate(path: Path, images: int, boxes: int) -> None:
    """A COCO file of `images` images with `boxes` boxes per image on average, without segmentation."""
    rng = random.Random(0)
    with open(path, "w") as file:
        file.write('{"info": {}, "images": [')
        for i in range(images):
            entry = {"id": i, "file_name": f"{i % 1000:03d}/{i:012d}.jpg", "width": 640, "height": 480}
            file.write((", " if i else "") + json.dumps(entry))
        file.write('], "annotations": [')
        for i in range(images * boxes):
            box = [round(rng.uniform(0, 300), 2) for _ in range(4)]
            entry = {"id": i, "image_id": rng.randrange(images), "category_id": rng.randrange(1, 81), "iscrowd": 0}
            file.write((", " if i else "") + json.dumps(entry | {"bbox": box, "area": round(box[2] * box[3], 2)}))
        categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
        file.write('], "categories": ' + json.dumps(categories) + "}")


def work(number: int, annotations: str, cache: str, baseline: bool, reads: int, queue: multiprocessing.Queue) -> None:
    """One worker: opens the data set, reads records at random, reports."""
    begun = time.perf_counter()
    if baseline:
        content = json.loads(Path(annotations).read_text())
        by_image: dict = {}
        for annotation in content["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        length = len(content["images"])
    else:
        from glip_hf.data.sources import read_coco

        imported = time.perf_counter()
        source = read_coco(annotations, "/nowhere", cache_dir=cache)
        begun, length = imported, len(source)
    ready = time.perf_counter() - begun
    begun, rng = time.perf_counter(), random.Random(number)
    for _ in range(reads):
        index = rng.randrange(length)
        _ = by_image.get(index) if baseline else source[index]
    reading = (time.perf_counter() - begun) / max(reads, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    queue.put((number, ready, reading, *memory(), peak))


def run(count: int, arguments: argparse.Namespace, annotations: Path, baseline: bool) -> None:
    """Start `count` workers at once and print what they report."""
    processes = multiprocessing.get_context("spawn")
    queue = processes.Queue()
    args = (str(annotations), str(arguments.folder / "cache"), baseline, arguments.reads, queue)
    workers = [processes.Process(target=work, args=(i, *args)) for i in range(count)]
    for worker in workers:
        worker.start()
    reports = sorted(queue.get() for _ in workers)
    for worker in workers:
        worker.join()
    for number, ready, reading, own, mapped, peak in reports:
        print(
            f"  worker {number}: ready after {ready:6.2f} s, {reading * 1e6:5.0f} us per record, "
            f"own memory {own:5.0f} MiB, mapped {mapped:5.0f} MiB, peak of both {peak:5.0f} MiB"
        )


def convert(annotations: str, cache: str, queue: multiprocessing.Queue) -> None:
    """Read the file in a process of its own."""
    from glip_hf.data.sources import read_coco

    before, begun, begun_cpu = memory()[0], time.perf_counter(), time.process_time()
    source = read_coco(annotations, "/nowhere", cache_dir=cache)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = sum(f.stat().st_size for f in Path(cache).rglob("*.arrow"))
    queue.put((len(source), seconds, cpu, before, peak, size / MEGA))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--boxes", type=int, default=5, help="per image, on average")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--reads", type=int, default=5000, help="records per worker, chosen at random")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/glip_data_benchmark"))
    parser.add_argument("--baseline", type=int, default=0, help="number of workers that parse the JSON, for comparison")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    annotations = arguments.folder / f"coco_{arguments.images}_{arguments.boxes}.json"
    if not annotations.is_file():
        begun = time.perf_counter()
        generate(annotations, arguments.images, arguments.boxes)
        print(f"generated in {time.perf_counter() - begun:.0f} s")
    print(f"{annotations}: {arguments.images:,} images, {annotations.stat().st_size / MEGA:,.0f} MiB")

    context = multiprocessing.get_context("spawn")
    for what in ("first reading (converts)", "second reading (finds the cache)"):
        queue = context.Queue()
        process = context.Process(target=convert, args=(str(annotations), str(arguments.folder / "cache"), queue))
        process.start()
        count, seconds, cpu, before, peak, size = queue.get()
        process.join()
        print(
            f"{what}: {count:,} records in {seconds:.2f} s (CPU {cpu:.2f} s), peak {peak:,.0f} MiB "
            f"({before:,.0f} MiB before, for the libraries), Arrow file {size:,.0f} MiB"
        )
    print(f"{arguments.workers} workers at once, memory-mapped:")
    run(arguments.workers, arguments, annotations, baseline=False)
    if arguments.baseline:
        print(f"{arguments.baseline} workers at once, each parsing the JSON:")
        run(arguments.baseline, arguments, annotations, baseline=True)


if __name__ == "__main__":
    main()
