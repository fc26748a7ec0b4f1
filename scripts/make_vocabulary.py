# Copyright 2026 The glip_hf authors. MIT licence.
"""Write the small WordPiece vocabulary that the package ships, for its model and the generated scenes.

    python scripts/make_vocabulary.py [OUT.txt]        # default: src/glip_hf/assets/vocab.txt

Whole words for the captions of our scenes, the README and the class names of COCO; letters and common pieces spell any
other English word. The list is our own. Append new words to WORDS: token ids are positions in the file, and the shipped
model depends on them. tests/data/test_scenes.py makes the vocabulary again and compares. The default recipe takes
tokenizer and `vocab_size` from src/glip_hf/assets/glip-scenes: change them there to train a model of more words.
"""

import argparse
from pathlib import Path

from glip_hf.data.scenes import vocabulary

DEFAULT_OUT = Path(__file__).resolve().parents[1] / "src/glip_hf/assets/vocab.txt"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
PIECES = """
s es ed ing er ly en al ic on an in or at it is us ar le ra re ri ro ru la li lo lu ma me mi mo
mu na ne ni no nu pa pe pi po ta te ti to tu sa se si so su ca ce ci co ch sh th ck st nd nt ng
ss ll tt ee oo ea ou ai ay ow ey ie ty ry my ny dy fy cy by gy ky py est ful ness less ment tion
sion able ible ish ive ous ant ent ance ence ist ism ity ize ise ate age ure ery ary ory ter der
per ber ger ker ler mer ner ver ser ward wise like man men ship hood land side line work way
time room house board ball book light
"""
SPOKEN_LATER = {"thing"}  # in captions of the scenes, but listed among WORDS
OTHER_THINGS = (
    "bell bells crown crowns hourglass hourglasses key keys"  # sorted among the words of the scenes, to keep the ids
)
WORDS = """
an the this that these those one two three four five six seven eight nine ten some many several
few each every no of on in at by to from with without and or near beside behind under over above
below between next left right front back top bottom inside outside around is are was has have
wearing holding sitting standing lying sleeping running walking playing looking riding eating
flying small large big little tiny huge long short tall round flat thin thick old young new
wooden metal plastic glass soft hard open closed empty full red orange yellow green blue purple
pink brown black white gray grey gold silver beige dark light bright pale striped dotted checked
plain spotted solid patterned circle square triangle star ring cross heart diamond hexagon
pentagon moon arrow cube cone sphere cylinder oval rectangle crescent bar box shape object thing
person people man men woman women boy girl child children baby bicycle car motorcycle airplane
bus train truck boat traffic fire hydrant stop sign parking meter bench bird cat dog horse sheep
cow elephant bear zebra giraffe animal fish duck mouse backpack umbrella handbag bag tie
suitcase frisbee ski skis snowboard sports ball kite baseball bat glove skateboard surfboard
tennis racket bottle wine cup fork knife spoon bowl plate banana apple sandwich broccoli carrot
hot pizza donut cake fruit food chair couch sofa potted plant bed dining table toilet tv laptop
remote control keyboard cell phone microwave oven toaster sink refrigerator book clock vase
scissors teddy hair drier dryer toothbrush cats dogs birds cars boxes balls books chairs lamp
window door wall floor ceiling curtain pillow blanket picture frame shelf cabinet stool desk
flower pot leaf tree grass bush garden house building roof street road sky cloud sun mountain
river lake sea beach sand snow field bridge fence head face eye eyes ear ears nose mouth hand
arm leg foot feet tail paw wing fur hat cap shirt coat jacket dress pants shoe shoes sock watch
glasses kitchen room bathroom bedroom office park city photo background image scene
"""


def make_vocabulary() -> list[str]:
    """The entries in order: special tokens, punctuation, characters, pieces, words of the scenes, other words."""
    entries = [*SPECIAL, *SIGNS, *CHARACTERS, *(f"##{c}" for c in CHARACTERS)]
    entries += [f"##{piece}" for piece in PIECES.split()]
    entries += [*sorted({*vocabulary(), *OTHER_THINGS.split()} - SPOKEN_LATER), *WORDS.split()]
    return list(dict.fromkeys(entries))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=DEFAULT_OUT)
    out = parser.parse_args().out
    out.write_text("\n".join(make_vocabulary()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
