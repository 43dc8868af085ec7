"""Turns prompts into token ids, as the processor of the checkpoint does."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from ..core.prompts import QUESTION, check_prompt

# Marks the place of a question or an answer in markup. Unicode keeps this character for private use.
_SLOT = "\ue000"


@dataclass(frozen=True)
class PromptSettings:
    """How prompts are written.

    Attributes:
        markup: The text of the default prompt: all of it, or what stands before and after the question.
        is_chat: Whether it came from a chat template, which is not there to write another one.
        start_token: The token in front of every prompt, or None.
        image_token: How a placeholder is written.
        image_token_id: Its id.
        image_seq_length: The number of placeholders for one image.
        empty_token_id: What stands for a prompt that has nothing beside its image, where the image is left out.
    """

    markup: Sequence[str]
    is_chat: bool
    start_token: str | None
    image_token: str
    image_token_id: int
    image_seq_length: int
    empty_token_id: int


class PromptEncoder:
    """Encodes prompts.

    Args:
        tokenizer: The captioner's.
        settings: How prompts are written.
    """

    def __init__(self, tokenizer: Tokenizer, settings: PromptSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self._special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]

    def without_images(self, prompt: Sequence[int]) -> list[int]:
        """Returns the token ids of a prompt whose images are left out."""
        return [token for token in prompt if token != self.settings.image_token_id] or [self.settings.empty_token_id]

    def encode(self, question: str | None, prompt: str, examples: Sequence[tuple[str | None, str]]) -> list[int]:
        """Returns the token ids of a prompt.

        Args:
            question: The text for `{question}`, or None.
            prompt: The text around the picture, or nothing for the default prompt.
            examples: A question (or None) and an answer for each picture that is shown before.

        Raises:
            ValueError: The prompt is wrong, has a question too many or too few, or is to change a chat.
        """
        markup = self._markup(prompt, len(examples))
        asks = len(markup) > len(examples) + 1
        separator = "" if markup[0].endswith(self.settings.image_token) and not asks else " "
        texts: list[str] = []
        for number, (asked, answer) in enumerate([*examples, (question, "")], 1):
            if asks and not (asked or "").strip():
                whose = "" if number > len(examples) else f" in example {number}"
                raise ValueError(f"The prompt has {QUESTION}, and there is no question to fill it{whose}: give one.")
            if not asks and asked is not None:
                raise ValueError(f"There is no place for a question in the prompt: write {QUESTION} there.")
            texts += [(asked or "").strip()] if asks else []
            texts += [separator + answer.strip()]
        parts = [markup[0]]
        for text, behind in zip(texts, markup[1:], strict=False):  # the last answer is to be written
            parts += [text, behind]
        return self._tokenize(parts)

    def _markup(self, prompt: str, examples: int) -> list[str]:
        """Returns the texts before, between and behind questions and answers."""
        if self.settings.is_chat:
            if prompt or examples:
                raise ValueError("An exported captioner with a chat template takes no other prompt and no examples.")
            return list(self.settings.markup)
        image = self.settings.image_token
        turn = check_prompt(prompt, image) if prompt else QUESTION.join(self.settings.markup)
        turn = turn.replace(QUESTION, _SLOT).rstrip()
        return ((turn + _SLOT + "\n") * examples + turn).split(_SLOT)

    def _tokenize(self, parts: list[str]) -> list[int]:
        """Returns the ids of markup and text in turn; text that looks like a special token is encoded as text."""
        settings = self.settings
        images = settings.image_token * settings.image_seq_length
        texts = [part if place % 2 else part.replace(settings.image_token, images) for place, part in enumerate(parts)]
        start = settings.start_token or ""
        texts[0] = texts[0] if texts[0].startswith(start) else start + texts[0]
        if not any(token in text for text in texts[1::2] for token in self._special):
            return self.tokenizer.encode("".join(texts), add_special_tokens=False).ids
        ids: list[int] = []
        for place, text in enumerate(texts):
            self.tokenizer.encode_special_tokens = place % 2 == 1
            ids += self.tokenizer.encode(text, add_special_tokens=False).ids
        self.tokenizer.encode_special_tokens = False
        return ids
