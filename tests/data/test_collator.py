"""Batches: how captions are packed, and what is and is not a target."""

import itertools

import pytest
import torch
from tiny_models import (
    BOS,
    EOS,
    IMAGE,
    PAD,
    POSITIONS,
    image_processor,
    one_special_tokenizer,
    pixels,
    tiny_config,
    tiny_model,
    tiny_processor,
)

from vlm_caption import CaptionerProcessor
from vlm_caption.data import DataError, TargetChoice
from vlm_caption.data.collator import CaptionCollator


def encode_nothing(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.zeros(len(rows), 3, 2, 2)}


def collate(*captions: list[str], **settings) -> dict[str, torch.Tensor]:
    collator = CaptionCollator(tiny_processor(tiny_config()), encode_nothing, **settings)
    return collator([{"captions": row} for row in captions])


def ids_of(text: str) -> list[int]:
    tokenizer = tiny_processor(tiny_config()).tokenizer
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


def test_a_row_is_start_image_caption_end():
    batch = collate(["ab"])
    assert batch["input_ids"].tolist() == [[BOS, IMAGE, *ids_of("ab"), EOS]]
    assert batch["shift_labels"].tolist() == [[*ids_of("ab"), EOS]]
    assert batch["logits_to_keep"].tolist() == [[1, 2, 3]]  # the image token predicts the first caption token
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4]]
    assert batch["pixel_values"].shape == (1, 3, 2, 2)


def test_captions_of_an_image_are_packed_behind_it():
    batch = collate(["ab", "c"], ["d"])
    a, b, c, d = (ids_of(letter)[0] for letter in "abcd")
    assert batch["input_ids"].tolist() == [[BOS, IMAGE, a, b, EOS, c, EOS], [BOS, IMAGE, d, EOS, PAD, PAD, PAD]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3], [0, 1, 2, 3, 0, 0, 0]]
    assert batch["shift_labels"].tolist() == [[a, b, EOS, c, EOS], [d, EOS, -100, -100, -100]]
    assert batch["logits_to_keep"].tolist() == [[1, 2, 3, 1, 5], [1, 2, 0, 0, 0]]
    assert batch["labels"] is batch["shift_labels"]


def test_a_caption_sees_the_prefix_and_itself():
    mask = collate(["ab", "c"])["attention_mask"]
    assert mask.shape == (1, 1, 7, 7)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1, 1],
    ]


def test_every_position_may_look_somewhere():
    mask = collate(["abc", "d"], ["e"])["attention_mask"]
    assert mask.any(-1).all()  # a fully masked row is NaN in some attention implementations


def test_a_prompt_is_not_learnt_and_keeps_the_captions_space():
    batch = collate(["ab"], prompt="Look: ")
    prompt, caption = ids_of("Look:"), ids_of(" ab")
    assert batch["input_ids"].tolist() == [[BOS, IMAGE, *prompt, *caption, EOS]]
    assert batch["shift_labels"].tolist() == [[*caption, EOS]]
    assert batch["logits_to_keep"][0, 0] == 1 + len(prompt)


def test_text_that_looks_like_a_special_token_is_text():
    text = "an <image> of <eos> <bos>"
    batch = collate([text], ["x"])
    assert (batch["input_ids"] == IMAGE).sum(-1).tolist() == [1, 1]
    assert (batch["input_ids"][0] == EOS).sum() == 1
    tokenizer = tiny_processor(tiny_config()).tokenizer
    assert tokenizer.decode([t for t in batch["shift_labels"][0].tolist() if t >= 0], skip_special_tokens=True) == text


def test_tokenizing_captions_leaves_the_processor_as_it_was():
    processor = tiny_processor(tiny_config())
    CaptionCollator(processor, encode_nothing)([{"captions": ["an <image>"]}])
    assert processor.tokenizer("<image>", add_special_tokens=False).input_ids == [IMAGE]


@pytest.mark.parametrize("caption", ["a", "ab", "abc"])
def test_short_captions_are_learnt_whole(caption):
    batch = collate([caption])
    assert batch["shift_labels"].tolist() == [[*ids_of(caption), EOS]]


def test_a_caption_that_is_cut_has_no_end_to_learn():
    batch = collate(["abcdef"], max_caption_tokens=4)
    assert batch["shift_labels"].tolist() == [ids_of("abcd")]


@pytest.mark.parametrize("caption", ["", " ", "\n"])
def test_an_empty_caption_is_refused(caption):
    with pytest.raises(DataError, match="a caption is empty"):
        collate([caption])


