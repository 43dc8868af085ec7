"""Questions with their answers, from the formats that have them."""

import io
import json
import logging
import tarfile

import pytest
from datasets import Dataset
from PIL import Image
from tiny_models import tiny_model, tiny_processor

from vlm_caption.data import DataError, ask_one_by_one, count_captions, load_captions, open_corpus
from vlm_caption.data.collator import CaptionCollator

ROWS = [
    {"image": "a.png", "questions": ["What is it?", "Where?"], "captions": ["a dog", "outside"]},
    {"image": "b.png", "questions": ["How many?", "How many?"], "captions": ["2", "two"]},
]


@pytest.fixture
def photos(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 3), (ord(name[0]), 0, 0)).save(tmp_path / name)
    return tmp_path


def read(path, **options) -> list[dict]:
    rows = list(load_captions(path, dev_share=0, questions=True, **options))
    return [{**row, "image": row["image"].rpartition("/")[2]} for row in rows]


def test_a_table_has_a_question_and_an_answer_a_row(photos):
    lines = ["image,question,answer", "a.png,What is it?,a dog", "a.png,Where?,outside"]
    (photos / "vqa.csv").write_text("\n".join([*lines, "b.png,How many?,2", "b.png,How many?,two"]) + "\n")
    assert read(photos / "vqa.csv") == ROWS


