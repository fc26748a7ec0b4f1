"""Small images, whose colours tell their number, COCO content, and other formats of it."""

import io
import json

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


def boxes_by_image(content):
    found = {image["id"]: [] for image in content["images"]}
    for box in content["annotations"]:
        found[box["image_id"]].append((box["category_id"], *box["bbox"]))
    return [(image, found[image["id"]]) for image in content["images"]]


def to_yolo(folder, content, digits=6):
    (folder / "labels").mkdir()
    for image, boxes in boxes_by_image(content):
        width, height = image["width"], image["height"]
        rows = [(c - 1, (x + w / 2) / width, (y + h / 2) / height, w / width, h / height) for c, x, y, w, h in boxes]
        text = "".join(f"{c} " + " ".join(f"{v:.{digits}f}" for v in row) + "\n" for c, *row in rows)
        if text:  # an image without boxes has no file
            (folder / "labels" / image["file_name"]).with_suffix(".txt").write_text(text)
    names = [category["name"] for category in content["categories"]]
    (folder / "data.yaml").write_text(f"path: .\ntrain: images\nval: images\nnames: {json.dumps(names)}\n")
    return {"format": "yolo", "annotations": str(folder / "data.yaml")}


def voc_xml(image, objects, size=True, file_name=None):
    """`objects`: name, xmin, ymin, xmax, ymax and more tags."""
    text = f"<filename>{file_name or image['file_name']}</filename>"
    if size:
        text += f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>"
    for name, *box, more in objects:
        sides = "".join(f"<{side}>{v}</{side}>" for side, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
        text += f"<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object>"
    return f"<annotation>{text}</annotation>"


def to_voc(folder, content, origin=1):
    """VOC's own layout and pixels that count from 1; or from 0, as other tools write."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for image, boxes in boxes_by_image(content):
        objects = [(names[c], x + origin, y + origin, x + w, y + h, "") for c, x, y, w, h in boxes]
        path = (folder / "Annotations" / image["file_name"]).with_suffix(".xml")
        path.write_text(voc_xml(image, objects))
    stems = [image["file_name"].split(".")[0] for image in content["images"]]
    (folder / "ImageSets" / "Main" / "train.txt").write_text("\n".join(stems) + "\n")
    return {"format": "voc", "annotations": str(folder)}


def to_odvg(folder, content):
    names = {category["id"]: category["name"] for category in content["categories"]}
    rows = []
    for image, boxes in boxes_by_image(content):
        objects = [{"bbox": [x, y, x + w, y + h], "label": c - 1, "category": names[c]} for c, x, y, w, h in boxes]
        row = {"filename": image["file_name"], "width": image["width"], "height": image["height"]}
        rows.append(json.dumps(row | {"detection": {"instances": objects}}))
    (folder / "odvg.jsonl").write_text("\n".join(rows) + "\n")
    return {"format": "odvg", "annotations": str(folder / "odvg.jsonl"), "images": str(folder / "images")}
