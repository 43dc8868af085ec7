"""How captions are written: the settings of `generate` and our own, and the scores, which depend on none of them."""

import pytest
import torch
from tiny_models import picture, tiny_model, tiny_processor

from vlm_caption.captioning import generation
from vlm_caption.captioning.captioner import Captioner
from vlm_caption.captioning.consensus import DocumentFrequencies
from vlm_caption.core.errors import ConfigError, ImageError

PICTURES = [picture(number) for number in range(5)]


@pytest.fixture(scope="module")
def captioner():
    model = tiny_model("dinov2", "gpt2")
    model.generation_config.update(max_new_tokens=6, num_beams=2)
    return Captioner(model, tiny_processor(model.config))


@pytest.fixture
def writes(captioner, monkeypatch):
    """Makes the model write these texts, each with its end token if it is given one."""

    def replace(*texts: str, ended: bool = True) -> list[dict]:
        tokenizer = captioner.processor.tokenizer
        settings = captioner.model.generation_config
        end = [settings.eos_token_id] if ended else []
        rows = [[*tokenizer(text, add_special_tokens=False).input_ids, *end] for text in texts]
        length = max(map(len, rows))
        padded = torch.tensor(
            [row + [captioner.model.generation_config.pad_token_id] * (length - len(row)) for row in rows]
        )
        seen: list[dict] = []

        def generate(prompt_ids, **kwargs):
            seen.append(kwargs)
            copies = prompt_ids.repeat_interleave(len(rows) // len(prompt_ids), dim=0)
            return torch.cat([copies, padded], dim=1)

        monkeypatch.setattr(generation, "known_settings", lambda *_: None)  # so that `generate` is called
        monkeypatch.setattr(captioner.model, "generate", generate)
        return seen

    return replace


class TestSeveralCaptions:
    @pytest.mark.parametrize("settings", [{}, {"do_sample": True, "num_beams": 1, "seed": 1}])
    def test_come_one_after_the_other_for_each_picture(self, captioner, settings):
        captions = captioner.caption(PICTURES[:2], num_return_sequences=3, **settings)
        assert len(captions) == 6
        assert len({caption.image for caption in captions}) == 1  # pictures without a name
        alone = [captioner.caption(image, num_return_sequences=3, **settings) for image in PICTURES[:2]]
        if not settings:
            assert [caption.text for caption in captions] == [caption.text for part in alone for caption in part]

    def test_have_the_scores_that_each_has_alone(self, captioner, writes):
        writes("a dog", "two cats run", "one")
        together = captioner.caption(PICTURES[0], num_return_sequences=3)
        for caption in together:
            writes(caption.text)
            [alone] = captioner.caption(PICTURES[0], do_sample=True, temperature=2.0)
            assert alone.score == pytest.approx(caption.score, abs=1e-4)

    def test_have_the_scores_of_their_own_picture(self, captioner, writes):
        writes("a dog", "a dog")
        for images in (PICTURES[:2], PICTURES[1::-1]):
            writes(*["a dog"] * 4)
            several = [caption.score for caption in captioner.caption(images, num_return_sequences=2)]
            writes(*["a dog"] * 2)
            single = [caption.score for caption in captioner.caption(images)]
            assert several == pytest.approx([score for score in single for _ in range(2)], abs=1e-4)

    def test_need_as_many_beams_or_sampling(self, captioner):
        assert len(captioner.caption(PICTURES[0], num_return_sequences=4)) == 4
        with pytest.raises(ValueError, match="3 captions of an image need at least 3 beams, or sampling"):
            captioner.caption(PICTURES[0], num_return_sequences=3, num_beams=2)


class TestSeveralPrompts:
    def test_give_the_captions_of_each_alone_and_encode_the_picture_once(self, captioner, monkeypatch):
        prompts = ["", "A photo of", "In the picture: "]
        alone = [captioner.caption(PICTURES, prompt=prompt) for prompt in prompts]
        rows = []
        encode = captioner.model.core.encode_images
        monkeypatch.setattr(
            captioner.model.core, "encode_images", lambda pixels: (rows.append(len(pixels)), encode(pixels))[1]
        )
        together = captioner.caption(PICTURES, prompt=prompts, batch_size=2)
        assert sum(rows) == len(PICTURES)
        assert [caption.prompt for caption in together[:3]] == prompts
        for place, captions in enumerate(alone):
            own = together[place::3]
            assert [caption.text for caption in own] == [caption.text for caption in captions]
            expected = [caption.score for caption in captions]
            assert [caption.score for caption in own] == pytest.approx(expected, abs=1e-4)

    def test_and_questions_are_asked_of_each_picture(self, captioner):
        prompts = ["Q: {question} A:", "A photo of"]
        captions = captioner.caption(PICTURES[:2], prompt=prompts, question=[["What?", "Why?"], ["Who?"]])
        names = ["Q: What? A:", "Q: Why? A:", "A photo of", "Q: Who? A:", "A photo of"]
        assert [caption.prompt for caption in captions] == names
        [alone] = captioner.caption(PICTURES[0], prompt=prompts[0], question="Why?")
        assert (alone.text, alone.prompt) == (captions[1].text, "")

    def test_with_several_captions_come_in_order(self, captioner):
        captions = captioner.caption(PICTURES[0], prompt=["a", "b"], num_return_sequences=2)
        assert [caption.prompt for caption in captions] == ["a", "a", "b", "b"]

    @pytest.mark.parametrize("settings", [{"prompt": []}, {"prompt": "{question}", "question": [[]]}])
    def test_are_at_least_one(self, captioner, settings):
        with pytest.raises(ValueError, match="Give at least one prompt, and at least one question"):
            captioner.caption(PICTURES[0], **settings)


class TestConsensus:
    FREQUENCIES = DocumentFrequencies.count([["a dog runs"], ["a cat sits"], ["a man stands"], ["a tree grows"]] * 5)

    def test_keeps_the_caption_that_agrees_most_with_the_others(self, captioner, writes):
        texts = [
            "a cat sits",
            "a dog runs",
            "the dog runs",
            "a dog runs here",
            "tree tree",
            "a man stands",
            "the man stands",
            "a man stands here",
        ]
        writes(*texts)
        captions = captioner.caption(PICTURES[:2], consensus=4, document_frequencies=self.FREQUENCIES)
        assert [caption.text for caption in captions] == ["a dog runs", "a man stands"]
        writes(*texts)
        every = captioner.caption(PICTURES[:2], num_return_sequences=4)
        assert captions[1].score == pytest.approx(every[5].score, abs=1e-4)

    def test_writes_as_many_captions_by_beams_or_by_sampling(self, captioner, writes):
        for settings, beams in (({}, 3), ({"do_sample": True, "num_beams": 1}, 1)):
            seen = writes("a", "b", "c")
            captioner.caption(PICTURES[0], consensus=3, document_frequencies=self.FREQUENCIES, **settings)
            assert (seen[0]["num_return_sequences"], seen[0]["num_beams"]) == (3, beams)

    def test_keeps_several_captions_the_best_first(self, captioner, writes):
        texts = ["a cat sits", "a dog runs", "the dog runs", "a dog runs here"]
        writes(*texts)
        captions = captioner.caption(
            PICTURES[0], consensus=4, num_return_sequences=2, document_frequencies=self.FREQUENCIES
        )
        ranked = [texts[place] for place in self.FREQUENCIES.rank(texts)]
        assert [caption.text for caption in captions] == ranked[:2] != texts[:2]

    def test_keeps_no_more_captions_than_it_writes(self, captioner):
        with pytest.raises(ValueError, match="consensus 2 writes too few captions to keep 3 of them: raise it"):
            captioner.caption(PICTURES[0], consensus=2, num_return_sequences=3)

    def test_needs_frequencies(self, captioner):
        with pytest.raises(ConfigError, match=r"There is no document_frequencies\.json beside the checkpoint"):
            captioner.caption(PICTURES[0], consensus=3)


class TestSampling:
    def test_is_the_same_with_the_same_seed_and_leaves_chance_alone(self, captioner):
        settings = {"do_sample": True, "num_beams": 1, "temperature": 3.0}
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        first, second = (captioner.caption(PICTURES, seed=5, **settings) for _ in range(2))
        assert torch.rand(1) == expected
        assert first == second
        assert first != captioner.caption(PICTURES, seed=6, **settings)


class TestCutting:
    def test_a_stop_text_ends_a_caption_and_is_not_part_of_it(self, captioner, writes):
        writes("A dog. It runs")
        [caption] = captioner.caption(PICTURES[0], stop=". ")
        assert (caption.text, caption.finished) == ("A dog", True)
        writes("A dog.", ended=False)
        [shorter] = captioner.caption(PICTURES[0], stop=["never"])
        assert (shorter.text, shorter.finished) == ("A dog.", False)
        assert caption.score == pytest.approx(shorter.score, abs=1e-4)  # of the same tokens

    def test_captions_have_no_more_words_than_that(self, captioner, writes):
        writes("one two three four")
        [caption] = captioner.caption(PICTURES[0], max_words=2)
        assert (caption.text, caption.finished) == ("one two", False)
        [whole] = captioner.caption(PICTURES[0], max_words=4)
        assert (whole.text, whole.finished) == ("one two three four", True)

    def test_a_caption_that_the_length_cuts_is_not_finished(self, captioner, writes):
        writes("A dog", ended=False)
        assert [caption.finished for caption in captioner.caption(PICTURES[0])] == [False]

    def test_transformers_stop_strings_are_kept_in_the_caption(self, captioner, writes):
        seen = writes("A dog. It", "Two cats")
        captions = captioner.caption(PICTURES[:2], stop_strings=["."])
        assert seen[0]["tokenizer"] is captioner.processor.tokenizer
        assert [caption.finished for caption in captions] == [True, True]
        writes("A dog.", ended=False)
        [alone] = captioner.caption(PICTURES[0])
        assert captions[0].score == pytest.approx(alone.score, abs=1e-4)


def test_banned_words_are_banned_at_the_beginning_and_inside(captioner, writes):
    seen = writes("a")
    captioner.caption(PICTURES[0], ban=["dog"])
    tokenizer = captioner.processor.tokenizer
    expected = [tokenizer(text, add_special_tokens=False).input_ids for text in ("dog", " dog")]
    assert seen[0]["bad_words_ids"] == expected
    captioner.model.generation_config.bad_words_ids = [[7]]
    captioner.caption(PICTURES[0], ban=["dog"])
    assert seen[1]["bad_words_ids"] == [[7], *expected]


@pytest.mark.parametrize(
    "settings", [{"max_words": 0}, {"num_return_sequences": 0}, {"stop": " "}, {"ban": ["a", ""]}]
)
def test_settings_out_of_range_are_refused(captioner, settings):
    with pytest.raises(ValueError, match="at least"):
        captioner.caption_each(PICTURES, **settings)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_batch_that_does_not_fit_into_memory_is_captioned_in_halves(captioner, monkeypatch, error):
    sizes = []
    encode = captioner.model.core.encode_images

    def limited(pixel_values):
        sizes.append(len(pixel_values))
        if len(pixel_values) > 2:
            raise error
        return encode(pixel_values)

    expected = captioner.caption(PICTURES)
    monkeypatch.setattr(captioner.model.core, "encode_images", limited)
    assert [caption.text for caption in captioner.caption(PICTURES)] == [caption.text for caption in expected]
    assert sizes == [5, 2, 3, 1, 2]
    monkeypatch.setattr(captioner.model.core, "encode_images", lambda pixel_values: _raise(error))
    assert [type(result) for result in captioner.caption_each(PICTURES[:2])] == [ImageError] * 2


def _raise(error):
    raise error


def test_batches_of_the_caller_are_kept(captioner):
    [two, none, three] = captioner.caption_batches([PICTURES[:2], [], PICTURES[2:]])
    assert (len(two), len(none), len(three)) == (2, 0, 3)
    expected = captioner.caption(PICTURES)
    assert [caption.text for captions in (*two, *three) for caption in captions] == [c.text for c in expected]
