"""Prompts: text around the image, questions in it, examples before it, chat templates; and what a checkpoint keeps."""

import json

import pytest
import torch
from tiny_models import (
    BOS,
    EOS,
    IMAGE,
    POSITIONS,
    picture,
    pixels,
    save_checkpoint,
    tiny_config,
    tiny_model,
    tiny_processor,
)

from vlm_caption import Captioner, CaptionerProcessor
from vlm_caption.config.run_config import RunConfig
from vlm_caption.core.errors import ConfigError
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.training.model import set_generation, set_prompt

# In the manner of Phi and of Gemma: an end of turn that is not the end token, content that is trimmed.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<bos>' if loop.first }}[{{ message['role'] }}]{{ message['content'] | trim }}"
    "{{ '<pad>\n' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def processor() -> CaptionerProcessor:
    return tiny_processor(tiny_config(image_tokens="patches", image_grid=2))


@pytest.fixture
def chat(processor) -> CaptionerProcessor:
    processor.chat_template = CHAT_TEMPLATE
    processor.chat = True
    return processor


def letters(processor: CaptionerProcessor, text: str) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


def collate(processor: CaptionerProcessor, *rows: dict, **settings) -> dict[str, torch.Tensor]:
    return CaptionCollator(processor, lambda rows: {"pixel_values": pixels(len(rows))}, **settings)(list(rows))


def test_a_prompt_with_the_image_in_it_stands_around_the_image(processor):
    batch = collate(processor, {"captions": ["ab"]}, prompt="Picture: <image>\nCaption: ")
    before, behind, caption = (letters(processor, text) for text in ("Picture: ", "\nCaption:", " ab"))
    assert batch["input_ids"].tolist() == [[BOS, *before, *[IMAGE] * 4, *behind, *caption, EOS]]
    assert batch["shift_labels"].tolist() == [[*caption, EOS]]


def test_a_caption_straight_behind_the_image_has_no_space(processor):
    batch = collate(processor, {"captions": ["ab"]}, prompt="Look: <image>")
    assert batch["input_ids"][0].tolist() == [
        BOS,
        *letters(processor, "Look: "),
        *[IMAGE] * 4,
        *letters(processor, "ab"),
        EOS,
    ]


def test_a_question_stands_in_the_prompt_and_its_answer_alone_is_learnt(processor):
    row = {"captions": ["red", "2"], "questions": ["What?", "How many?"]}
    batch = collate(processor, row, prompt="<image>Q: {question} A:")
    first, second = letters(processor, "Q: What? A:"), letters(processor, "Q: How many? A:")
    red, two = letters(processor, " red"), letters(processor, " 2")
    assert batch["input_ids"].tolist() == [[BOS, *[IMAGE] * 4, *first, *red, EOS, *second, *two, EOS]]
    assert batch["shift_labels"].tolist() == [[*red, EOS, *two, EOS]]
    starts = [5 + len(first), 5 + len(first) + len(red) + 1 + len(second)]
    assert batch["logits_to_keep"].tolist() == [
        [*range(starts[0] - 1, starts[0] + len(red)), *range(starts[1] - 1, starts[1] + len(two))]
    ]
    assert batch["position_ids"][0, starts[0] + len(red) + 1] == 5  # the second question's first token


@pytest.mark.parametrize("language", ["gpt2", "llama", "gemma3"])
def test_questions_packed_behind_their_image_have_the_loss_that_they_have_alone(language):
    model = tiny_model("vit_cls", language, image_tokens="patches", image_grid=2)
    processor = tiny_processor(model.config)
    pairs = [("What is it?", "a dog"), ("Where?", "in the grass, I think"), ("Where?", "outside")]
    rows = [{"questions": [question], "captions": [answer]} for question, answer in pairs]
    packed = {"questions": [question for question, _ in pairs], "captions": [answer for _, answer in pairs]}
    prompt = "See <image> and say. {question}\nAnswer:"
    together = model(**collate(processor, packed, prompt=prompt), num_items_in_batch=1).loss
    alone = [model(**collate(processor, row, prompt=prompt), num_items_in_batch=1).loss for row in rows]
    torch.testing.assert_close(together, torch.stack(alone).sum(), rtol=1e-5, atol=1e-5)

    # And by hand, from a whole row as the processor writes it.
    expected = 0.0
    for question, answer in pairs:
        text = processor.render_prompt(question, prompt) + " " + answer + "<eos>"
        ids = processor(images=picture(), text=text, return_tensors="pt")["input_ids"]
        count = len(letters(processor, " " + answer)) + 1
        labels = ids.clone()
        labels[:, :-count] = -100
        expected += model(input_ids=ids, pixel_values=pixels(1), labels=labels, num_items_in_batch=1).loss
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)


