# Copyright 2026 The glip_hf authors. MIT licence.
"""Benchmarks of speed and quality; see README.md. A package, so that scripts import what they share without this folder
on `sys.path`, where `kernels.py` would shadow the package `kernels` that Transformers looks for."""
