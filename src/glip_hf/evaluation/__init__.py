# Copyright 2026 The glip_hf authors. MIT licence.
"""Evaluation like the papers: COCO, LVIS, Flickr30k Entities, RefCOCO, ODinW. See docs/evaluation.md."""

from .base import Evaluator
from .coco import CocoEvaluator
from .flickr import FlickrEvaluator
from .lvis import LvisEvaluator
from .refcoco import RefCocoEvaluator

__all__ = ["CocoEvaluator", "Evaluator", "FlickrEvaluator", "LvisEvaluator", "RefCocoEvaluator"]
