"""Small images, COCO content and TSV files, whose colours tell their number."""

import io

from PIL import Image


def encoded_image(width, height, colour=(90, 120, 30), image_format="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, image_format)
    return buffer.getvalue()


def save_images(folder, sizes):
    """`0.png`, `1.png`, ... of these (width, height)."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (width, height) in enumerate(sizes):
        (folder / f"{number}.png").write_bytes(encoded_image(width, height, (number, 0, 0)))
    return folder


SIZES = [(40, 30), (30, 40), (64, 48), (50, 50), (36, 60), (80, 40)]


def coco_content(sizes=SIZES):
    """Images 0.. with sparse categories 3 cat, 7 dog, 90 car; image 3 has only a crowd, image 5 no box."""
    images = [{"id": 10 + i, "file_name": f"{i}.png", "width": w, "height": h} for i, (w, h) in enumerate(sizes)]
    boxes = [
        (10, 3, [2, 3, 10, 12], 0),
        (10, 90, [20, 5, 10.5, 20.25], 0),
        (11, 7, [1, 1, 20, 30], 0),
        (12, 3, [0, 0, 64, 48], 0),
        (12, 7, [5, 5, 1, 20], 0),  # one pixel wide: no extent
        (13, 7, [0, 0, 40, 40], 1),
        (14, 90, [4, 6, 20, 30], 0),
    ]
    annotations = [
        {"id": 100 + n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": crowd}
        for n, (i, c, b, crowd) in enumerate(boxes)
    ]
    categories = [{"id": 90, "name": "car"}, {"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    return {"images": images[::-1], "annotations": annotations, "categories": categories}


def write_tsv(path, rows, index=True):
    """Rows (tuples of text) as a TSV file, with the offsets of its lines beside it."""
    lines = ["\t".join(row) + "\n" for row in rows]
    path.write_text("".join(lines))
    if index:
        offsets, at = [], 0
        for line in lines:
            offsets.append(at)
            at += len(line.encode())
        path.with_suffix(".lineidx").write_text("".join(f"{offset}\n" for offset in offsets))
    return path
