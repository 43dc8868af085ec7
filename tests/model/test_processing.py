"""CaptionerProcessor: where the placeholders go, padding, pixels, and its files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import (
    BOS,
    EOS,
    IMAGE,
    IMAGE_SIZE,
    PAD,
    VOCAB_SIZE,
    image_processor,
    one_special_tokenizer,
    picture,
    tiny_config,
    tiny_model,
    tiny_processor,
)
from tokenizers import processors
from transformers import BitImageProcessorPil

from vlm_caption import CaptionerProcessor
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.towers.tokenizers import byte_tokenizer


@pytest.fixture
def processor() -> CaptionerProcessor:
    return tiny_processor(tiny_config(image_tokens="patches", image_grid=2))


def letters(processor: CaptionerProcessor, text: str) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("text", [None, ""])
def test_an_image_alone_asks_for_a_caption(processor, text):
    inputs = processor(images=picture(), text=text, return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[BOS] + [IMAGE] * 4]
    assert inputs["attention_mask"].tolist() == [[1] * 5]
    assert inputs["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_a_prompt_stands_behind_the_image(processor):
    inputs = processor(images=picture(), text="A photo of")
    assert inputs["input_ids"] == [[BOS] + [IMAGE] * 4 + letters(processor, "A photo of")]


def test_one_prompt_serves_all_images(processor):
    inputs = processor(images=[picture(0), picture(1)], text="A", return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[BOS] + [IMAGE] * 4 + letters(processor, "A")] * 2
    assert len(inputs["pixel_values"]) == 2


def test_each_image_may_have_its_prompt_and_rows_are_padded_on_the_left(processor):
    inputs = processor(images=[picture(0), picture(1)], text=["A", "A cat"], padding=True, return_tensors="pt")
    assert inputs["input_ids"].tolist() == [
        [PAD] * 4 + [BOS] + [IMAGE] * 4 + letters(processor, "A"),
        [BOS] + [IMAGE] * 4 + letters(processor, "A cat"),
    ]
    assert inputs["attention_mask"].sum(-1).tolist() == [6, 10]


@pytest.mark.parametrize("text", [None, "", [""], ["", ""]])
def test_empty_texts_stand_for_the_prompt_of_training(processor, text):
    processor.prompt = "A<image>B"
    a, b = (letters(processor, letter) for letter in "AB")
    row = [BOS, *a, *[IMAGE] * 4, *b]
    assert processor(images=[picture(0), picture(1)], text=text)["input_ids"] == [row, row]
    assert processor(images=[picture(0)], text=text if text != ["", ""] else None)["input_ids"] == [row]


def test_an_empty_text_stands_for_the_prompt_of_training_beside_others_too(processor):
    processor.prompt = "A<image>B"
    a, b, c = (letters(processor, letter) for letter in "ABC")
    rows = processor(images=[picture(0), picture(1)], text=["C", ""])["input_ids"]
    assert rows == [[BOS, *[IMAGE] * 4, *c], [BOS, *a, *[IMAGE] * 4, *b]]
    rows = processor(images=[picture(0), picture(1)], text=["C<image>", ""])["input_ids"]
    assert rows == [[BOS, *c, *[IMAGE] * 4], [BOS, *a, *[IMAGE] * 4, *b]]


def test_text_may_say_where_the_images_go(processor):
    inputs = processor(images=[picture(0), picture(1)], text="A<image>B<image>C")
    a, b, c = (letters(processor, letter) for letter in "ABC")
    assert inputs["input_ids"] == [[BOS, *a, *[IMAGE] * 4, *b, *[IMAGE] * 4, *c]]
    assert len(inputs["pixel_values"]) == 2


def test_rows_may_have_different_numbers_of_images(processor):
    inputs = processor(images=[picture(i) for i in range(3)], text=["<image><image>", "<image>"])
    assert [row.count(IMAGE) for row in inputs["input_ids"]] == [8, 4]


def test_a_start_token_that_is_written_out_is_not_doubled(processor):
    assert processor(images=picture(), text="<bos><image>A")["input_ids"][0].count(BOS) == 1


def test_a_tokenizer_that_writes_its_own_start_does_not_double_it():
    tokenizer = byte_tokenizer()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", BOS)])
    assert tokenizer("A").input_ids.count(BOS) == 1
    processor = CaptionerProcessor.from_config(tiny_config(), image_processor(), tokenizer)
    assert processor(images=picture(), text="A")["input_ids"] == [[BOS, IMAGE, *letters(processor, "A")]]
    collator = CaptionCollator(processor, lambda rows: {})
    ids = collator([{"captions": ["A"]}])["input_ids"].tolist()
    assert ids == [[BOS, IMAGE, *letters(processor, "A"), EOS]]


def test_text_alone_has_a_start_token_and_no_pixels(processor):
    inputs = processor(text="A")
    assert inputs["input_ids"] == [[BOS, *letters(processor, "A")]]
    assert "pixel_values" not in inputs


@pytest.mark.parametrize("image_start", ["learned", "none"])
def test_without_bos_nothing_stands_before_the_placeholders(image_start):
    processor = tiny_processor(tiny_config(image_start=image_start))
    assert processor.start_token is None
    assert processor(images=picture())["input_ids"] == [[IMAGE] * processor.image_seq_length]


@pytest.mark.parametrize(
    ("images", "text", "sentence"),
    [
        (2, ["A", "B", "C"], "3 prompts for 2 images: give one prompt for all, one for each, or say with <image>"),
        (3, "<image> and <image>", "there are 2 for 3 images"),
        (0, "<image>", "there are 1 for 0 images"),
    ],
)
def test_numbers_that_do_not_match_are_refused(processor, images, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        processor(images=[picture(i) for i in range(images)] or None, text=text)


def test_pixels_are_rescaled_once(processor):
    grey = Image.new("RGB", (50, 40), (128, 128, 128))
    pixel_values = processor(images=grey, return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(getattr(processor.image_processor, name)) for name in ("image_mean", "image_std"))
    expected = ((128 / 255 - mean) / std)[:, None, None].expand(3, IMAGE_SIZE, IMAGE_SIZE)
    torch.testing.assert_close(pixel_values[0], expected, rtol=1e-4, atol=1e-4)


def test_an_array_of_bytes_is_the_picture_it_came_from(processor):
    expected = processor(images=picture(), return_tensors="pt")["pixel_values"]
    assert processor(images=np.asarray(picture()), return_tensors="pt")["pixel_values"].equal(expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_pictures_of_every_mode_have_three_channels(processor, mode):
    assert processor(images=picture().convert(mode), return_tensors="pt")["pixel_values"].shape[1] == 3


def test_files_give_back_an_equal_processor(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    loaded = CaptionerProcessor.from_pretrained(tmp_path)
    arguments = {
        "images": [picture(0), picture(1)],
        "text": ["A", "A cat"],
        "padding": True,
        "return_tensors": "pt",
    }
    expected, found = processor(**arguments), loaded(**arguments)
    assert expected.keys() == found.keys()
    assert all(expected[name].equal(found[name]) for name in expected)
    assert loaded.decode(expected["input_ids"][1], skip_special_tokens=True) == "A cat"


def test_pillow_resizes_after_loading_too(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    loaded = CaptionerProcessor.from_pretrained(tmp_path)
    assert type(loaded.image_processor) is type(processor.image_processor) is BitImageProcessorPil


def test_files_stay_the_same_when_saved_again(tmp_path, processor):
    processor.save_pretrained(tmp_path / "first")
    CaptionerProcessor.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = (
        json.loads((tmp_path / name / "processor_config.json").read_text()) for name in ("first", "second")
    )
    assert first == second
    assert (tmp_path / "first/tokenizer.json").read_text() == (tmp_path / "second/tokenizer.json").read_text()
    tokenizer_config = json.loads((tmp_path / "second/tokenizer_config.json").read_text())
    assert tokenizer_config["backend"] == "tokenizers"


def test_the_placeholder_gets_the_id_that_the_model_expects():
    config = tiny_config(image_token_id=VOCAB_SIZE + 7)  # an embedding table that is longer than the tokenizer
    processor = tiny_processor(config)
    assert processor.image_token_id == VOCAB_SIZE + 7
    assert processor(images=picture())["input_ids"] == [[BOS, VOCAB_SIZE + 7]]


def test_a_padded_embedding_table_takes_every_token_of_the_processor():
    model = tiny_model(text_config={"vocab_size": VOCAB_SIZE + 20})
    processor = tiny_processor(model.config)
    assert processor.image_token_id == VOCAB_SIZE + 20
    inputs = processor(images=picture(), text="A photo of", return_tensors="pt")
    assert model(**inputs).logits.shape[-1] == VOCAB_SIZE + 20


def test_a_tokenizer_that_has_outgrown_the_placeholder_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["one", "two"])
    with pytest.raises(ValueError, match=f"has <image> at id {VOCAB_SIZE + 2}, and the model's .* is {VOCAB_SIZE}"):
        CaptionerProcessor.from_config(tiny_config(), image_processor(), tokenizer)


def test_a_tokenizer_that_uses_the_placeholders_name_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<image>", "more"])
    config = tiny_config(image_token_id=VOCAB_SIZE + 2)
    with pytest.raises(ValueError, match="choose another image_token"):
        CaptionerProcessor.from_config(config, image_processor(), tokenizer)
    processor = CaptionerProcessor.from_config(config, image_processor(), tokenizer, image_token="<picture>")
    assert processor(images=picture(), text="A<picture>")["input_ids"] == [
        [BOS, *letters(processor, "A"), VOCAB_SIZE + 2]
    ]


def test_a_tokenizer_without_padding_pads_with_its_end_token():
    config = tiny_config(text_config={"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256})
    processor = CaptionerProcessor.from_config(config, image_processor(), one_special_tokenizer())
    inputs = processor(images=[picture(0), picture(1)], text=["A", "AB"], padding=True)
    assert inputs["input_ids"][0] == [256, 256, 257, *letters(processor, "A")]
    assert inputs["attention_mask"][0] == [0, 1, 1, 1]


def test_a_chat_templates_mask_of_the_assistants_turns_counts_the_start_token():
    processor = tiny_processor(tiny_config())
    processor.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    chat = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}]
    text = processor.apply_chat_template(chat, tokenize=False)
    inputs = processor(images=picture(), text=text, return_tensors="pt", return_text_replacement_offsets=True)
    offsets = inputs["text_replacement_offsets"][0]
    assert [(entry["type"], entry["span"], entry["new_span"]) for entry in offsets] == [
        ("text", (0, 0), (0, 5)),
        ("image", (0, 7), (5, 12)),
    ]


def test_an_image_may_be_named_by_its_path(tmp_path):
    processor = tiny_processor(tiny_config())
    picture().save(tmp_path / "picture.png")
    path = str(tmp_path / "picture.png")
    expected = processor(images=picture(), return_tensors="pt")["pixel_values"]
    for named in (path, [path], [[path]]):
        assert torch.equal(processor(images=named, return_tensors="pt")["pixel_values"], expected)


def test_the_callers_prompts_stay_as_they_are():
    processor = tiny_processor(tiny_config())
    prompts, placed = ["A", "B"], ["<image>A"]
    processor(text=prompts)
    processor(images=picture(), text=placed)
    assert (prompts, placed) == (["A", "B"], ["<image>A"])
