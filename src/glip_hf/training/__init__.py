# Copyright 2026 The glip_hf authors. MIT licence.
"""Pre-training, fine-tuning and prompt tuning on Accelerate; needs the extra `train`."""

from .._extras import require

require("pydantic")  # recipes are its models
