"""Sequences written over NumPy: token for token those of transformers' `generate`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import EOS, IMAGE, PAD, TEXT_WIDTH, tiny_model

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from vlm_caption.captioning.decoding import write
from vlm_caption.captioning.rules import DecodingSettings
from vlm_caption.export.folder import save_graph
from vlm_caption.export.language import build_language_graph
from vlm_caption.runtime.graphs import LanguageGraph

PROMPTS = [[1, IMAGE, IMAGE, 40, 41], [1, IMAGE, IMAGE], [1, 50, IMAGE, IMAGE]]
IMAGES = torch.randn(3, 2, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))

# With many end tokens, so that sequences of a random model end.
ENDS = [EOS, *range(10, 60)]


class Written:
    """A random language model, and the graph made from it."""

    def __init__(self, family: str, folder: Path, **fields) -> None:
        self.core = tiny_model(language=family, text_config=fields).core
        self.core.language_model.generation_config.update(eos_token_id=None, pad_token_id=PAD)
        save_graph(build_language_graph(self.core, int8=False), folder / "language.onnx")
        past = self.core.config.text_config
        heads = getattr(past, "num_key_value_heads", past.num_attention_heads)
        cache = {"layers": 2, "heads": heads, "width": TEXT_WIDTH // past.num_attention_heads}
        self.graph = LanguageGraph(folder / "language.onnx", 1, cache)

    def by_numpy(self, **settings):
        settings = DecodingSettings(eos_token_id=ENDS, max_new_tokens=12).updated(settings)
        rows = self.graph.start(PROMPTS, IMAGES.numpy())
        written = write(rows, len(PROMPTS), settings, np.random.default_rng(0))
        return [sequence for sequences in written for sequence in sequences]

    def by_transformers(self, **settings):
        # transformers 5.24 spares as many tokens from the penalty as there is padding before the prompt.
        size = 1 if "repetition_penalty" in settings else len(PROMPTS)
        return [
            row
            for start in range(0, len(PROMPTS), size)
            for row in self._generate(PROMPTS[start : start + size], IMAGES[start : start + size], settings)
        ]

    @torch.no_grad()
    def _generate(self, prompts, images, settings):
        length = max(map(len, prompts))
        ids = torch.tensor([[PAD] * (length - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        new = self.core.language_model.generate(
            inputs_embeds=self.core.embed_inputs(ids, images),
            attention_mask=mask,
            **({"eos_token_id": ENDS, "max_new_tokens": 12, "do_sample": False} | settings),
        )
        return [up_to_the_end(row) for row in new.tolist()]


def up_to_the_end(ids):
    end = next((place for place, token in enumerate(ids) if token in ENDS), len(ids) - 1)
    return ids[: end + 1]


@pytest.fixture(scope="module", params=["llama", "gpt2", "llama, grouped"])
def model(request, tmp_path_factory):
    family, _, kind = request.param.partition(", ")
    grouped = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}
    return Written(family, tmp_path_factory.mktemp("graph"), **(grouped if kind else {}))


BEAMS = [
    {"num_beams": 3},
    {"num_beams": 5, "num_return_sequences": 3},
    {"num_beams": 3, "length_penalty": 2.0},
    {"num_beams": 3, "length_penalty": -1.0},
    {"num_beams": 4, "early_stopping": True},
    {"num_beams": 4, "early_stopping": "never", "length_penalty": 0.5},
]
RULES = [
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 6},
    {"bad_words_ids": [[65], [100, 101], [200]]},
]


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_new_tokens": 1}, {"eos_token_id": EOS}, *BEAMS, *RULES, *({"num_beams": 3, **rule} for rule in RULES)],
    ids=str,
)
def test_sequences_are_those_of_transformers(model, settings):
    ours = model.by_numpy(**settings)
    theirs = model.by_transformers(**settings)
    if "eos_token_id" in settings:  # nothing else ends a sequence
        theirs = [row[: row.index(EOS) + 1] if EOS in row else row for row in theirs]
        ours_ids = [up_to_the_end(sequence.ids) for sequence in ours]
        assert ours_ids == theirs
    else:
        assert [sequence.ids for sequence in ours] == theirs


def test_a_token_has_the_log_probability_that_the_model_gives_it(model):
    for settings in ({}, {"num_beams": 3}, {"repetition_penalty": 1.7}, {"do_sample": True, "top_k": 5}):
        for prompt, images, sequence in zip(PROMPTS, IMAGES, model.by_numpy(**settings), strict=True):
            ids = torch.tensor([prompt + sequence.ids])
            with torch.no_grad():
                embeds = model.core.embed_inputs(ids, images[None])
                logits = model.core.language_model(inputs_embeds=embeds).logits
            log_probs = logits.log_softmax(-1)[0, len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])
            assert sequence.log_probs == pytest.approx(log_probs[:, 0].tolist(), abs=1e-4)


def test_a_row_is_written_alike_alone_and_beside_others(model):
    together = model.by_numpy(num_beams=3)
    for prompt, images, sequence in zip(PROMPTS, IMAGES, together, strict=True):
        settings = DecodingSettings(eos_token_id=ENDS, max_new_tokens=12, num_beams=3)
        rows = model.graph.start([prompt], images[None].numpy())
        [[alone]] = write(rows, 1, settings, np.random.default_rng(0))
        assert alone.ids == sequence.ids


def test_sampling_draws_tokens_as_often_as_they_are_likely(model):
    with torch.no_grad():
        embeds = model.core.embed_inputs(torch.tensor([PROMPTS[1]]), IMAGES[1:2])
        logits = model.core.language_model(inputs_embeds=embeds).logits[0, -1]
    shares = (logits / 2).softmax(0).topk(5)
    expected = (shares.values / shares.values.sum()).tolist()
    settings = DecodingSettings(do_sample=True, temperature=2.0, top_k=5, max_new_tokens=1, num_return_sequences=2000)
    rows = model.graph.start([PROMPTS[1]], IMAGES[1:2].numpy())
    [drawn] = write(rows, 1, settings, np.random.default_rng(0))
    for token, share in zip(shares.indices.tolist(), expected, strict=True):
        assert sum(sequence.ids == [token] for sequence in drawn) / 2000 == pytest.approx(share, abs=0.04)


def test_the_same_seed_draws_the_same_tokens(model):
    first, second = (model.by_numpy(do_sample=True, num_return_sequences=2) for _ in range(2))
    assert [sequence.ids for sequence in first] == [sequence.ids for sequence in second]
    assert first[0].ids != first[1].ids
