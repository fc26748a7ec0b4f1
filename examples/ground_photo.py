# Copyright 2026 The glip_hf authors. MIT licence.
"""Ground class names or a caption in an image, in about thirty lines.

Cost:    seconds on a CPU (GLIP-T at 800 x 1066 pixels: see the table in README.md), no GPU needed.
Command: python examples/ground_photo.py --model DIR --photo photo.jpg --text cat "remote control"
         python examples/ground_photo.py       # without a model: the shipped one, which knows generated scenes
Result:  the detections on stdout and an annotated image.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from glip_hf import GlipForGrounding, GlipProcessor
from glip_hf.demo import DEMO_CAPTION, DEMO_IMAGE, DEMO_MODEL
from glip_hf.visualize import draw_detections

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default=str(DEMO_MODEL), help="converted model: a directory or a Hub id")
parser.add_argument("--photo", default=str(DEMO_IMAGE))
parser.add_argument("--text", nargs="+", default=[DEMO_CAPTION], help="class names, or one caption")
parser.add_argument("--threshold", type=float, default=0.4)
parser.add_argument("--save", default="out/grounded.png")
arguments = parser.parse_args()

model = GlipForGrounding.from_pretrained(arguments.model).eval()
processor = GlipProcessor.from_pretrained(arguments.model)

image = Image.open(arguments.photo)
is_caption = len(arguments.text) == 1 and len(arguments.text[0].split()) > 2
inputs = processor(images=image, text=arguments.text[0] if is_caption else arguments.text, return_tensors="pt")
with torch.inference_mode():
    outputs = model(**inputs)
result = processor.post_process_grounded_object_detection(outputs, inputs, threshold=arguments.threshold)[0]

for name, score, box in zip(result["text_labels"], result["scores"], result["boxes"]):
    print(f"{score:.2f}  {name:20}  {[round(v, 1) for v in box.tolist()]}")
save = Path(arguments.save)
save.parent.mkdir(parents=True, exist_ok=True)
draw_detections(image, result).save(save)
print(f"-> {save}")
