"""The loops that train_throughput.py times: this package's, and others as their projects describe them.

Every loop trains a small network in front of the same frozen language model, of random weights, on the same captions.
A loop is a function that gets the language model's name, sets everything up, and returns `step`: it makes one step of
the optimiser and returns how many captions that trained on.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from vlm_caption import CaptionerConfig, CaptionerForConditionalGeneration, CaptionerProcessor
from vlm_caption.config.run_config import RunConfig
from vlm_caption.data.captions import CaptionChoice
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.features.inputs import with_index
from vlm_caption.towers.precision import choose_kernels, hold_frozen
from vlm_caption.training.data import TrainingData
from vlm_caption.training.launch import open_accelerator
from vlm_caption.training.loop import TrainingLoop
from vlm_caption.training.stages import Stage

Step = Callable[[], int]

# DINOv2 ViT-S/14, as in configs/embedded.yaml.
VISION: dict[str, Any] = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
}
IMAGE = {"image_size": 224, "patch_size": 14}
VISION_WIDTH = VISION["hidden_size"]

# How many of Flickr8k's 30,000 captions for training have 3, 4, … 44 tokens of SmolLM2, end token included.
LENGTH_COUNTS = (
    *(4, 17, 97, 315, 698, 1573, 2208, 2536, 2979, 2972, 3165, 2796, 2529, 2062, 1592, 1214, 903, 702, 473, 375, 231),
    *(164, 117, 83, 56, 44, 32, 24, 6, 7, 7, 6, 5, 2, 3, 0, 2, 0, 0, 0, 0, 1),
)
IMAGES = 1024
CAPTIONS_AN_IMAGE = 5
IMAGES_A_BATCH = 8
CAPTIONS_A_BATCH = IMAGES_A_BATCH * CAPTIONS_AN_IMAGE  # 40, ClipCap's own batch size


def language_config(name: str) -> PreTrainedConfig:
    """GPT-2 small's dimensions, or SmolLM2-135M's."""
    if name == "gpt2":
        return GPT2Config(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def draw_lengths() -> np.ndarray:
    """Tokens of each caption, end token included, int [IMAGES, CAPTIONS_AN_IMAGE]; the same in every loop."""
    shares = np.array(LENGTH_COUNTS) / sum(LENGTH_COUNTS)
    draw = np.random.default_rng(0)
    return draw.choice(np.arange(3, 3 + len(shares)), (IMAGES, CAPTIONS_AN_IMAGE), p=shares)


def caption_rows() -> Iterator[torch.Tensor]:
    """Token ids of one caption after the other, without end, in random order; int64 [T]."""
    lengths = draw_lengths().flatten()
    draw = np.random.default_rng(1)
    while True:
        for length in draw.permutation(lengths):
            yield torch.from_numpy(draw.integers(3, 40_000, length))


def build_captioner(language: str) -> tuple[CaptionerForConditionalGeneration, CaptionerProcessor]:
    """A captioner of these dimensions, with 4 × 4 image tokens and a tokenizer that makes one token of a word."""
    text = language_config(language)
    vocabulary = {"<bos>": 0, "<eos>": 1, "<pad>": 2} | {f"w{number}": number for number in range(3, text.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    config = CaptionerConfig(
        vision_config={**VISION, **IMAGE}, text_config=text.to_dict(), image_tokens="patches", image_grid=4
    )
    torch.manual_seed(0)
    model = CaptionerForConditionalGeneration(config)
    pictures = BitImageProcessorPil(size={"height": 224, "width": 224}, do_center_crop=False)
    return model, CaptionerProcessor.from_config(config, pictures, fast)


def build_collator(processor: CaptionerProcessor, tokens: int = 16) -> CaptionCollator:
    """Batches with random features in place of the images'."""
    features = torch.randn(IMAGES, tokens, VISION_WIDTH)
    return CaptionCollator(processor, lambda rows: {"image_features": features[[row["index"] for row in rows]]})


def caption_texts() -> list[list[str]]:
    """Captions as text: words that are one token each."""
    draw = np.random.default_rng(2)
    return [
        [" ".join(f"w{word}" for word in draw.integers(3, 40_000, length - 1)) for length in image]
        for image in draw_lengths()
    ]


def ours(language: str) -> Step:
    """This package's training, through its own loop: packed, of like length, in the precision that pays here."""
    model, processor = build_captioner(language)
    settings = {"batch_size": IMAGES_A_BATCH, "max_steps": 10**6, "logging_steps": 10**6}
    settings |= {"eval_steps": 10**6, "save_steps": 10**6}
    config = RunConfig.load(None, {f"training.{name}": value for name, value in settings.items()})
    hold_frozen(model, "auto")
    choose_kernels(model, compiled=False)
    collator = build_collator(processor)
    dataset = with_index(Dataset.from_dict({"image": [""] * IMAGES, "captions": caption_texts()}))
    data = TrainingData(dataset, dataset, collator, collator, CaptionChoice())
    stage = Stage(1, None, config.training, is_last=True)
    steps = TrainingLoop(stage, model, processor, data, open_accelerator(config.training)).steps()

    def step() -> int:
        next(steps)
        return CAPTIONS_A_BATCH

    return step


