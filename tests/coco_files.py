"""Captions and references in COCO's files."""

import json

NO_JAVA = ("bleu", "rouge_l", "cider")


def write_files(folder, captions: dict, references: dict, **images: str):
    results, annotations = folder / "results.json", folder / "references.json"
    results.write_text(json.dumps([{"image_id": image, "caption": text} for image, text in captions.items()]))
    annotations.write_text(
        json.dumps(
            {
                "images": [
                    {"id": image, **({"file_name": images[image]} if image in images else {})} for image in references
                ],
                "annotations": [{"image_id": i, "caption": text} for i, texts in references.items() for text in texts],
            }
        )
    )
    return results, annotations


REFERENCES = {
    f"image{n}": [f"a {what} in the {place}", f"the {what} is in a {place}"]
    for n, (what, place) in enumerate(
        zip(["dog", "cat", "man", "train"] * 3, ["park", "house", "snow"] * 4, strict=True)
    )
}


RIGHT = {image: texts[0] for image, texts in REFERENCES.items()}


SAME = dict.fromkeys(REFERENCES, "a dog in the park")
