"""Corpora in one JSON file: COCO captions, Karpathy's splits, LLaVA conversations.

The files are read item by item, so that their length does not matter.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from ...core.errors import DataError
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

_BOM = b"\xef\xbb\xbf"


def find_coco(path: Path) -> list[Path]:
    """COCO's captions: the file, or the `captions_*.json` in a folder or in its `annotations`."""
    annotations = path / "annotations"
    return _find(annotations if annotations.is_dir() else path, "captions_*.json", "coco")


def read_coco(source: Source) -> Iterator[Record | Problem]:
    """Yield a record for each annotation of COCO's captions.

    `captions_val2017.json` is the split val, with its pictures in `val2017`; a file of another name has no split, nor
    has the one of train alone. An image without annotations is a record without captions.

    Raises:
        DataError: A file is not JSON, holds no captions, is of another year than the others, or has no pictures.
    """
    files = find_coco(source.path)
    if not files:
        raise DataError(f"{source.path}: it holds no captions of COCO's, captions_*.json")
    names = [find_split(file.stem) for file in files]
    for split in set(names):
        the_one([file for file, name in zip(files, names, strict=True) if name == split], source.path, "captions")
    for file, split in zip(files, settle_names(names), strict=True):
        root = file.parent.parent if file.parent.name == "annotations" else file.parent
        pictures = file.stem.removeprefix("captions_")
        images = source.images
        if images is not None and (images / pictures).is_dir():
            images = images / pictures
        folders = [root / pictures, root / "images" / pictures, root / "images", root]
        folder = ImageFolder(replace(source, images=images), folders, source.images or root)
        paths = {str(image.get("id")): image.get("file_name") for image in _items(file, "images")}
        bare = dict.fromkeys(paths)
        count = 0
        for count, annotation in enumerate(_items(file, "annotations"), start=1):
            where = f"{file}, annotation {count}"
            image_id, caption = str(annotation.get("image_id")), annotation.get("caption")
            path = paths.get(image_id)
            if not isinstance(path, str) or not path:
                yield Problem(where, f"no image has its image_id, {image_id}", split=split)
            elif not isinstance(caption, str):
                yield Problem(where, f"its caption must be text, and is {caption!r:.80}", split=split)
            else:
                bare.pop(image_id, None)
                yield folder.record(path, [caption], where, split)
        if not count:
            raise DataError(f"{file}: it holds no annotations: give a file of captions, captions_*.json")
        for image_id in bare:
            if isinstance(path := paths[image_id], str) and path:
                yield folder.record(path, [], f"{file}, image {image_id}", split)
        folder.check()


def find_karpathy(path: Path) -> list[Path]:
    """Karpathy's file: itself, or the `dataset_*.json` in a folder."""
    return _find(path, "dataset*.json", "karpathy")


def read_karpathy(source: Source) -> Iterator[Record | Problem]:
    """Yield the images of Karpathy's `dataset_{coco,flickr8k,flickr30k}.json`, each with all its captions.

    Pictures are `filepath/filename`, or `filename` where there is no `filepath`. The split `restval` is train.

    Raises:
        DataError: The file is not JSON, is not of this kind, or has no pictures.
    """
    file = the_one(find_karpathy(source.path), source.path, "file of Karpathy's, dataset_*.json")
    folder = ImageFolder(source, [file.parent, *(file.parent / name for name in PHOTO_FOLDERS)])
    for number, image in enumerate(_items(file, "images"), start=1):
        where = f"{file}, image {number}"
        split = image.get("split")
        split = {"restval": "train"}.get(split, split)
        name, sentences = image.get("filename"), image.get("sentences")
        captions = as_captions([sentence.get("raw") for sentence in _objects(sentences)])
        if not isinstance(split, str) or not split:
            yield Problem(where, f"its split must be text, and is {image.get('split')!r}")
        elif not isinstance(name, str) or not name:
            yield Problem(where, f"its filename must be text, and is {name!r}", split=split)
        elif not captions:
            yield Problem(where, "its sentences must each have a caption, raw", split=split)
        else:
            name = f"{image['filepath']}/{name}" if image.get("filepath") else name
            yield folder.record(name, captions, where, split)
    folder.check()


def find_llava(path: Path) -> list[Path]:
    """LLaVA's conversations: the file, or the only JSON file of that kind in a folder."""
    return _find(path, "*.json", "llava")