def unpacked(language: str) -> Step:
    """The same model, one caption a row behind its own 16 image tokens, padded to the longest of the batch."""
    model, processor = build_captioner(language)
    hold_frozen(model, "auto")
    collator = build_collator(processor)
    texts = caption_texts()
    rows = itertools.cycle(
        {"index": image, "captions": [text]} for image, captions in enumerate(texts) for text in captions
    )
    optimizer = torch.optim.AdamW(model.core.multi_modal_projector.parameters(), lr=1e-4)

    def step() -> int:
        model(**collator(list(itertools.islice(rows, CAPTIONS_A_BATCH)))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return CAPTIONS_A_BATCH

    return step


def clipcap(language: str, bf16: bool = False) -> Step:
    """ClipCap's loop (rmokady/CLIP_prefix_caption, train.py): the image's cached pooled feature becomes 10 prefix
    tokens; one caption a row, padded to 40; logits at all positions; fp32, or bf16 autocast.

    Its own code also lets the frozen language model's weights collect gradients that are never used; here they do not.
    """
    prefix_length, width = 10, 40
    config = language_config(language)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    embedding = model.get_input_embeddings()
    hidden = config.hidden_size * prefix_length
    project = nn.Sequential(nn.Linear(VISION_WIDTH, hidden // 2), nn.Tanh(), nn.Linear(hidden // 2, hidden))
    optimizer = torch.optim.AdamW(project.parameters(), lr=1e-4)
    captions = caption_rows()

    def step() -> int:
        tokens = torch.zeros(CAPTIONS_A_BATCH, width, dtype=torch.long)
        mask = torch.zeros(CAPTIONS_A_BATCH, prefix_length + width)
        mask[:, :prefix_length] = 1
        for row, ids in enumerate(itertools.islice(captions, CAPTIONS_A_BATCH)):
            ids = ids[:width]
            tokens[row, : len(ids)] = ids
            mask[row, prefix_length : prefix_length + len(ids)] = 1
        features = torch.randn(CAPTIONS_A_BATCH, VISION_WIDTH)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            prefix = project(features).view(CAPTIONS_A_BATCH, prefix_length, -1)
            inputs = torch.cat([prefix, embedding(tokens)], dim=1)
            logits = model(inputs_embeds=inputs, attention_mask=mask, use_cache=False).logits[
                :, prefix_length - 1 : -1
            ]
            loss = nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens.flatten(), ignore_index=0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return CAPTIONS_A_BATCH

    return step


def clipcap_bf16(language: str) -> Step:
    """`clipcap` in bf16 autocast."""
    return clipcap(language, bf16=True)


def tutorial(language: str) -> Step:
    """A tutorial's loop (alexander-moore/vlm): in every step the vision tower sees one image, all its tokens are
    projected, and the loss is that of one random next token of one caption; fp32. The tower is that of the other loops
    (the tutorial's own, ViT-B/16, is larger), and pictures are already decoded.
    """
    config = language_config(language)
    torch.manual_seed(0)
    tower = AutoModel.from_config(AutoConfig.for_model(**VISION, **IMAGE))  # 257 tokens
    tower.requires_grad_(False).eval()
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    embedding = model.get_input_embeddings()
    project = nn.Linear(VISION_WIDTH, config.hidden_size)
    optimizer = torch.optim.AdamW(project.parameters(), lr=1e-4)
    captions = caption_rows()
    query = torch.arange(3, 9)  # "This image contains: "
    draw = np.random.default_rng(3)

    def step() -> int:
        ids = next(captions)
        cut = int(draw.integers(1, len(ids)))
        with torch.no_grad():
            patches = tower(torch.randn(1, 3, 224, 224)).last_hidden_state
        text = embedding(torch.cat([query, ids[:cut]])[None])
        logits = model(inputs_embeds=torch.cat([project(patches), text], dim=1), use_cache=False).logits[:, -1]
        nn.functional.cross_entropy(logits, ids[cut : cut + 1]).backward()
        optimizer.step()
        optimizer.zero_grad()
        return 1

    return step


LOOPS: dict[str, Callable[[str], Step]] = {
    "ours": ours,
    "clipcap_fp32": clipcap,
    "clipcap_bf16": clipcap_bf16,
    "unpacked_16_tokens": unpacked,
    "tutorial": tutorial,
}
