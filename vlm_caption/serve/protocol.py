"""OpenAI's chat completions: a request as settings of a captioner, and captions as a response. Pure functions."""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..captioning.caption import Caption
from ..core.text import preview
from .limits import ServingLimits

_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w=.+-]+)*;base64,", re.IGNORECASE)

_NEEDS_ONE_PICTURE = (
    "give one message with the role user, whose content is one image_url part and at most one text part"
)


class RequestError(ValueError):
    """A request cannot be answered.

    Attributes:
        status: The HTTP status.
        parameter: The field that is wrong, if it is one.
    """

    def __init__(self, status: int, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status, self.parameter = status, parameter


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _ImageURL(_Part):
    url: str
    detail: str | None = None  # of no meaning here: a captioner has one resolution


class _ImagePart(_Part):
    type: Literal["image_url"]
    image_url: _ImageURL


class _TextPart(_Part):
    type: Literal["text"]
    text: str


class _Message(_Part):
    role: Literal["user"]
    content: list[Annotated[_ImagePart | _TextPart, Field(discriminator="type")]]
    name: str | None = None


class _ChatRequest(_Part):
    model: str
    messages: list[_Message]
    n: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    num_beams: Annotated[int, Field(ge=1, le=8)] | None = None  # not OpenAI's
    stream_options: dict[str, Any] | None = None  # asks for a count of tokens, which there is none of
    user: str | None = None


@dataclass(frozen=True)
class ChatJob:
    """What a request asks for.

    Attributes:
        picture: The bytes of the picture's file.
        text: The user's text; empty if there is none.
        generation: Arguments of `Captioner.caption_each`.
        stream: Whether the caption is sent as it is written.
    """

    picture: bytes
    text: str
    generation: dict[str, Any]
    stream: bool

    @property
    def only_grows(self) -> bool:
        """Whether what is written stays: it does when tokens are drawn or the likeliest is taken, not with beams."""
        is_single = self.generation.get("num_beams") == 1 and self.generation.get("num_return_sequences", 1) == 1
        return bool(self.generation.get("do_sample")) or is_single


def parse_chat(body: bytes, model: str, limits: ServingLimits) -> ChatJob:
    """Reads the body of a request.

    Args:
        body: JSON.
        model: The name of the captioner.
        limits: What is accepted.

    Raises:
        RequestError: The request is damaged, or asks for what a captioner does not do.
    """
    try:
        request = _ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error) from error
    if request.model != model:
        raise RequestError(404, f"There is no model {preview(request.model)}: this server has {model}.", "model")
    parts = [part for message in request.messages for part in message.content]
    pictures = [part.image_url.url for part in parts if isinstance(part, _ImagePart)]
    texts = [part.text for part in parts if isinstance(part, _TextPart)]
    if len(request.messages) != 1 or len(pictures) != 1 or len(texts) > 1:
        raise RequestError(400, f"messages: {_NEEDS_ONE_PICTURE}.", "messages")
    return ChatJob(
        _decode(pictures[0]), (texts or [""])[0].strip(), _generation(request, limits), bool(request.stream)
    )


def _decode(url: str) -> bytes:
    """Returns the bytes of a data URL. Everything else is refused, so no file is read and nothing is fetched."""
    head = _DATA_URL.match(url)
    if head is None:
        raise RequestError(
            400,
            "image_url: only data URLs in base64 are read (data:image/jpeg;base64,…); nothing is fetched.",
            "messages",
        )
    try:
        content = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, f"image_url: the base64 is damaged ({error}).", "messages") from error
    if not content:
        raise RequestError(400, "image_url: the data URL is empty.", "messages")
    return content