def test_questions_that_look_like_markup_are_text(processor):
    row = {"captions": ["an <image>"], "questions": ["Is this an <image> or <eos>?"]}
    batch = collate(processor, row, prompt="{question}")
    assert batch["input_ids"][0].tolist() == [
        *[BOS, *[IMAGE] * 4],
        *letters(processor, "Is this an <image> or <eos>? an <image>"),
        EOS,
    ]


def test_one_of_the_questions_may_be_chosen_with_its_answer(processor):
    row = {"captions": ["red", "2"], "questions": ["What?", "How many?"]}
    batch = collate(processor, row, prompt="{question}", choose=lambda row: row["captions"][1:])
    assert batch["shift_labels"].tolist() == [[*letters(processor, " 2"), EOS]]


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("Q: {answer}", r"\{answer\} in the prompt cannot be filled: its one field is \{question\}"),
        ("{}", r"\{\} in the prompt cannot"),
        ("{question} {question}", r"The prompt has \{question\} 2 times: a prompt asks one question"),
        ("<image> and <image>", "The prompt has <image> 2 times: it is of one image"),
        ("{question} <image>", r"\{question\} stands before <image>: put it behind"),
    ],
)
def test_a_wrong_prompt_is_refused_before_anything_is_read(prompt, sentence):
    with pytest.raises(ConfigError, match=f"^data.prompt .*{sentence}"):
        RunConfig.load(None, {"data.prompt": prompt})


def test_braces_that_are_no_field_are_text(processor):
    assert processor.render_prompt(prompt='{"caption": ') == '<image>{"caption":'


def test_a_question_without_a_place_and_a_place_without_a_question_are_refused(processor):
    with pytest.raises(ValueError, match="There is no place for a question in the prompt"):
        processor.render_prompt("What?")
    processor.prompt = "{question}"
    with pytest.raises(ValueError, match="there is no question to fill it"):
        processor(images=picture())


def test_a_saved_processor_asks_as_it_was_trained(tmp_path, processor):
    processor.prompt = "Before <image> behind:"
    expected = processor(images=[picture(0), picture(1)])["input_ids"]
    assert expected == [[BOS, *letters(processor, "Before "), *[IMAGE] * 4, *letters(processor, " behind:")]] * 2
    processor.save_pretrained(tmp_path)
    loaded = CaptionerProcessor.from_pretrained(tmp_path)
    assert loaded(images=[picture(0), picture(1)])["input_ids"] == expected
    assert loaded(images=picture(), text="<image>")["input_ids"] == [[BOS, *[IMAGE] * 4]]


