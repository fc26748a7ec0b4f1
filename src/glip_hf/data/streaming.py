# Copyright 2026 The glip_hf authors. MIT licence.
"""Training batches from a data set that is streamed and never stored whole.

There is no index to draw from, so the randomness of a sample comes from (seed, epoch, checksum of the image): again the
same for any number of processes and workers. Which samples share a batch does depend on these.
"""

import itertools
import zlib
from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from .._extras import require
from .broken import BrokenImages, OnError
from .collate import GroundingCollator
from .dataset import SampleMaker
from .loading import read_batches
from .records import Record
from .sources.hub import HubStream


class StreamingBatches(IterableDataset):
    """Endless batches of a stream; `loader()` reads them with workers.

    Every process reads its own part of the stream, every worker its own shards of that. A batch holds images of one
    aspect group (higher than wide or not). Every epoch has another order.

    Args:
        stream: what to read.
        maker: how samples are made.
        collator: how they become a batch; its `info` says what `GroundingDataset`'s does, without `index`.
        batch_size: samples per batch and process.
        seed: of the run.
        rank, world_size: this process, and the number of processes.
        shuffle_buffer: size of the shuffle buffer, in records (the order of shards is shuffled too); 0 keeps the order.
        on_error: "raise" fails at an image that cannot be read, "replace" puts the next one of its batch in its place.
        max_replaced: how many may be replaced, over all workers of this process; those of unknown size, whose header
            cannot be read, count too.
        skip_batches: batches of this process that an earlier run used: they are skipped without decoding images, which
            is exact with the same number of workers. (`IterableDataset.state_dict` is not needed: a resumed run knows
            the number of its step and nothing else.)
    """

    def __init__(
        self,
        stream: HubStream,
        maker: SampleMaker,
        collator: GroundingCollator,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle_buffer: int = 1000,
        on_error: OnError = "replace",
        max_replaced: int = 100,
        skip_batches: int = 0,
    ) -> None:
        self.stream, self.maker, self.collator, self.batch_size = stream, maker, collator, batch_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.shuffle_buffer, self.skip_batches = shuffle_buffer, skip_batches
        self.broken = BrokenImages(on_error, max_replaced)
        stream.on_broken = self.broken.report
        maker.prepare(stream)

    @property
    def num_replaced(self) -> int:
        """Images replaced so far."""
        return self.broken.count

    @property
    def num_shards(self) -> int:
        """Of the stream, for this process: the most workers that can read it."""
        return self._shard(0).num_shards

    def loader(self, num_workers: int = 0, **options: Any) -> Iterator[dict[str, Any]]:
        """The batches, read by so many workers; `options` go to `DataLoader`.

        Raises:
            ValueError: if this process has fewer shards than workers.
        """
        self._shard(0, num_workers)
        return read_batches(self, num_workers, batch_size=None, **options)

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # Loaders take batches from their workers in turn, so every worker knows which of them were its own. They
        # begin with worker 0: where that one's turn was over already, None stands in for what it gave before.
        skip = len(range(number, self.skip_batches, workers))
        if number < self.skip_batches % workers:
            yield None
        copies = 1
        for epoch, records in itertools.islice(self._batches(), skip, None):
            batch = self._collate(epoch, records)
            if batch is None:
                copies += 1
                continue
            # A batch without an image is replaced by the next: both count, as they do for a resumed run.
            yield from [batch] * copies
            copies = 1

    def _batches(self) -> Iterator[tuple[int, list[Record]]]:
        waiting: dict[bool, list[Record]] = {False: [], True: []}
        for epoch in itertools.count():
            empty = True
            for record in self.stream.records(self._shard(epoch)):
                empty = False
                group = waiting[record.height >= record.width]
                group.append(record)
                if len(group) == self.batch_size:
                    yield epoch, list(group)
                    group.clear()
            if empty:
                raise ValueError(
                    f"{self.stream.name}: nothing usable came from the stream for process {self.rank} of "
                    f"{self.world_size}: use fewer processes or workers than it has shards, or check its columns."
                )

    def _shard(self, epoch: int, num_workers: int = 0) -> Any:
        """What this process reads in an epoch. (`datasets` gives each worker its share of it.)"""
        dataset = self.stream.dataset
        if self.shuffle_buffer:
            dataset = dataset.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer)
        dataset = require("datasets.distributed").split_dataset_by_node(dataset, self.rank, self.world_size)
        worker = get_worker_info()
        num_workers = worker.num_workers if worker else num_workers
        if num_workers > dataset.num_shards:
            raise ValueError(
                f"{self.stream.name} has {dataset.num_shards} shards for this process, not enough for {num_workers} "
                "workers: use num_workers no larger than that."
            )
        dataset.set_epoch(epoch)
        return dataset

    def _collate(self, epoch: int, records: list[Record]) -> dict[str, Any] | None:
        """The batch of these records; None if no image of it can be read."""
        samples: list[dict[str, Any] | None] = []
        failed: list[str] = []
        for record in records:
            info = {"source": record.source, "image_id": record.image_id, "image": str(record.image)}
            try:
                checksum = zlib.crc32(record.image.encoded())
                sample = self.maker.make(record, (self.seed, epoch, checksum))
                samples.append(sample | {"info": info | {"epoch": epoch, "replaced": []}})
            except (OSError, ValueError) as error:
                failed.append(f"{self.stream.name}, image {record.image_id!r}: {error}")
                self.broken.report(failed[-1], error)
                samples.append(None)
        good = [sample for sample in samples if sample is not None]
        if not good:
            return None
        if failed:
            good[0]["info"]["replaced"] = failed
        following = iter(good * len(samples))
        return self.collator([sample or next(following) for sample in samples])
