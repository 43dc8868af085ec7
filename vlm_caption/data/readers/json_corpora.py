"""Corpora in one JSON file: COCO captions, Karpathy's splits, lists of pictures and captions, VQA.

The files are read entry by entry, so that their length does not matter.
"""

import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.errors import DataError
from ...core.files import is_file, is_folder
from ...core.text import preview
from ...core.untrusted import iterate_json
from ..records import (
    PHOTO_FOLDERS,
    ImageFolder,
    Problem,
    Record,
    Source,
    as_captions,
    find_split,
    list_subfolders,
    settle_names,
    the_one,
)

logger = logging.getLogger(__name__)


def find_coco(path: Path) -> list[Path]:
    """Returns COCO's captions: the file, or the `captions_*.json` in a folder or in its `annotations`."""
    annotations = path / "annotations"
    return find_json(annotations if is_folder(annotations) else path, "captions_*.json", "coco")


def read_coco(source: Source) -> Iterator[Record | Problem]:
    """Yields a record for each annotation of COCO's captions.

    `captions_val2017.json` is the split val, with its pictures in `val2017`; a file of another name has no split, nor
    has the one of train alone. An image without annotations is a record without captions.

    Raises:
        DataError: A file is not JSON, holds no captions, is of another year than the others, or has no pictures.
    """
    files = find_coco(source.path)
    if not files:
        raise DataError(f"{source.path}: it holds no captions of COCO's, captions_*.json")
    for file, split in _settle_splits(files, source.path):
        root = file.parent.parent if file.parent.name == "annotations" else file.parent
        pictures = file.stem.removeprefix("captions_")
        images = source.images
        if images is not None and is_folder(images / pictures):
            images = images / pictures
        folders = [root / pictures, root / "images" / pictures, root / "images", root]
        folder = ImageFolder(replace(source, images=images), folders, source.images or root)
        yield from _read_coco_file(file, split, folder)
        folder.check()


def _read_coco_file(file: Path, split: str | None, folder: ImageFolder) -> Iterator[Record | Problem]:
    paths: dict[str, str] = {}
    for number, image in enumerate(_items(file, "images"), start=1):
        where = f"{file}, image {number}"
        if isinstance(image, Problem):
            yield replace(image, split=split)
            continue
        image_id, path = _as_id(image.get("id")), image.get("file_name")
        if image_id is None or not isinstance(path, str) or not path:
            yield Problem(where, f"it must have an id and a file_name, and is {preview(image)}", split=split)
        elif paths.setdefault(image_id, path) != path:
            yield Problem(where, f"its id, {image_id}, is that of {paths[image_id]} too", split=split)
    bare = dict.fromkeys(paths)
    count = 0
    for count, annotation in enumerate(_items(file, "annotations"), start=1):
        where = f"{file}, annotation {count}"
        if isinstance(annotation, Problem):
            yield replace(annotation, split=split)
            continue
        image_id, caption = _as_id(annotation.get("image_id")), annotation.get("caption")
        if image_id is None or image_id not in paths:
            yield Problem(where, f"no image has its image_id, {preview(annotation.get('image_id'))}", split=split)
        elif not isinstance(caption, str):
            yield Problem(where, f"its caption must be text, and is {preview(caption)}", split=split)
        else:
            bare.pop(image_id, None)
            yield folder.record(paths[image_id], [caption], where, split)
    if not count:
        raise DataError(f"{file}: it holds no annotations: give a file of captions, captions_*.json")
    for image_id in bare:
        yield folder.record(paths[image_id], [], f"{file}, image {image_id}", split)


def find_karpathy(path: Path) -> list[Path]:
    """Returns Karpathy's file: itself, or the `dataset_*.json` in a folder."""
    return find_json(path, "dataset*.json", "karpathy")


def read_karpathy(source: Source) -> Iterator[Record | Problem]:
    """Yields the images of Karpathy's `dataset_{coco,flickr8k,flickr30k}.json`, each with all its captions.

    Pictures are `filepath/filename`, or `filename` where there is no `filepath`. The split `restval` is train.

    Raises:
        DataError: The file is not JSON, is not of this kind, or has no pictures.
    """
    file = the_one(find_karpathy(source.path), source.path, "file of Karpathy's, dataset_*.json")
    folder = ImageFolder(source, [file.parent, *(file.parent / name for name in PHOTO_FOLDERS)])
    for number, image in enumerate(_items(file, "images"), start=1):
        where = f"{file}, image {number}"
        if isinstance(image, Problem):
            yield image
            continue
        split = image.get("split")
        split = "train" if split == "restval" else split
        name, sentences = image.get("filename"), image.get("sentences")
        captions = as_captions([sentence.get("raw") for sentence in _objects(sentences)])
        if not isinstance(split, str) or not split:
            yield Problem(where, f"its split must be text, and is {preview(image.get('split'))}")
        elif not isinstance(name, str) or not name:
            yield Problem(where, f"its filename must be text, and is {preview(name)}", split=split)
        elif not captions:
            yield Problem(where, "its sentences must each have a caption, raw", split=split)
        else:
            name = f"{image['filepath']}/{name}" if image.get("filepath") else name
            yield folder.record(name, captions, where, split)
    folder.check()