def _generation(request: _ChatRequest, limits: ServingLimits) -> dict[str, Any]:
    """Returns the arguments of `Captioner.caption_each`. What is not given is as the checkpoint has it."""
    choices = request.n or 1
    if choices > limits.max_choices:
        raise RequestError(400, f"n: at most {limits.max_choices} captions of a picture, not {choices}.", "n")
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stop) > 4 or not all(text.strip() for text in stop):
        raise RequestError(400, "stop: give at most 4 texts, each with a visible character.", "stop")
    given: dict[str, Any] = {}
    if choices > 1:
        given["num_return_sequences"] = choices
    if stop:
        given["stop"] = tuple(stop)
    if longest := request.max_completion_tokens or request.max_tokens:
        given["max_new_tokens"] = min(longest, limits.max_new_tokens)
    if request.num_beams is not None:
        given["num_beams"] = request.num_beams
    is_drawn = request.temperature > 0 if request.temperature is not None else (request.top_p or 1) < 1
    if is_drawn:
        if (request.num_beams or 1) > 1:
            raise RequestError(
                400, "num_beams: beams and sampling exclude each other: set temperature to 0.", "num_beams"
            )
        given |= {"do_sample": True, "num_beams": 1, "temperature": request.temperature or 1.0}
        given["top_p"] = request.top_p or 1.0
        given["top_k"] = 0  # OpenAI's sampling has no such limit
        if request.seed is not None:
            given["seed"] = request.seed % 2**32
    elif request.temperature == 0:
        given["do_sample"] = False
    return given


def _explain(error: ValidationError) -> RequestError:
    """Returns the first mistake as one sentence that begins with the field."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    field = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        return RequestError(400, f"{preview(place)}: a captioner has no such option: leave it out.", field)
    if field == "messages":
        return RequestError(400, f"{preview(place)}: {first['msg']}; {_NEEDS_ONE_PICTURE}.", field)
    return RequestError(400, f"{preview(place)}: {first['msg']}." if place else f"The body: {first['msg']}.", field)


@dataclass(frozen=True)
class ReplyHead:
    """What all parts of a reply have in common.

    Attributes:
        model: The name of the captioner.
        id: The reply's own name.
        created: The time, in seconds since 1970.
    """

    model: str
    id: str
    created: int


def chat_completion(captions: Sequence[Caption], head: ReplyHead) -> dict[str, Any]:
    """Returns the response to a request that does not stream.

    Each choice also has `vlm_caption`, with the caption's score and confidence. There is no `usage`: captioners do
    not tell how many tokens they read and wrote.

    Args:
        captions: The captions of the picture.
        head: The head of the reply.
    """
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": caption.text, "refusal": None},
            "finish_reason": _finish_reason(caption),
            "logprobs": None,
            "vlm_caption": _numbers(caption),
        }
        for index, caption in enumerate(captions)
    ]
    return {**vars(head), "object": "chat.completion", "choices": choices}


def chat_chunk(index: int, text: str, caption: Caption | None, head: ReplyHead) -> dict[str, Any]:
    """Returns one event of a response that streams.

    Args:
        index: The number of the choice.
        text: What has been written since its last event.
        caption: The whole caption, once it is finished.
        head: The head of the reply.
    """
    choice: dict[str, Any] = {"index": index, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
    if caption is not None:
        choice |= {"finish_reason": _finish_reason(caption), "vlm_caption": _numbers(caption)}
    return {**vars(head), "object": "chat.completion.chunk", "choices": [choice]}


def error_body(status: int, message: str, parameter: str | None = None) -> dict[str, Any]:
    """Returns the body of a response that says what is wrong."""
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    return {"error": {"message": message, "type": kind, "param": parameter, "code": status}}


def settled(text: str, stop: Sequence[str]) -> str:
    """Returns the part of a text that no later token takes back: before a stop text, and before what may become one.

    White space is one space, as in the finished caption.

    Args:
        text: A caption so far, as it is decoded.
        stop: The texts that end it.
    """
    ends = [place for mark in stop if (place := text.find(mark)) >= 0]
    held = max((len(mark) - 1 for mark in stop), default=0)
    kept = " ".join(text[: min(ends) if ends else len(text) - held].split())
    return kept if ends else kept.rstrip("\ufffd")  # half a character, whose other bytes are to come


def _finish_reason(caption: Caption) -> str:
    return "stop" if caption.finished else "length"


def _numbers(caption: Caption) -> dict[str, float | None]:
    return {"score": caption.score, "confidence": caption.confidence}
