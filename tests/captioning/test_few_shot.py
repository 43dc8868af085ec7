"""Several images in one prompt: image, caption, image, caption, image →."""

import pytest
import torch
from commands import load_script
from tiny_models import EOS, IMAGE, PAD, picture, pixels, save_checkpoint, tiny_model, tiny_processor

from vlm_caption import Captioner, CaptionerForConditionalGeneration, CaptionerProcessor

EXAMPLES = [(picture(5), "a red dog"), (picture(6), "two boats")]


@pytest.fixture(scope="module")
def model() -> CaptionerForConditionalGeneration:
    model = tiny_model("vit_cls", "gpt2", image_tokens="patches", image_grid=2)
    model.generation_config.update(max_new_tokens=5, min_new_tokens=5, do_sample=False)
    return model


@pytest.fixture(scope="module")
def processor(model) -> CaptionerProcessor:
    return tiny_processor(model.config)


@pytest.fixture(scope="module")
def captioner(model, processor) -> Captioner:
    return Captioner(model, processor)


def logits_of(model, processor, *numbers: int) -> torch.Tensor:
    inputs = processor(images=[picture(n) for n in numbers], text="<image>a<image>b", return_tensors="pt")
    return model(**inputs).logits[0, -1]


def test_what_comes_next_depends_on_both_images_and_on_their_order(model, processor):
    expected = logits_of(model, processor, 0, 1)
    for others in ((2, 1), (0, 2), (1, 0)):
        assert (logits_of(model, processor, *others) - expected).abs().max() > 1e-3


def test_placeholders_take_their_images_in_order(model, processor):
    inputs = processor(
        images=[[picture(0), picture(1)], [picture(2)]],
        text=["a<image>b<image>c", "<image>"],
        padding=True,
        return_tensors="pt",
    )
    image_embeds = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output  # [3, 4, D_text]
    embeds = model.core.embed_inputs(inputs["input_ids"], image_embeds)
    for row, numbers in enumerate(([0, 1], [2])):
        assert embeds[row][inputs["input_ids"][row] == IMAGE].equal(image_embeds[numbers].flatten(0, 1))


def test_images_in_lists_must_be_those_of_their_rows(processor):
    with pytest.raises(ValueError, match="Prompt 0 has 1 <image> for its 2 images"):
        processor(images=[[picture(0), picture(1)], [picture(2)]], text=["<image>", "<image><image>"])


@pytest.mark.parametrize("beams", [1, 3])
def test_rows_with_different_numbers_of_images_are_generated_as_each_alone(model, processor, beams):
    rows = [("<image>One.\n<image>Two.\n<image>", [0, 1, 2]), ("<image>", [3]), ("<image>x<image>", [4, 0])]
    inputs = processor(
        images=[picture(n) for _, numbers in rows for n in numbers],
        text=[text for text, _ in rows],
        padding=True,
        return_tensors="pt",
    )
    assert inputs["input_ids"][1, 0] == PAD
    together = model.generate(**inputs, num_beams=beams)[:, inputs["input_ids"].shape[1] :]
    for row, (text, numbers) in enumerate(rows):
        inputs = processor(images=[picture(n) for n in numbers], text=text, return_tensors="pt")
        assert model.generate(**inputs, num_beams=beams)[0, inputs["input_ids"].shape[1] :].equal(together[row])


def test_a_few_shot_caption_is_the_forward_passs_argmax(captioner, model, processor):
    [caption] = captioner.caption(picture(1), prompt="<image>Text:", examples=EXAMPLES)
    text = "<image>Text: a red dog\n<image>Text: two boats\n<image>Text:"
    inputs = processor(images=[picture(5), picture(6), picture(1)], text=text, return_tensors="pt")
    ids = inputs["input_ids"]
    for _ in range(5):
        logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1]
        logits[EOS] = -torch.inf
        ids = torch.cat([ids, logits.argmax()[None, None]], dim=1)
    new_ids = ids[0, inputs["input_ids"].shape[1] :]
    assert caption.text == " ".join(processor.decode(new_ids, skip_special_tokens=True).split())
    assert caption.text != captioner.caption(picture(1), prompt="<image>Text:")[0].text


def test_a_batch_of_few_shot_captions_is_what_each_is_alone(captioner):
    images = [picture(n) for n in range(3)]
    together = captioner.caption(images, examples=EXAMPLES, num_beams=2)
    alone = [captioner.caption(image, examples=EXAMPLES, num_beams=2)[0] for image in images]
    assert [caption.text for caption in together] == [caption.text for caption in alone]
    assert [caption.score for caption in together] == pytest.approx([c.score for c in alone], abs=1e-4)


def test_each_picture_may_have_its_question(captioner):
    images, questions = [picture(0), picture(1)], ["What?", "How many of them are there?"]
    together = captioner.caption(images, prompt="{question} It is", question=questions)
    alone = [
        captioner.caption(image, prompt="{question} It is", question=question)[0]
        for image, question in zip(images, questions, strict=True)
    ]
    assert [caption.text for caption in together] == [caption.text for caption in alone]
    assert [caption.score for caption in together] == pytest.approx([c.score for c in alone], abs=1e-4)
    assert together[0].text != captioner.caption(images[0], prompt="{question} It is", question="Why?")[0].text


def test_examples_of_questions_have_questions(captioner, processor):
    examples = [(picture(5), "What?", "a dog")]
    assert captioner.caption(picture(1), prompt="{question}", question="Who?", examples=examples)
    with pytest.raises(ValueError, match="there is no question to fill it in example 1: give one"):
        captioner.caption(picture(1), prompt="{question}", question="Who?", examples=EXAMPLES)


def test_questions_that_are_not_as_many_as_the_pictures_are_refused(captioner):
    for questions in (["A?"], ["A?", "B?", "C?"]):
        with pytest.raises(ValueError, match="not as many questions as inputs"):
            captioner.caption([picture(0), picture(1)], prompt="{question}", question=questions)


def test_the_command_shows_examples(tmp_path, capsys):
    caption = load_script("caption")
    folder = save_checkpoint(tmp_path, pictures=3)
    arguments = ["--checkpoint", str(folder), str(folder / "2.png")]
    for number, text in ((0, "a cat"), (1, "a dog")):
        arguments += ["--example", str(folder / f"{number}.png"), text]
    assert caption.main(arguments) == 0
    captioner = Captioner.from_pretrained(folder, device="cpu")
    examples = [(folder / "0.png", "a cat"), (folder / "1.png", "a dog")]
    assert capsys.readouterr().out.strip() == captioner.caption(folder / "2.png", examples=examples)[0].text


def test_features_of_several_images_serve_in_place_of_their_pixels(model):
    features = model.core.encode_images(pixels(2)).pooler_output
    ids = torch.tensor([[1, *[IMAGE] * 4, 20, *[IMAGE] * 4]])
    expected = model(input_ids=ids, pixel_values=pixels(2)).logits
    torch.testing.assert_close(model(input_ids=ids, image_features=features).logits, expected)


@pytest.mark.parametrize("example", [(), (picture(5),), (picture(5), "a", "b", "c"), (picture(5), 7)])
def test_an_example_is_a_picture_with_its_caption_or_with_question_and_answer(captioner, example):
    with pytest.raises(ValueError, match="An example is a picture and its caption, or"):
        captioner.caption(picture(0), examples=[example])
