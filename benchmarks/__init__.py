# Copyright 2026 The glip_hf authors. MIT licence.
"""Speed and quality measured; see README.md. A package so that scripts find what they share without this folder on the
path, where `kernels.py` would hide the package of that name from Transformers."""
