"""Writes captions: the one place that chooses how tokens are found, calls `generate`, and decodes the tokens."""

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import nn

from ..data.collator import CaptionCollator
from ..model.loss import IGNORE_INDEX
from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.composition import MAX_NEW_TOKENS
from ..towers.processor import CaptionerProcessor
from .caption import TextSettings, check_settings, complete_arguments, cut, first_place
from .consensus import checkpoint_frequencies
from .picture_vectors import picture_vectors, vector_kind
from .stepwise import known_settings, write_stepwise


@dataclass(frozen=True)
class GenerationSettings(TextSettings):
    """How captions are written. Without a seed, sampling uses torch's global generator.

    Attributes:
        generate: Arguments of transformers' `generate`, in place of the checkpoint's `generation_config.json`.

    Raises:
        ValueError: A setting is out of range.
    """

    generate: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_settings({**self.generate, **vars(self)}.get, (*self.stop, *self.ban))

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "GenerationSettings":
        """Returns the settings that keyword arguments give: those of this class, and the rest for `generate`.

        Args:
            arguments: Arguments of [`Captioner.caption_each`]. Those that are None count as not given. `stop` and
                `ban` are a text or several, and `datastore` may be its folder.

        Raises:
            DataError: The folder has no datastore.
            ValueError: A setting is out of range.
        """
        given = complete_arguments({name: value for name, value in arguments.items() if value is not None})
        names = {setting.name for setting in fields(cls)} - {"generate"}
        own = {name: given.pop(name) for name in names & given.keys()}
        return cls(given, **own)


@dataclass(frozen=True)
class Generation:
    """The captions of a batch.

    Attributes:
        token_ids: Prompts and captions, int64 [R, P + M]; R is the number of captions of the batch.
        prompt_mask: 0 at the padding of a prompt, int64 [R, P].
        is_caption: Which of the M new tokens belong to the caption, including its end token; bool [R, M].
        texts: The captions, each in one line.
        finished: Whether each caption came to its end and was not cut at the maximum length.
        log_probs: The log-probability that the model gives each new token, in nats, float32 [R, M], 0 behind the
            captions' ends; None where the captions were written without.
    """

    token_ids: torch.Tensor
    prompt_mask: torch.Tensor
    is_caption: torch.Tensor
    texts: list[str]
    finished: list[bool]
    log_probs: torch.Tensor | None = None

    @property
    def new_ids(self) -> torch.Tensor:
        """The new tokens, int64 [R, M], padded on the right."""
        return self.token_ids[:, self.prompt_mask.shape[1] :]


def generate(
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    prompts: Sequence[list[int]],
    images: Mapping[str, Any],
    settings: GenerationSettings,
) -> Generation:
    """Writes the captions of a batch.

    Args:
        model: The model, in eval mode.
        processor: The model's processor.
        prompts: The token ids of each prompt.
        images: `image_features` or `pixel_values` of all images of the prompts, in order.
        settings: How the captions are written.

    Returns:
        One caption for each prompt; with `num_return_sequences`, that many for each prompt, one after the other.

    Raises:
        ValueError: The settings do not go together.
        ConfigError, DataError: The checkpoint has no document frequencies for a consensus.
    """
    inputs = processor.tokenizer.pad({"input_ids": list(prompts)}, return_tensors="pt").to(model.device)  # on the left
    arguments = _complete(model, processor, settings)
    if settings.datastore is not None and "image_features" not in images:  # encoded once, for both
        images = {"image_features": model.core.encode_images(images["pixel_values"])["pooler_output"]}
    rank = _ranking(model, images, len(prompts), settings)
    new_ids, log_probs = write_tokens(model, inputs, images, arguments, settings.seed)
    is_end, is_caption = find_ends(model, new_ids, arguments)
    texts = processor.batch_decode(new_ids, skip_special_tokens=True)
    finished = is_end.any(dim=1).tolist()
    stop_strings = arguments.get("stop_strings") or ()
    stop_strings = (stop_strings,) if isinstance(stop_strings, str) else stop_strings
    for row in range(len(texts)) if stop_strings or settings.stop or settings.max_words else ():
        lengths = range(1, new_ids.shape[1] + 1)
        starts = [processor.decode(new_ids[row, :length], skip_special_tokens=True) for length in lengths]
        # After a stop string comes padding, which may look like an end token.
        is_caption[row, 1 + first_place(starts, lambda start: any(stop in start for stop in stop_strings)) :] = False
        finished[row] |= any(stop in texts[row] for stop in stop_strings)
        if shortened := cut(texts[row], settings.stop, settings.max_words):
            texts[row], finished[row] = shortened
            is_caption[
                row, first_place(starts, lambda start: cut(start, settings.stop, settings.max_words) is not None) :
            ] = False
    written = Generation(
        torch.cat([_repeated(inputs["input_ids"], len(texts)), new_ids], dim=1),
        _repeated(inputs["attention_mask"], len(texts)),
        is_caption,
        [" ".join(text.split()) for text in texts],
        finished,
        None if log_probs is None else log_probs.masked_fill(~is_caption, 0.0),
    )
    if rank is None:
        return written
    return _keep_best(written, len(prompts), settings.generate.get("num_return_sequences", 1), rank)