def find_pairs(path: Path) -> list[Path]:
    """Returns the lists of pictures and captions: the file, or those in a folder or in its `annotations`."""
    annotations = path / "annotations"
    return find_json(annotations if is_folder(annotations) else path, "*.json", "pairs")


def read_pairs(source: Source) -> Iterator[Record | Problem]:
    """Yields a record for each entry of a list of pictures and captions.

    An entry is `{"image": PATH, "caption": TEXT or a list}`, as in LAVIS, or `{"image_id": ID, "caption": TEXT}`, as
    in ClipCap: the picture is then the one that COCO calls by this number, or `ID.jpg`. Files whose names
    speak of splits (`coco_karpathy_val.json`) are those splits, if all do and there are several.

    Raises:
        DataError: A file is not JSON, has no entries, is of the same split as another, or there are no pictures.
    """
    files = find_pairs(source.path)
    if not files:
        raise DataError(f'{source.path}: it holds no list of {{"image": …, "caption": …}}')
    for file, split in _settle_splits(files, source.path):
        root = file.parent.parent if file.parent.name == "annotations" else file.parent
        folder = ImageFolder(source, [root, *(root / name for name in PHOTO_FOLDERS), *list_subfolders(root)])
        number = 0
        for number, entry in enumerate(_items(file), start=1):
            where = f"{file}, entry {number}"
            if isinstance(entry, Problem):
                yield replace(entry, split=split)
                continue
            name, captions = entry.get("image"), as_captions(entry.get("caption"))
            image_id = entry.get("image_id")
            if name is None and isinstance(image_id, (int, str)) and str(image_id).strip():
                names = list(_names_of_id(str(image_id).strip()))
                name = next(filter(folder.has, names), names[0])
            if not isinstance(name, str) or not name.strip():
                yield Problem(where, f"its image must be one path, and is {preview(name)}", split=split)
            elif not captions:
                reason = f"its caption must be text or a list of texts, and is {preview(entry.get('caption'))}"
                yield Problem(where, reason, split=split)
            else:
                yield folder.record(name, captions, where, split)
        if not number:
            raise DataError(f"{file}: the list is empty")
        folder.check()


def _names_of_id(image_id: str) -> Iterator[str]:
    """Yields the names that a picture with this id may have."""
    if image_id.isascii() and image_id.isdecimal() and len(image_id) <= 12:
        number = f"{int(image_id):012d}"
        for subset in ("train2014", "val2014"):
            yield from (f"{subset}/COCO_{subset}_{number}.jpg", f"COCO_{subset}_{number}.jpg")
        yield from (f"train2017/{number}.jpg", f"val2017/{number}.jpg", f"{number}.jpg")
    yield from (f"{image_id}.jpg", image_id, f"{image_id}.png", f"{image_id}.jpeg")


def find_vqa(path: Path) -> list[Path]:
    """Returns VQA's questions: the file, or those in a folder or in its `annotations`."""
    if is_folder(path):
        folders = [folder for folder in (path / "annotations", path) if is_folder(folder)]
        return next((files for folder in folders if (files := sorted(folder.glob("*mscoco_*_questions.json")))), [])
    return [path] if path.name.endswith("_questions.json") else []


def list_vqa_files(source: Source) -> list[Path]:
    """Returns the questions, and the annotations with their answers."""
    questions = find_vqa(source.path)
    return [*questions, *(file for file in map(_vqa_annotations, questions) if is_file(file))]


def read_vqa(source: Source) -> Iterator[Record | Problem]:
    """Yields each question of VQA and VQAv2 with its most common answer, `multiple_choice_answer`.

    If the caption column is "answers", a question has the answers of all ten people instead, as for VQA accuracy.

    `v2_OpenEnded_mscoco_train2014_questions.json` stands beside `v2_mscoco_train2014_annotations.json`; pictures are
    `train2014/COCO_train2014_000000000009.jpg`, as COCO names them. Of a folder, questions without annotations are
    left out, as the test's are, and so are VQA's `MultipleChoice` files beside their `OpenEnded` ones: they hold the
    same questions.

    Raises:
        DataError: There are no files, one is not JSON, none has its annotations, or there are no pictures.
    """
    files = find_vqa(source.path)
    if not files:
        raise DataError(f"{source.path}: it holds no questions of VQA's, *mscoco_*_questions.json")
    by_annotations: dict[Path, Path] = {}
    for file in sorted(files, key=lambda file: "OpenEnded" not in file.name):
        by_annotations.setdefault(_vqa_annotations(file), file)
    answered = {annotations: file for annotations, file in by_annotations.items() if is_file(annotations)}
    unanswered = [file for annotations, file in by_annotations.items() if annotations not in answered]
    if not answered:
        file = unanswered[0]
        raise DataError(f"{file}: its answers are not beside it: {_vqa_annotations(file).name} is missing")
    if unanswered:
        names = ", ".join(file.name for file in unanswered)
        logger.info("%s: left out, for their answers are not beside them: %s", source.path, names)
    splits = settle_names([find_split(file.stem) for file in answered.values()])
    for (annotations, file), split in zip(answered.items(), splits, strict=True):
        subset = annotations.stem.split("_")[-2]  # "train2014"
        root = file.parent.parent if file.parent.name == "annotations" else file.parent
        folder = ImageFolder(source, [root / subset, root / "images" / subset, root / "images", root])
        asked = {_as_id(item.get("question_id")): item.get("question") for item in _objects_of(file, "questions")}
        for number, annotation in enumerate(_items(annotations, "annotations"), start=1):
            where = f"{annotations}, annotation {number}"
            if isinstance(annotation, Problem):
                yield replace(annotation, split=split)
                continue
            question = asked.get(_as_id(annotation.get("question_id")))
            answers = _vqa_answers(annotation, source.caption_column)
            image_id = annotation.get("image_id")
            if not isinstance(question, str):
                yield Problem(where, f"{file.name} has no question for it", split=split)
            elif not answers or not isinstance(image_id, int) or image_id < 0:
                wanted = "answers" if source.caption_column == "answers" else "a multiple_choice_answer"
                yield Problem(where, f"it must have an image_id and, in text, {wanted}", split=split)
            else:
                name, questions = f"COCO_{subset}_{image_id:012d}.jpg", [question] * len(answers)
                yield folder.record(name, answers, where, split, questions)
        folder.check()