def test_padding_that_is_the_end_token_is_no_target_and_one_end_is_kept():
    processor = CaptionerProcessor.from_config(
        tiny_config(text_config={"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256}),
        image_processor(),
        one_special_tokenizer(),
    )
    assert processor.tokenizer.pad_token_id == processor.tokenizer.eos_token_id == 256
    batch = CaptionCollator(processor, encode_nothing)([{"captions": ["abc"]}, {"captions": ["d"]}])
    assert batch["input_ids"][1].tolist() == [256, 257, *processor.tokenizer("d").input_ids, 256, 256, 256]
    assert (batch["shift_labels"] == 256).sum(-1).tolist() == [1, 1]
    assert (batch["shift_labels"][1] == -100).sum() == 2


def test_every_patch_has_its_placeholder():
    processor = tiny_processor(tiny_config(image_tokens="patches", image_start="learned"))
    collator = CaptionCollator(processor, encode_nothing)
    assert collator.prefix == [IMAGE] * 17


@pytest.mark.parametrize("prefix", [{}, {"layer_prefix_rank": 3}], ids=["", "layer prefix"])
def test_a_packed_row_may_be_longer_than_the_language_model(prefix):
    model = tiny_model("vit_cls", **prefix)
    processor = tiny_processor(model.config)
    collator = CaptionCollator(processor, lambda rows: {"pixel_values": pixels(1)}, max_caption_tokens=POSITIONS)
    packed, single = (collator([{"captions": ["a caption of thirty letters"] * count}]) for count in (4, 1))
    assert packed["input_ids"].shape[1] > POSITIONS
    torch.testing.assert_close(model(**packed).loss, model(**single).loss)
    with pytest.raises(ValueError, match=f"exceed the {POSITIONS - len(prefix)} positions of the gpt2"):
        model(**collator([{"captions": ["x" * POSITIONS]}]))


def test_a_caption_beyond_the_positions_is_refused_by_its_images_name():
    processor = tiny_processor(tiny_config())
    rows = [{"captions": ["yes", "no"], "questions": ["A dog?", "x" * POSITIONS], "image": "a/b.png"}]
    collator = CaptionCollator(processor, encode_nothing, prompt="{question}", positions=POSITIONS)
    with pytest.raises(DataError, match=rf"b\.png: .* are {POSITIONS + 6} tokens, .* {POSITIONS} positions: shorten"):
        collator(rows)
    with pytest.raises(DataError, match=r"b\.png"):
        collator.count_tokens(rows)
    rows[0]["questions"][1] = "x" * (POSITIONS - 6)
    assert collator(rows)["position_ids"].max() == POSITIONS - 1


@pytest.mark.parametrize("prefix", [{}, {"layer_prefix_rank": 3}], ids=["", "layer prefix"])
def test_a_row_does_not_depend_on_its_neighbours(prefix):
    model = tiny_model("vit_cls", "llama", **prefix)
    images = pixels()
    collator = CaptionCollator(
        tiny_processor(model.config), lambda rows: {"pixel_values": images[[row["image"] for row in rows]]}
    )
    short, long = {"captions": ["a b"], "image": 0}, {"captions": ["some much longer caption", "and one"], "image": 1}
    alone, both = model(**collator([short])).logits, model(**collator([short, long])).logits
    torch.testing.assert_close(both[0, : alone.shape[1]], alone[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prefix", [{}, {"layer_prefix_rank": 3}], ids=["", "layer prefix"])
def test_training_on_packed_rows_is_reproduced_by_generation(prefix):
    model = tiny_model("vit_cls", "qwen2", image_tokens="patches", image_grid=2, freeze_language=False, **prefix)
    processor = tiny_processor(model.config)
    images = pixels()
    collator = CaptionCollator(
        processor, lambda rows: {"pixel_values": images[[row["image"] for row in rows]]}, prompt="Say:"
    )
    batch = collator([{"captions": ["hi"], "image": 0}, {"captions": ["oh no"], "image": 1}])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(60):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prompts = processor.tokenizer(
        ["<bos>" + "<image>" * 4 + "Say:"] * 2, add_special_tokens=False, return_tensors="pt"
    )
    generated = model.generate(**prompts, pixel_values=images, do_sample=False, max_new_tokens=8)
    assert processor.batch_decode(generated[:, prompts.input_ids.shape[1] :], skip_special_tokens=True) == [
        " hi",
        " oh no",
    ]


# One random target a caption


def gradients(model, batch: dict) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch, num_items_in_batch=(batch["labels"] != -100).sum()).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("language", ["gpt2", "llama"])
def test_one_random_target_a_caption_has_on_average_the_gradient_of_all(language):
    model = tiny_model("vit_cls", language)
    processor, rows = tiny_processor(model.config), [{"captions": ["ab", "c"]}, {"captions": ["d"]}]

    def encode(rows: list[dict]) -> dict[str, torch.Tensor]:
        return {"pixel_values": pixels(len(rows))}

    whole = gradients(model, CaptionCollator(processor, encode)(rows))
    lengths = [[3, 2], [2]]  # with their end tokens
    draws = list(itertools.product(*(range(length) for length in itertools.chain(*lengths))))
    mean = {name: torch.zeros_like(gradient) for name, gradient in whole.items()}
    for draw in draws:
        given = iter(draw)
        collator = CaptionCollator(processor, encode, choose_targets=lambda row, own, g=given: [next(g) for _ in own])
        batch = collator(rows)
        assert (batch["shift_labels"] != -100).sum(1).tolist() == [2, 1]
        assert batch["target_weights"].tolist() == [[3, 2], [2, 0]]
        for name, gradient in gradients(model, batch).items():
            mean[name] += gradient / len(draws)
    for name, gradient in whole.items():
        torch.testing.assert_close(mean[name], gradient, rtol=1e-3, atol=1e-5)


def test_targets_are_drawn_evenly_and_by_seed_epoch_and_image():
    choice = TargetChoice(seed=3)
    row = {"image": "a.jpg"}
    drawn = []
    for epoch in range(600):
        choice.epoch = epoch
        drawn.append(choice(row, [3, 1, 5]))
        assert drawn[-1] == choice(row, [3, 1, 5])
    for number, length in enumerate([3, 1, 5]):
        counts = torch.bincount(torch.tensor([draw[number] for draw in drawn]), minlength=length)
        assert counts.min() > 0.75 * 600 / length
    assert TargetChoice(seed=4)(row, [50] * 9) != choice(row, [50] * 9) != choice({"image": "b.jpg"}, [50] * 9)