def write_tokens(
    model: CaptionerForConditionalGeneration,
    inputs: Mapping[str, torch.Tensor],
    images: Mapping[str, Any],
    arguments: Mapping[str, Any],
    seed: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns new tokens, int64 [R, M], and the log-probability of each, float32 [R, M], or None from `generate`.

    Args:
        model: The model, in eval mode.
        inputs: `input_ids` and `attention_mask` of the prompts, int64 [B, P], padded on the left.
        images: `image_features` or `pixel_values` of all images of the prompts, in order.
        arguments: The arguments of `generate`.
        seed: Makes sampling reproducible.
    """
    decoding = known_settings(model, arguments)
    if decoding is not None:
        return write_stepwise(model, inputs, images, decoding)
    prompt = inputs["input_ids"]
    with _seeded(model.device, seed):
        token_ids = model.generate(prompt, attention_mask=inputs["attention_mask"], **images, **arguments)
    return token_ids[:, prompt.shape[1] :], None


def _repeated(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Returns rows [B, P], each as often as makes this many, [count, P]."""
    return rows.repeat_interleave(count // len(rows), dim=0)


def _ranking(
    model: CaptionerForConditionalGeneration,
    images: Mapping[str, Any],
    num_prompts: int,
    settings: GenerationSettings,
) -> Callable[[int, list[str]], list[int]] | None:
    """Returns what ranks the captions of a prompt, given its number and them; None if all are kept as they come.

    Raises:
        ConfigError, DataError: See `generate`.
    """
    if settings.consensus is None:
        return None
    frequencies = settings.document_frequencies or checkpoint_frequencies(model.name_or_path or "")
    store = settings.datastore
    if store is None:
        return lambda number, texts: frequencies.rank(texts)
    features = images["image_features"]
    each = len(features) // num_prompts
    vectors = picture_vectors(model.config, features[each - 1 :: each])  # the last picture is the captioned one
    references = store.references(vector_kind(model), vectors)
    return lambda number, texts: frequencies.rank(texts, references[number])


def _keep_best(
    written: Generation, num_prompts: int, kept: int, rank: Callable[[int, list[str]], list[int]]
) -> Generation:
    """Returns that many captions for each prompt, the best first."""
    count = len(written.texts) // num_prompts
    rows = [
        start + place
        for number, start in enumerate(range(0, len(written.texts), count))
        for place in rank(number, written.texts[start : start + count])[:kept]
    ]
    return Generation(
        written.token_ids[rows],
        written.prompt_mask[rows],
        written.is_caption[rows],
        [written.texts[row] for row in rows],
        [written.finished[row] for row in rows],
        None if written.log_probs is None else written.log_probs[rows],
    )


def score(
    model: CaptionerForConditionalGeneration, generation: Generation, image_features: torch.Tensor
) -> list[float]:
    """Returns the mean log-probability that the model gives each caption's tokens, in nats.

    It is computed from the tokens alone, so it depends neither on how they were found nor on the rest of the batch.

    Args:
        model: The model, in eval mode.
        generation: The captions.
        image_features: The features of the prompts' images, float [I, N, D_vision].
    """
    return mean_log_probs(token_log_probs(model, generation, image_features), generation)


def mean_log_probs(log_probs: torch.Tensor, generation: Generation) -> list[float]:
    """Returns the mean of each caption's log-probabilities, float [R, M], over its tokens."""
    return (log_probs.sum(dim=1) / generation.is_caption.sum(dim=1).clamp_min(1)).tolist()


def token_log_probs(
    model: CaptionerForConditionalGeneration, generation: Generation, image_features: torch.Tensor | None
) -> torch.Tensor:
    """Returns the log-probability that the model gives each token of the captions, in nats, float [R, M].

    Args:
        model: The model, in eval mode.
        generation: The captions. Behind their ends, the values are 0.
        image_features: The features of the prompts' images, float [I, N, D_vision]; None if the prompts have none.
    """
    token_ids, new_ids, mask = generation.token_ids, generation.new_ids, generation.prompt_mask
    places: dict[str, torch.Tensor] = {}
    if not mask.all():  # prompts of different lengths, padded on the left
        mask = nn.functional.pad(mask, (0, new_ids.shape[1] - 1), value=1)
        places = {"attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp_min(0)}
    logits = model(
        input_ids=token_ids[:, :-1],
        image_features=image_features,
        logits_to_keep=new_ids.shape[1],
        use_cache=False,
        **places,
    ).logits  # [R, M, V]; no caption attends to the padding on its right
    targets = new_ids.masked_fill(~generation.is_caption, IGNORE_INDEX)
    return -nn.functional.cross_entropy(
        logits.float().transpose(1, 2), targets, ignore_index=IGNORE_INDEX, reduction="none"
    )


def empty_prompt_token(processor: CaptionerProcessor) -> int:
    """Returns the token that stands for a prompt of which nothing is left without its images."""
    tokenizer = processor.tokenizer
    return tokenizer.convert_tokens_to_ids(processor.start_token or tokenizer.eos_token)


def without_images(
    model: CaptionerForConditionalGeneration, processor: CaptionerProcessor, generation: Generation
) -> Generation:
    """Returns captions behind the text of their prompts alone: what the language model wrote if it saw no picture.

    Where nothing is left of a prompt, `empty_prompt_token` stands in front of the caption.

    Args:
        model: The model.
        processor: The model's processor.
        generation: The captions.
    """
    empty = empty_prompt_token(processor)
    prompts = []
    for ids, mask in zip(generation.token_ids, generation.prompt_mask, strict=True):
        prompt = ids[: len(mask)][mask.bool()]
        prompts.append(prompt[prompt != model.config.image_token_id].tolist() or [empty])
    inputs = processor.tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(generation.token_ids.device)
    token_ids = torch.cat([inputs["input_ids"], generation.new_ids], dim=1)
    return replace(generation, token_ids=token_ids, prompt_mask=inputs["attention_mask"], log_probs=None)


def caption_rows(
    model: CaptionerForConditionalGeneration, collator: CaptionCollator, rows: Sequence[dict], batch_size: int
) -> list[str]:
    """Returns a caption of each row, or an answer to its first question, while a model trains.

    Captions are written by the model's generation settings, except that nothing is sampled. The model is in eval mode
    meanwhile, and in its old mode again afterwards.

    Args:
        model: The model, in any mode.
        collator: The collator of the rows.
        rows: Rows with `index`.
        batch_size: The number of images at a time.
    """
    training = model.training
    model.eval()
    longest = model.generation_config.max_new_tokens or MAX_NEW_TOKENS
    settings = GenerationSettings({"do_sample": False, "max_new_tokens": longest})
    texts = []
    for start in range(0, len(rows), batch_size):
        with torch.compiler.set_stance("force_eager"):  # every new length would be compiled anew
            texts += caption_batch(model, collator, rows[start : start + batch_size], settings)
    model.train(training)
    return texts


def caption_batch(
    model: CaptionerForConditionalGeneration,
    collator: CaptionCollator,
    rows: Sequence[dict],
    settings: GenerationSettings,
) -> list[str]:
    """Returns a caption of each row, or an answer to its first question, all written together.

    Args:
        model: The model, in eval mode.
        collator: The collator of the rows.
        rows: Rows with `index`.
        settings: How captions are written; one caption a row, whatever they say.
    """
    images = {name: tensor.to(model.device) for name, tensor in collator.encode_images(list(rows)).items()}
    prompts = [collator.prompt_ids(row) for row in rows]
    one_each = replace(settings, generate={**settings.generate, "num_return_sequences": 1})
    return generate(model, collator.processor, prompts, images, one_each).texts


def _complete(
    model: CaptionerForConditionalGeneration, processor: CaptionerProcessor, settings: GenerationSettings
) -> dict[str, Any]:
    """Returns the arguments of `generate`.

    Raises:
        ValueError: More captions of an image are wanted than there are beams.
    """
    arguments: dict[str, Any] = {**settings.generate, "return_dict_in_generate": False}
    own = arguments.get("generation_config") or model.generation_config
    if own is model.generation_config:
        arguments.setdefault("num_return_sequences", 1)
    if settings.consensus is not None:
        arguments["num_return_sequences"] = settings.consensus
    count = arguments.get("num_return_sequences", own.num_return_sequences or 1)
    beams = arguments.get("num_beams", own.num_beams or 1)
    if count > beams and not arguments.get("do_sample", own.do_sample):
        if "num_beams" in arguments:
            raise ValueError(f"{count} captions of an image need at least {count} beams, or sampling.")
        arguments["num_beams"] = count
    if settings.ban:
        spellings = [spelling for word in settings.ban for spelling in (word.strip(), " " + word.strip())]
        encoded = processor.tokenizer(spellings, add_special_tokens=False).input_ids
        banned = arguments.get("bad_words_ids") or own.bad_words_ids or []
        arguments["bad_words_ids"] = [*banned, *filter(None, encoded)]
    if "stop_strings" in arguments:
        arguments.setdefault("tokenizer", processor.tokenizer)
    return arguments


@contextlib.contextmanager
def _seeded(device: torch.device, seed: int | None) -> Generator[None]:
    """Seeds torch's generators inside a `with` block, and restores their states after it."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def find_ends(
    model: CaptionerForConditionalGeneration, new_ids: torch.Tensor, arguments: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns which of the new tokens are end tokens, and which belong to the captions; bool [R, M] each."""
    own = arguments.get("generation_config") or model.generation_config
    end_ids = arguments.get("eos_token_id", own.eos_token_id)
    end_ids = end_ids if isinstance(end_ids, list) else [end_ids]
    pad_id = arguments.get("pad_token_id", own.pad_token_id)
    ends = torch.tensor([id_ for id_ in end_ids if id_ is not None], dtype=new_ids.dtype, device=new_ids.device)
    is_end = torch.isin(new_ids, ends)
    is_caption = is_end.cumsum(dim=1) <= is_end  # up to the first end token
    if pad_id is not None and pad_id not in end_ids:
        is_caption &= new_ids != pad_id
    return is_end, is_caption