def test_json_lines_have_several_answers_or_several_questions(photos):
    rows = [
        {"image": "a.png", "question": ["What is it?", "Where?"], "answers": ["a dog", "outside"]},
        {"image": "b.png", "question": "How many?", "answers": ["2", "two"]},
    ]
    (photos / "vqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read(photos / "vqa.jsonl") == ROWS


def test_a_dataset_of_questions_is_read(photos):
    Dataset.from_list(
        [
            {"image": "a.png", "question": "What is it?", "multiple_choice_answer": "a dog", "answers": ["a cat"]},
            {"image": "a.png", "question": "Where?", "multiple_choice_answer": "outside", "answers": ["no"]},
        ]
    ).save_to_disk(str(photos / "saved"))
    assert read(photos / "saved", images=photos) == ROWS[:1]


def test_shards_have_questions_in_their_json(photos):
    with tarfile.open(photos / "0.tar", "w") as tar:
        for name, content in (
            ("0.png", (photos / "a.png").read_bytes()),
            ("0.json", json.dumps({"question": "What is it?", "answer": "a dog"}).encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    [row] = load_captions(photos / "0.tar", dev_share=0, questions=True)
    assert (row["questions"], row["captions"]) == (["What is it?"], ["a dog"])


TURNS = [("user", "<image>\nWhat is  it?"), ("assistant", "a dog"), ("user", "Where?"), ("assistant", "outside")]
DIALOGUE = {**ROWS[0], "questions": ["What is it?", "What is it?\na dog\nWhere?"]}


def test_every_question_of_a_conversation_is_asked_behind_what_was_said_before(photos):
    roles = {"user": "human", "assistant": "gpt"}
    turns = [{"from": roles[role], "value": text} for role, text in TURNS]
    (photos / "llava.json").write_text(json.dumps([{"image": "a.png", "conversations": turns}]))
    assert read(photos / "llava.json") == [DIALOGUE]
    [row] = load_captions(photos / "llava.json", dev_share=0)  # without questions: captions alone
    assert (row["captions"], "questions" in row) == (["a dog"], False)


def test_messages_are_asked_behind_what_was_said_before_and_without_the_system(photos):
    turns = [{"role": role, "content": text} for role, text in (("system", "Be brief."), *TURNS)]
    turns[1]["content"] = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"}]
    (photos / "talk.jsonl").write_text(json.dumps({"messages": turns}))
    assert read(photos / "talk.jsonl") == [DIALOGUE]


def test_an_empty_question_behind_others_is_a_problem(photos):
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "a dog"}]
    turns += [{"from": "human", "value": " "}, {"from": "gpt", "value": "outside"}]
    (photos / "llava.json").write_text(json.dumps([{"image": "a.png", "conversations": turns}]))
    with pytest.raises(DataError, match="conversation 1: a question is empty"):
        read(photos / "llava.json")


def test_the_turns_before_an_answer_are_context_and_only_the_answer_is_learned(photos):
    model = tiny_model("dinov2", "llama", image_tokens="patches", image_grid=2)
    processor = tiny_processor(model.config)
    collator = CaptionCollator(processor, lambda rows: {}, prompt="Question: {question} Answer:")
    batch = collator([DIALOGUE])
    tokenizer = processor.tokenizer
    text = tokenizer.decode(batch["input_ids"][0])
    assert "Question: What is it?\na dog\nWhere? Answer: outside" in text.replace("<s>", "")
    learned = tokenizer.decode([token for token in batch["labels"][0].tolist() if token >= 0])
    assert learned.count("dog") == learned.count("outside") == 1
    assert "Where" not in learned


@pytest.mark.parametrize("version", ["", "v2_"])
def test_vqa_is_read_with_its_most_common_answers(photos, version):
    folder = photos / "train2014"
    folder.mkdir()
    (photos / "a.png").rename(folder / "COCO_train2014_000000000009.jpg")
    asked = [{"image_id": 9, "question_id": 1, "question": "What is it?"}]
    asked += [{"image_id": 9, "question_id": 2, "question": "Where?"}]
    answered = [{"image_id": 9, "question_id": 1, "multiple_choice_answer": "a dog", "answers": [{"answer": "cat"}]}]
    answered += [{"image_id": 9, "question_id": 2, "multiple_choice_answer": "outside"}]
    (photos / f"{version}OpenEnded_mscoco_train2014_questions.json").write_text(json.dumps({"questions": asked}))
    annotations = photos / f"{version}mscoco_train2014_annotations.json"
    annotations.write_text(json.dumps({"annotations": answered}))
    assert open_corpus(photos, questions=True).format == "vqa"
    assert read(photos) == [{**ROWS[0], "image": "COCO_train2014_000000000009.jpg"}]
    with pytest.raises(DataError, match=r"the format vqa has questions: write \{question\} in data.prompt"):
        open_corpus(photos)
    annotations.unlink()
    with pytest.raises(DataError, match=r"mscoco_train2014_annotations\.json is missing"):
        read(photos)


def write_vqa(folder, subset: str, kinds=("OpenEnded",), answer: str | None = "a dog") -> None:
    """One question of the kinds' files, and its answer, about the picture 9 of a subset."""
    (folder / subset).mkdir()
    Image.new("RGB", (4, 3)).save(folder / subset / f"COCO_{subset}_000000000009.jpg")
    for kind in kinds:
        asked = [{"image_id": 9, "question_id": 1, "question": f"{kind}?"}]
        (folder / f"{kind}_mscoco_{subset}_questions.json").write_text(json.dumps({"questions": asked}))
    if answer is not None:
        answered = [{"image_id": 9, "question_id": 1, "multiple_choice_answer": answer}]
        (folder / f"mscoco_{subset}_annotations.json").write_text(json.dumps({"annotations": answered}))


def test_vqa_is_read_with_all_answers_if_the_column_says_so(tmp_path):
    write_vqa(tmp_path, "train2014")
    annotations = tmp_path / "mscoco_train2014_annotations.json"
    people = [{"answer": answer} for answer in ["a dog", "dog", "dog"]]
    answered = [{"image_id": 9, "question_id": 1, "multiple_choice_answer": "dog", "answers": people}]
    annotations.write_text(json.dumps({"annotations": answered}))
    [row] = open_corpus(tmp_path, questions=True, caption_column="answers", dev_share=0.0).load("train")
    assert (row["captions"], row["questions"]) == (["a dog", "dog", "dog"], ["OpenEnded?"] * 3)


def test_vqas_test_questions_are_left_out_where_others_have_answers(tmp_path, caplog):
    caplog.set_level(logging.INFO, "vlm_caption")
    for subset, answer in (("train2014", "a dog"), ("val2014", "a cat"), ("test2015", None), ("test-dev2015", None)):
        write_vqa(tmp_path, subset, answer=answer)
    corpus = open_corpus(tmp_path, questions=True)
    assert [(split, corpus.load(split)["captions"]) for split in corpus.splits] == [
        ("train", [["a dog"]]),
        ("val", [["a cat"]]),
    ]
    names = "OpenEnded_mscoco_test-dev2015_questions.json, OpenEnded_mscoco_test2015_questions.json"
    assert caplog.messages.count(f"{tmp_path}: left out, for their answers are not beside them: {names}") == 1


def test_a_folder_without_vqas_files_is_told_so(photos):
    with pytest.raises(DataError, match=r"it holds no questions of VQA's, \*mscoco_\*_questions\.json"):
        read(photos, format="vqa")


def test_vqas_two_files_of_the_same_questions_are_read_once(tmp_path):
    write_vqa(tmp_path, "train2014", kinds=("MultipleChoice", "OpenEnded"))
    [row] = read(tmp_path)
    assert row["questions"] == ["OpenEnded?"]
    [row] = read(tmp_path / "MultipleChoice_mscoco_train2014_questions.json")
    assert row["questions"] == ["MultipleChoice?"]


def test_questions_are_counted_with_their_answers_and_cleaned(photos):
    (photos / "captions.csv").write_text("image,question,answer\na.png,What  is it ?,a dog .\n")
    dataset = load_captions(photos, dev_share=0, questions=True)
    assert count_captions(dataset) == 1
    assert (dataset[0]["questions"], dataset[0]["captions"]) == (["What is it?"], ["a dog."])


def test_the_lines_of_a_question_stay(photos):
    (photos / "captions.csv").write_text('image,question,answer\na.png,"Which one ?\n\n A.  a dog\nB. a cat",A\n')
    assert load_captions(photos, dev_share=0, questions=True)[0]["questions"] == ["Which one?\nA. a dog\nB. a cat"]


def test_an_empty_question_is_a_problem(photos):
    (photos / "captions.csv").write_text('image,question,answer\na.png,"",a dog\nb.png,What?,two\n')
    with pytest.raises(DataError, match="row 2: a question is empty"):
        load_captions(photos, dev_share=0, questions=True)


def test_questions_and_answers_that_do_not_match_in_number_are_a_problem(photos):
    row = {"image": "a.png", "question": ["What?", "Where?"], "answer": ["a dog"]}
    (photos / "captions.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match="line 1: the columns 'question' and 'answer' must hold a question and its"):
        load_captions(photos, dev_share=0, questions=True)


def test_a_question_that_is_missing_from_a_saved_dataset_is_a_problem(photos):
    rows = {"image": ["a.png", "b.png"], "question": ["What?", None], "answer": ["a dog", "two"]}
    Dataset.from_dict(rows).to_parquet(photos / "captions.parquet")
    with pytest.raises(DataError, match=r"row 2: the columns 'question' and 'answer' .* hold None and 'two'"):
        load_captions(photos, dev_share=0, questions=True)


def test_captions_without_questions_say_so(photos):
    (photos / "captions.csv").write_text("image,caption\na.png,a dog\n")
    with pytest.raises(DataError, match=r"there is no question column: .* set data.question_column$"):
        load_captions(photos, dev_share=0, questions=True)
    (photos / "captions.csv").unlink()
    (photos / "a.txt").write_text("a dog")
    with pytest.raises(DataError, match=r"the format text_files has no questions: take \{question\} out"):
        load_captions(photos, dev_share=0, questions=True)


def test_questions_without_a_place_in_the_prompt_say_so(photos):
    (photos / "captions.csv").write_text("image,question,answer\na.png,What?,a dog\n")
    with pytest.raises(DataError, match=r"no caption column: .*or write \{question\} in data.prompt"):
        load_captions(photos, dev_share=0)


def test_a_columns_name_may_be_given(photos):
    (photos / "captions.csv").write_text(
        "image,ask,question,say\na.png,What is it?,no,a dog\na.png,Where?,no,outside\n"
    )
    assert read(photos, question_column="ask", caption_column="say") == ROWS[:1]


def test_one_row_a_question_has_its_answers():
    dataset = Dataset.from_list([*ROWS, {"image": "c", "questions": ["A?", "B?", "A?"], "captions": ["1", "2", "3"]}])
    assert list(ask_one_by_one(dataset))[2:] == [
        {"image": "b.png", "questions": ["How many?", "How many?"], "captions": ["2", "two"]},
        {"image": "c", "questions": ["A?", "A?"], "captions": ["1", "3"]},
        {"image": "c", "questions": ["B?"], "captions": ["2"]},
    ]


def test_one_row_a_question_keeps_the_name_of_its_corpus():
    dataset = Dataset.from_list(ROWS).add_column("corpus", ["one", "two"])
    assert [(row["image"], row["corpus"]) for row in ask_one_by_one(dataset)] == [
        ("a.png", "one"),
        ("a.png", "one"),
        ("b.png", "two"),
    ]
