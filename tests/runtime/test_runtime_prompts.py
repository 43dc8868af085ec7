"""Token ids of prompts: those of the checkpoint's processor."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import BOS, EOS, IMAGE, tiny_config, tiny_processor
from tokenizers import Tokenizer

from vlm_caption.export.settings import prompt_settings
from vlm_caption.runtime.prompts import PromptEncoder, PromptSettings

PROMPTS = ["", "A photo of", "<image>", "Look: <image> What is it?", "Q: {question} A:", "<image>{question}"]
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def encoder_of(processor):
    tokenizer = Tokenizer.from_str(processor.tokenizer.backend_tokenizer.to_str())
    return PromptEncoder(tokenizer, PromptSettings(**prompt_settings(processor)))


def expected(processor, question, prompt, examples):
    head, [tail] = processor.encode_prompts([question], prompt, examples)
    return head + tail


TEXTS = st.one_of(st.text(min_size=1).filter(str.strip), st.sampled_from(["<image>", "</s> x", "<s>", "a <pad>"]))


@pytest.mark.parametrize("own", ["", "Describe it.", "<image> Q: {question} A:"])
@pytest.mark.parametrize("prompt", PROMPTS)
@given(question=TEXTS, answers=st.lists(TEXTS, max_size=2))
@settings(max_examples=25, deadline=None)
def test_ids_are_those_of_the_processor(own, prompt, question, answers):
    processor = tiny_processor(tiny_config(language="llama"))
    processor.prompt = own
    asked = question if "{question}" in (prompt or own) else None
    examples = [(asked, answer) for answer in answers]
    assert encoder_of(processor).encode(asked, prompt, examples) == expected(processor, asked, prompt, examples)


def test_a_captioner_without_a_start_token_encodes_alike():
    config = tiny_config(language="gpt2", image_start="none")
    processor = tiny_processor(config)
    assert encoder_of(processor).encode(None, "A", []) == expected(processor, None, "A", [])


@pytest.mark.parametrize(("image_start", "empty"), [("bos", BOS), ("none", EOS)])
def test_a_prompt_of_an_image_alone_leaves_one_token(image_start, empty):
    encoder = encoder_of(tiny_processor(tiny_config(language="llama", image_start=image_start)))
    assert encoder.without_images([IMAGE] * 4) == [empty]
    assert encoder.without_images([5, IMAGE, IMAGE, 6]) == [5, 6]


def test_the_prompt_of_a_chat_is_the_one_that_it_was_trained_with():
    processor = tiny_processor(tiny_config(language="llama"))
    processor.chat, processor.tokenizer.chat_template = True, TEMPLATE
    processor.prompt = "{question}"
    encoder = encoder_of(processor)
    assert encoder.encode("What is it?", "", []) == expected(processor, "What is it?", "", [])
    with pytest.raises(ValueError, match="no other prompt"):
        encoder.encode("What is it?", "Another: {question}", [])


def test_questions_and_prompts_must_fit():
    encoder = encoder_of(tiny_processor(tiny_config(language="llama")))
    with pytest.raises(ValueError, match="no question to fill it"):
        encoder.encode(None, "{question}", [])
    with pytest.raises(ValueError, match="no place for a question"):
        encoder.encode("What?", "", [])
    with pytest.raises(ValueError, match="cannot be filled"):
        encoder.encode(None, "{name}", [])
