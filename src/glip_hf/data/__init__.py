# Copyright 2026 The glip_hf authors. MIT licence.
"""Training data: readers for the original formats, captions from class names, transforms, batches.

    source -> Record -> SampleMaker (transform, caption, tokens) -> GroundingCollator -> GlipForGrounding(**batch)

Needs the extra `train` (`datasets`, `pyyaml`), which is imported where it is used. See `docs/data.md`.
"""

from .broken import BrokenImages, TooManyBrokenImages
from .check import KINDS, DataReport, check_data
from .collate import GroundingCollator
from .columns import Problem
from .dataset import GroundingDataset, Mixture, SampleMaker, build_mixture
from .records import ImageRef, Record
from .samplers import GroupedBatchSampler, SequentialBatchSampler, aspect_groups
from .sampling import DetectionCaptions, NegativeSampling
from .sources import CATALOGUE, READERS, HubColumns, HubStream, Source, build_source
from .streaming import StreamingBatches
from .transforms import ImageTransform

__all__ = [
    "CATALOGUE",
    "KINDS",
    "READERS",
    "BrokenImages",
    "DataReport",
    "DetectionCaptions",
    "GroundingCollator",
    "GroundingDataset",
    "GroupedBatchSampler",
    "HubColumns",
    "HubStream",
    "ImageRef",
    "ImageTransform",
    "Mixture",
    "NegativeSampling",
    "Problem",
    "Record",
    "SampleMaker",
    "SequentialBatchSampler",
    "Source",
    "StreamingBatches",
    "TooManyBrokenImages",
    "aspect_groups",
    "build_mixture",
    "build_source",
    "check_data",
]