def _vqa_answers(annotation: dict, column: str | None) -> list[str]:
    """Returns the answers to a question: the most common one, or all if `column` is "answers"; [] if malformed."""
    if column != "answers":
        answer = annotation.get("multiple_choice_answer")
        return [answer] if isinstance(answer, str) else []
    answers = annotation.get("answers")
    if not isinstance(answers, list) or not all(isinstance(entry, dict) for entry in answers):
        return []
    return as_captions([entry.get("answer") for entry in answers])


def _vqa_annotations(questions: Path) -> Path:
    """Returns `v2_mscoco_train2014_annotations.json` for `v2_OpenEnded_mscoco_train2014_questions.json`."""
    start, _, rest = questions.name.partition("mscoco_")
    version = "v2_" if start.startswith("v2_") else ""
    return questions.with_name(f"{version}mscoco_{rest.removesuffix('questions.json')}annotations.json")


def _objects(value: object) -> list[dict[str, Any]]:
    """Returns a list of objects; an empty one if it is anything else."""
    return value if isinstance(value, list) and all(isinstance(entry, dict) for entry in value) else []


def find_json(path: Path, pattern: str, kind: str) -> list[Path]:
    """Returns the file itself, or the files in a folder whose names match `pattern`, that are of a kind.

    Raises:
        DataError: The file itself is not JSON.
    """
    if is_folder(path):
        return [file for file in sorted(path.glob(pattern)) if _kind(file) == kind]
    return [path] if _kind(path, strict=True) == kind else []


def _kind(file: Path, strict: bool = False) -> str | None:
    """Returns which kind of corpus a JSON file is, by its first entry: coco, karpathy, llava or pairs.

    Raises:
        DataError: It is not JSON, if `strict`.
    """
    if file.suffix.lower() != ".json":
        return None
    try:
        with contextlib.closing(iterate_json(file)) as entries:
            for name, entry in entries:
                if name in (None, "images", "annotations") and isinstance(entry, dict):
                    return _kind_of(name, entry.keys())
    except DataError:
        if strict:
            raise
    return None


def _kind_of(name: str | None, keys: Collection[str]) -> str | None:
    keys = set(keys)
    if name is None:
        if {"conversations", "messages"} & keys:
            return "llava"
        return "pairs" if "caption" in keys and {"image", "image_id"} & keys else None
    if {"filename", "sentences"} <= keys:
        return "karpathy"
    return "coco" if {"file_name", "id"} <= keys or {"image_id", "caption"} <= keys else None


def _items(file: Path, name: str | None = None) -> Iterator[dict[str, Any] | Problem]:
    """Yields the objects of the list `name`, or of the list that the file is; a problem for anything else in it."""
    number = 0
    for found, item in iterate_json(file):
        if found != name:
            continue
        number += 1
        if isinstance(item, dict):
            yield item
        else:
            reason = f"its {name or 'list'} must hold objects, and holds {preview(item)}"
            yield Problem(f"{file}, entry {number} of {name or 'the list'}", reason)


def _objects_of(file: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yields the objects of the list `name`, and nothing of what else is in it."""
    return (item for item in _items(file, name) if not isinstance(item, Problem))


def _as_id(value: object) -> str | None:
    """Returns an id as text, so that 7, 7.0 and "7" are the same; None for anything that is not an id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _settle_splits(files: Sequence[Path], path: Path) -> Iterator[tuple[Path, str | None]]:
    """Yields each file with its split by its name.

    Raises:
        DataError: Two files are of one split.
    """
    names = [find_split(file.stem) for file in files]
    for split in set(names):
        the_one([file for file, name in zip(files, names, strict=True) if name == split], path, "captions")
    return zip(files, settle_names(names), strict=True)
