# Copyright 2026 The glip_hf authors. MIT licence.
"""The page of `glip demo` as a Hugging Face Space; README.md tells how it gets there."""

import os

from glip_hf import GlipForGrounding, GlipProcessor
from glip_hf.demo import DEMO_MODEL
from glip_hf.demo_page import build_page

source = os.environ.get("GLIP_MODEL") or str(DEMO_MODEL)
model = GlipForGrounding.from_pretrained(source)
demo = build_page(model, GlipProcessor.from_pretrained(source), scenes=source == str(DEMO_MODEL))

if __name__ == "__main__":
    demo.launch(max_file_size="20mb")
