# Copyright 2026 The glip_hf authors. MIT licence.
"""Evaluate GLIP as in the papers: COCO, LVIS, Flickr30k Entities, RefCOCO, ODinW. The same as `glip evaluate`.

Cost: with GLIP-T one forward pass of Swin per image and one of the head per caption: 5,000 passes of the head for COCO,
155,000 for LVIS minival (31 captions per image). Needs: pip install '.[eval]' (and accelerate for several
processes).

    accelerate launch --num_processes 4 examples/evaluate.py lvis --model user/glip-tiny-goldg \
        --annotations lvis_v1_minival_inserted_image_name.json --images coco --chunk-size 40 --max-detections 300
    accelerate launch examples/evaluate.py coco --model user/glip-tiny-goldg \
        --annotations instances_val2017.json --images coco/val2017 --score-agg mean
    python examples/evaluate.py flickr --model user/glip-tiny-goldg --protocol any \
        --annotations final_flickr_separateGT_test.json --images flickr30k_images
    python examples/evaluate.py refcoco --model user/glip-tiny-goldg \
        --annotations finetune_refcoco_val.json --images coco/train2014
    python examples/evaluate.py odinw --model user/glip-tiny-goldg --config configs/odinw_13 --data-root DATASET

Expected with the released weights (published, zero-shot): COCO AP 46.7 (GLIP-T C), LVIS minival APr 17.7 (C) and
20.1 (T), ODinW-13 mean AP 44.4 (C). docs/evaluation.md describes the output folder.
"""

import sys

from glip_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
