"""A folder of COCO's shape: images under val2014, several captions each, in no order."""

import json

import numpy as np
from PIL import Image


def write_coco(folder, count=12, side=40):
    rng = np.random.default_rng(0)
    (folder / "val2014").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for image in rng.permutation(count).tolist():
        name = f"COCO_val2014_{image:012d}.jpg"
        shape = (side, side + 8 * (image % 3), 3)
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(folder / "val2014" / name)
        images.append({"id": image, "file_name": name, "height": shape[0], "width": shape[1]})
        numbers = rng.permutation(5).tolist()
        annotations += [
            {"id": 10 * image + k, "image_id": image, "caption": f"Caption {k} of\nimage {image}. "} for k in numbers
        ]
    rng.shuffle(annotations)
    record = {"info": {}, "images": images, "annotations": annotations}
    (folder / "annotations" / "captions_val2014.json").write_text(json.dumps(record))
    return folder
