"""Batches of captioned images: the captions of one image are packed behind one copy of its image tokens.

A row is `[start token] [image tokens] [prompt] caption 1 <eos> caption 2 <eos> …`. Position ids restart behind the
prompt for every caption, and the attention mask lets a caption see the prompt, the image and itself alone, so each
caption is predicted exactly as if it stood in a row of its own, and the prefix is computed once instead of once a
caption.

Where the prompt asks a question, a row is `[start token] [image tokens] question 1 answer 1 <eos> question 2 …`: each
question stands with its answer, and the answer alone is learnt.
"""

import itertools
from collections.abc import Callable

import torch

from ..core.errors import DataError
from ..model.loss import IGNORE_INDEX
from ..model.processing_captioner import QUESTION
from ..towers.processor import CaptionerProcessor, VectorProcessor
from .captions import CaptionChoice
from .places import row_name


class CaptionCollator:
    """Turns rows of `{"captions": list[str], "image": …}` into a batch for the model.

    Where the prompt has `{question}`, rows also have `questions`, list[str]: one for each of the captions, which are
    the answers.

    Args:
        processor: The model's processor.
        encode_images: Gets the rows and returns their images as model inputs: `{"pixel_values": float [B, 3, H, W]}`
            or `{"image_features": float [B, N, D_vision]}`.
        prompt: Text around the image, instead of the processor's own prompt; not learnt.
        max_caption_tokens: Longer captions are cut here, and then have no end token to learn.
        choose: Gets a row and returns the captions of it that count; by default all.
        choose_targets: Gets a row and how many tokens each of its captions has, and returns for each caption the one
            token that is learnt; it then counts as many times as the caption has tokens. By default all are.
        positions: The number of the language model's positions, which a caption and all before it must not exceed; by
            default, any length is accepted.

    Attributes:
        prefix: The token ids that all rows begin with: the prompt, as far as it is the same for all questions.

    Raises:
        ValueError: The prompt is wrong.
    """

    def __init__(
        self,
        processor: CaptionerProcessor,
        encode_images: Callable[[list[dict]], dict[str, torch.Tensor]],
        prompt: str = "",
        max_caption_tokens: int = 64,
        choose: Callable[[dict], list] | None = None,
        choose_targets: Callable[[dict, list[int]], list[int]] | None = None,
        positions: int | None = None,
    ):
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.encode_images = encode_images
        self.prompt = prompt or processor.prompt
        self.asks = QUESTION in self.prompt
        # GPT-2 has one token for what it does not know and for the end, and knows all bytes.
        unknown = self.tokenizer.unk_token_id
        self.unknown_token_id = None if unknown == self.tokenizer.eos_token_id else unknown
        self.max_caption_tokens = max_caption_tokens
        self.choose = choose or CaptionChoice("all")
        self.choose_targets = choose_targets
        self.positions = positions
        # A space before the caption belongs to it: byte-pair tokenizers keep it with the first word.
        self.separator = processor.answer_separator(self.prompt)
        self.end_token_id = processor.end_token_id
        self.prefix: list[int]
        if self.asks:
            self.prefix, _ = processor.encode_prompts(["?"], self.prompt)
        else:
            self.prefix, [behind] = processor.encode_prompts([None], self.prompt)
            self.prefix += behind

    def prompt_ids(self, row: dict) -> list[int]:
        """Returns the token ids before a row's first caption: the whole prompt, with its question."""
        if not self.asks:
            return self.prefix
        _, [question] = self.processor.encode_prompts(row["questions"][:1], self.prompt)
        return self.prefix + question

    def count_tokens(self, rows: list[dict]) -> list[int]:
        """Counts the tokens of each row behind the prefix: captions with their end tokens, and questions.

        Raises:
            DataError: See `__call__`.
        """
        return [
            sum(len(question) + len(caption) for question, caption in segments)
            for segments in self.encode_captions(rows)
        ]

    def count_cut(self, rows: list[dict]) -> int:
        """Counts the captions that are cut at `max_caption_tokens`.

        Raises:
            DataError: See `__call__`.
        """
        captions = (caption for segments in self.encode_captions(rows) for _, caption in segments)
        return sum(caption[-1] != self.end_token_id for caption in captions)

    def encode_captions(self, rows: list[dict]) -> list[list[tuple[list[int], list[int]]]]:
        """Returns the token ids of each row's captions, each behind the ids of its question; [] without questions.

        Raises:
            DataError: See `__call__`.
        """
        if self.asks:
            rows = [{**row, "captions": list(zip(row["questions"], row["captions"], strict=True))} for row in rows]
        chosen = [self.choose(row) for row in rows]
        captions = [caption for row in chosen for caption in row]
        questions: list[list[int]] = [[]] * len(captions)
        if self.asks:
            _, questions = self.processor.encode_prompts([question for question, _ in captions], self.prompt)
            captions = [answer for _, answer in captions]
        segments = zip(questions, self._tokenize(captions), strict=True)
        packed = [list(itertools.islice(segments, len(row))) for row in chosen]
        if self.positions is not None:
            for row, parts in zip(rows, packed, strict=True):
                longest = max(len(question) + len(caption) for question, caption in parts)
                if len(self.prefix) + longest > self.positions:
                    name = row_name(row["image"], isinstance(self.processor, VectorProcessor))
                    raise DataError(
                        f"{name}: the image, the prompt and one of its captions are {len(self.prefix) + longest} "
                        f"tokens, and the language model has {self.positions} positions: shorten the text, or lower "
                        "data.max_caption_tokens."
                    )
        return packed

    def _tokenize(self, captions: list[str]) -> list[list[int]]:
        """Tokenizes captions in one call, because a fast tokenizer then works on all of them at once."""
        if not all(caption.strip() for caption in captions):
            raise DataError("a caption is empty: remove it from the data")
        texts = [self.separator + caption for caption in captions]
        # Text that looks like a special token (`<image>`) is text here.
        encoded = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids
        return [[*ids, self.end_token_id][: self.max_caption_tokens] for ids in encoded]

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Makes a batch.

        Args:
            rows: The rows.

        Returns:
            `input_ids`, `position_ids`: int64 [B, T]; `attention_mask`: bool [B, 1, T, T], True where a token may
            look; `logits_to_keep`: int64 [B, M], the positions that predict; `shift_labels` and `labels` (the same,
            for `CaptionTrainer`'s count of targets): int64 [B, M], what they predict, −100 at padding and for what
            the tokenizer does not know; and the images. With `choose_targets`, `logits_to_keep` and `shift_labels` are
            int64 [B, C], one target a caption, and `target_weights`, float [B, C], says how often each counts;
            `labels` still are all.

        Raises:
            DataError: A caption is empty, or exceeds the positions.
        """
        packed = self.encode_captions(rows)
        batch = self.pack(packed)
        if self.unknown_token_id is not None:
            # What cannot be written is not to be learnt: it would be written for all rare characters alike.
            batch["labels"][batch["labels"] == self.unknown_token_id] = IGNORE_INDEX
        if self.choose_targets is not None:
            captions = [[caption for _, caption in segments] for segments in packed]
            batch |= self._draw_targets(rows, captions, batch["logits_to_keep"], batch["labels"])
        return batch | self.encode_images(rows)

    def pack(self, packed: list[list[tuple[list[int], list[int]]]]) -> dict[str, torch.Tensor]:
        """Packs token ids of captions behind one copy of the prefix a row.

        Args:
            packed: The captions of each row, each behind its question, as `encode_captions` returns them.

        Returns:
            See `__call__`; without images, and with all tokens of captions as targets.
        """
        start = len(self.prefix)
        width = max(sum(len(caption) for _, caption in segments) for segments in packed)  # M
        longest = max(sum(len(asked) + len(caption) for asked, caption in segments) for segments in packed)
        length = start + longest  # T
        pad = self.tokenizer.pad_token_id

        input_ids = torch.full((len(packed), length), pad)
        input_ids[:, :start] = torch.tensor(self.prefix)
        position_ids = torch.zeros(len(packed), length, dtype=torch.long)
        position_ids[:, :start] = torch.arange(start)
        segment = torch.full((len(packed), length), -1)  # whose caption, or question, a token is; −1 is padding
        predictor = torch.zeros(len(packed), width, dtype=torch.long)
        targets = torch.full((len(packed), width), IGNORE_INDEX)
        for b, segments in enumerate(packed):
            at, target = start, 0
            for number, (asked, ids) in enumerate(segments):
                first, end = at + len(asked), at + len(asked) + len(ids)
                if asked:
                    input_ids[b, at:first] = torch.tensor(asked)
                input_ids[b, first:end] = targets[b, target : target + len(ids)] = torch.tensor(ids)
                position_ids[b, at:end] = torch.arange(start, start + end - at)
                segment[b, at:end] = number
                predictor[b, target : target + len(ids)] = torch.arange(first - 1, end - 1)
                if not asked:
                    predictor[b, target] = start - 1  # the last prefix token predicts every caption's first one
                at, target = end, target + len(ids)

        causal = torch.ones(length, length, dtype=torch.bool).tril()
        same_caption = segment[:, :, None] == segment[:, None, :]
        in_prefix = torch.arange(length) < start
        return {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "attention_mask": ((same_caption | in_prefix) & causal)[:, None],
            "logits_to_keep": predictor,
            "labels": targets,
            "shift_labels": targets,
        }

    def _draw_targets(
        self, rows: list[dict], packed: list[list[list[int]]], predictor: torch.Tensor, targets: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Returns one target for each caption, in place of `predictor` and `targets`, int64 [B, M]."""
        assert self.choose_targets is not None
        captions = max(map(len, packed))  # C
        places = torch.zeros(len(rows), captions, dtype=torch.long)
        weights = torch.zeros(len(rows), captions)
        for b, (row, ids) in enumerate(zip(rows, packed, strict=True)):
            lengths = [len(caption) for caption in ids]
            starts = itertools.accumulate(lengths, initial=0)
            drawn = self.choose_targets(row, lengths)
            places[b, : len(ids)] = torch.tensor([start + at for start, at in zip(starts, drawn, strict=False)])
            weights[b, : len(ids)] = torch.tensor(lengths, dtype=torch.float)
        return {
            "logits_to_keep": predictor.gather(1, places),
            "shift_labels": targets.gather(1, places).masked_fill(weights == 0, IGNORE_INDEX),
            "target_weights": weights,
        }
