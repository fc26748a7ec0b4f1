# Copyright 2026 The glip_hf authors. MIT licence.
"""Ground class names or a caption in an image, in a few lines.

Cost:    seconds on a CPU (GLIP-T at 800 x 1066 pixels: see benchmarks/README.md), no GPU needed.
Command: python examples/ground_photo.py --model DIR --image photo.jpg --text cat "remote control"
         python examples/ground_photo.py       # without a model: the shipped one, which knows generated scenes
Result:  the detections on stdout and an annotated image.
"""

import argparse
from pathlib import Path

from glip_hf._program import leave, run_program
from glip_hf.cli.common import model_name


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=model_name, default="demo", help="converted model: a directory or a Hub id (%(default)s)")
    add("--image", "--photo", help="an image (default: a generated scene)")
    add("--text", nargs="+", help="class names, or one text: a list of them or a caption (default: a caption)")
    add("--threshold", type=float, default=0.4, help="lowest score (%(default)s)")
    add("--save", default="out/grounded.png", help="annotated image (%(default)s)")
    return parser.parse_args()


def ground(arguments: argparse.Namespace) -> None:
    # Not above: --help answers at once.
    import torch

    from glip_hf import GlipForGrounding, GlipProcessor
    from glip_hf.conversion import model_directory
    from glip_hf.demo import DEMO_CAPTION, DEMO_IMAGE
    from glip_hf.image_processing_pil_glip import load_image
    from glip_hf.visualize import draw_detections

    directory = model_directory(arguments.model)
    model = GlipForGrounding.from_pretrained(directory).eval()
    processor = GlipProcessor.from_pretrained(directory)

    image = load_image(arguments.image or DEMO_IMAGE)
    text = arguments.text or [DEMO_CAPTION]
    # One text alone is read as a caption, or as a list of class names: "cat. remote control."
    inputs = processor(images=image, text=text[0] if len(text) == 1 else text, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    result = processor.post_process_grounded_object_detection(outputs, inputs, threshold=arguments.threshold)[0]

    for name, score, box in zip(result["text_labels"], result["scores"], result["boxes"]):
        print(f"{score:.2f}  {name:20}  {[round(v, 1) for v in box.tolist()]}")
    save = Path(arguments.save)
    save.parent.mkdir(parents=True, exist_ok=True)
    draw_detections(image, result).save(save)
    print(f"-> {save}")


if __name__ == "__main__":
    arguments = parse_arguments()
    leave(run_program("ground_photo", lambda: ground(arguments)))