def test_a_processor_of_before_prompts_has_none(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    settings = json.loads(file.read_text())
    del settings["prompt"], settings["chat"]
    file.write_text(json.dumps(settings))
    assert CaptionerProcessor.from_pretrained(tmp_path)(images=picture())["input_ids"] == [[BOS, *[IMAGE] * 4]]


def test_a_checkpoint_captions_with_its_prompt_unless_it_is_told_another(tmp_path):
    folder = save_checkpoint(tmp_path, pictures=1)
    captioner = Captioner.from_pretrained(folder, device="cpu")
    asked = captioner.caption(folder / "0.png", prompt="See <image> here:")
    bare = captioner.caption(folder / "0.png")
    captioner.processor.prompt = "See <image> here:"
    captioner.processor.save_pretrained(folder)
    captioner = Captioner.from_pretrained(folder, device="cpu")
    assert captioner.caption(folder / "0.png") == asked != bare
    assert captioner.caption(folder / "0.png", prompt="<image>") == bare


def test_a_chat_has_the_prompt_in_the_users_turn_and_learns_the_assistants(chat):
    chat.prompt = "Describe."
    batch = collate(chat, {"captions": ["ab"]})
    assert batch["input_ids"].tolist() == [
        [BOS, *letters(chat, "[user]"), *[IMAGE] * 4, *letters(chat, "Describe. [assistant]ab"), 0]
    ]
    assert batch["shift_labels"].tolist() == [[*letters(chat, "ab"), 0]]  # <pad> ends a turn of this template


def test_a_chat_is_asked_as_apply_chat_template_writes_it(chat):
    chat.prompt = "{question} Be short."
    content = [{"type": "image"}, {"type": "text", "text": "What is it? Be short."}]
    text = chat.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == chat.render_prompt("What is it?") == "<bos>[user]<image>What is it? Be short. [assistant]"
    head, [tail] = chat.encode_prompts(["What is it?"])
    assert chat(images=picture(), text=text)["input_ids"] == [head + tail]
    content[0] = {"type": "image", "image": picture()}
    inputs = chat.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert inputs["input_ids"] == [head + tail]


def test_examples_of_a_chat_are_turns_before_it(chat):
    assert chat.render_prompt(prompt="Say.", examples=[(None, "One."), (None, "Two.")]) == (
        "<bos>[user]<image>Say. [assistant]One.<pad>\n[user]<image>Say. [assistant]Two.<pad>\n"
        "[user]<image>Say. [assistant]"
    )


def test_a_space_that_a_template_writes_before_an_answer_belongs_to_the_answer(chat):
    chat.chat_template = (
        "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST] ' if m.role == 'user' else m.content + '<eos>' }}"
        "{% endfor %}"
    )
    batch = collate(chat, {"captions": ["ab"]}, prompt="Say.")
    assert batch["shift_labels"].tolist() == [[*letters(chat, " ab"), EOS]]
    text = chat.render_prompt(prompt="Say.", examples=[(None, "One.")])
    assert text == "[INST] <image>Say. [/INST] One.<eos>[INST] <image>Say. [/INST]"


def test_a_template_that_tells_the_date_tells_the_same_one_for_ever(chat):
    chat.chat_template = "{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE
    assert chat.render_prompt().startswith("26 Jul 2024<bos>")


def test_generation_ends_with_the_templates_end_of_turn(chat):
    model = tiny_model()
    config = RunConfig.load(None, {"data.prompt": "Describe.", "data.chat": True})
    set_prompt(model, chat, config.data)
    assert model.generation_config.eos_token_id == [EOS, 0]


def test_captions_end_where_the_prompt_leaves_no_position(processor):
    model = tiny_model()
    model.generation_config.max_new_tokens = 200
    config = RunConfig.load(None, {"data.prompt": "{question} Answer:"})
    set_prompt(model, processor, config.data, ["Why?", "Which one?"])
    before, [behind] = processor.encode_prompts(["Which one?"])
    assert model.generation_config.max_new_tokens == POSITIONS - len(before) - len(behind)


@pytest.mark.parametrize(
    ("settings", "longest"),
    [
        ({}, 40),
        ({"data.max_caption_tokens": 64}, 40),
        ({"data.max_caption_tokens": 30}, 40),
        ({"data.max_caption_tokens": 70}, 70),
        ({"data.max_caption_tokens": 70, "generation.max_new_tokens": 20}, 20),
        ({"data.max_caption_tokens": 256}, POSITIONS - 5),  # what four image tokens behind BOS leave
    ],
)
def test_captions_are_written_as_long_as_they_are_trained_above_the_usual_length(processor, settings, longest):
    model = tiny_model()
    model.generation_config.max_new_tokens = 40
    config = RunConfig.load(None, settings)
    set_generation(model, config)
    set_prompt(model, processor, config.data)
    assert model.generation_config.max_new_tokens == longest


def test_a_base_model_has_no_chat(processor):
    config = RunConfig.load(None, {"data.chat": True})
    with pytest.raises(ConfigError, match=r"^data.chat: The language model has no chat template: train it without"):
        set_prompt(tiny_model(), processor, config.data)


def test_a_template_that_loses_the_answer_is_refused(chat):
    chat.chat_template = "{% for message in messages if message.role == 'user' %}{{ message.content }}{% endfor %}"
    with pytest.raises(ValueError, match="does not write the turns as they are"):
        chat.render_prompt()