def read_llava(source: Source) -> Iterator[Record | Problem]:
    """Yield the captioning turns of LLaVA's conversations.

    A turn counts where a question of `human` mentions `<image>` and `gpt` answers it next: the answer is a caption.
    What is asked without `<image>`, later in the conversation, does not; conversations without a picture are passed
    over. So LLaVA-Pretrain is read whole; of dialogues about pictures, the first answer is. Where questions are read,
    every question counts with its answer, on its own.

    Raises:
        DataError: The file is not JSON, is not of this kind, or has no pictures.
    """
    file = the_one(find_llava(source.path), source.path, "JSON file of conversations")
    folder = ImageFolder(source, [file.parent, *list_subfolders(file.parent)])
    passed_over = 0
    for number, sample in enumerate(_items(file), start=1):
        where = f"{file}, conversation {number}"
        name, turns = sample.get("image"), _objects(sample.get("conversations"))
        if name is None:
            passed_over += 1
        elif not isinstance(name, str) or not name:
            yield Problem(where, f"its image must be one path, and is {name!r:.80}")
        elif not turns:
            yield Problem(where, "its conversations must be a list of turns")
        else:
            pairs = [
                (str(question.get("value")), answer.get("value"))
                for question, answer in pairwise(turns)
                if question.get("from") == "human"
                and (source.questions or "<image>" in str(question.get("value")))
                and answer.get("from") == "gpt"
            ]
            if captions := as_captions([answer for _, answer in pairs]):
                questions = [asked.replace("<image>", " ") for asked, _ in pairs] if source.questions else []
                yield folder.record(name, captions, where, questions=questions)
            elif source.questions:
                yield Problem(where, "gpt must answer, in text, a question of human")
            else:
                yield Problem(where, "gpt must answer, in text, a question of human that mentions <image>")
    if passed_over:
        logger.info("%s: passed over %d conversations without a picture", file, passed_over)
    folder.check()


def find_vqa(path: Path) -> list[Path]:
    """VQA's questions and annotations: those in a folder, or in its `annotations`; or beside the file of either."""
    if path.is_dir():
        folders = [folder for folder in (path / "annotations", path) if folder.is_dir()]
        return next((files for folder in folders if (files := sorted(folder.glob("*mscoco_*_questions.json")))), [])
    return [path] if path.name.endswith("_questions.json") else []


def list_vqa_files(source: Source) -> list[Path]:
    """The questions, and the annotations with their answers."""
    questions = find_vqa(source.path)
    return [*questions, *(file for file in map(_vqa_annotations, questions) if file.is_file())]


def read_vqa(source: Source) -> Iterator[Record | Problem]:
    """Yield each question of VQA and VQAv2 with its most common answer, `multiple_choice_answer`.

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
    answered = {annotations: file for annotations, file in by_annotations.items() if annotations.is_file()}
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
        asked = {item.get("question_id"): item.get("question") for item in _items(file, "questions")}
        for number, annotation in enumerate(_items(annotations, "annotations"), start=1):
            where = f"{annotations}, annotation {number}"
            question, answer = asked.get(annotation.get("question_id")), annotation.get("multiple_choice_answer")
            image_id = annotation.get("image_id")
            if not isinstance(question, str):
                yield Problem(where, f"{file.name} has no question for it", split=split)
            elif not isinstance(answer, str) or not isinstance(image_id, int):
                yield Problem(where, "it must have an image_id and, in text, a multiple_choice_answer", split=split)
            else:
                yield folder.record(f"COCO_{subset}_{image_id:012d}.jpg", [answer], where, split, [question])
        folder.check()


def _vqa_annotations(questions: Path) -> Path:
    """`v2_mscoco_train2014_annotations.json` of `v2_OpenEnded_mscoco_train2014_questions.json`."""
    start, _, rest = questions.name.partition("mscoco_")
    version = "v2_" if start.startswith("v2_") else ""
    return questions.with_name(f"{version}mscoco_{rest.removesuffix('questions.json')}annotations.json")


def _objects(value: object) -> list[dict[str, Any]]:
    """A list of objects, or none if it is anything else."""
    return value if isinstance(value, list) and all(isinstance(entry, dict) for entry in value) else []


def _find(path: Path, pattern: str, kind: str) -> list[Path]:
    """The file itself, or those in a folder whose names are like `pattern`, that are of a kind."""
    if path.is_dir():
        return [file for file in sorted(path.glob(pattern)) if _kind(file) == kind]
    return [path] if _kind(path, strict=True) == kind else []


def _kind(file: Path, strict: bool = False) -> str | None:
    """Which of the three a JSON file is, by its first image, annotation or conversation.

    Raises:
        DataError: It is not JSON, if `strict`.
    """
    if file.suffix.lower() != ".json":
        return None
    keys: set[str] = set()
    prefix = ""
    try:
        for prefix, event, value in _parse(file, lambda content: ijson.parse(content)):
            if prefix in ("item", "images.item", "annotations.item"):
                if event == "map_key":
                    keys.add(value)
                elif event == "end_map":
                    break
    except DataError:
        if strict:
            raise
        return None
    if prefix == "item":
        return "llava" if "conversations" in keys else None
    if {"filename", "sentences"} <= keys:
        return "karpathy"
    return "coco" if {"file_name", "id"} <= keys or {"image_id", "caption"} <= keys else None


def _items(file: Path, name: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the objects of the list `name`, or of the list that the file is."""
    for item in _parse(file, lambda content: ijson.items(content, "item" if name is None else f"{name}.item")):
        if not isinstance(item, dict):
            raise DataError(f"{file}: its {name or 'list'} must hold objects, and holds {item!r:.80}")
        yield item


def _parse(file: Path, parse: Callable[[BinaryIO], Iterator[Any]]) -> Iterator[Any]:
    try:
        with file.open("rb") as content:
            if content.read(len(_BOM)) != _BOM:
                content.seek(0)
            yield from parse(content)
    except OSError as error:
        raise DataError(f"{file}: the file cannot be read ({error.strerror or error})") from error
    except (ijson.JSONError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise DataError(f"{file}: this is not JSON in UTF-8 ({reason})") from error
