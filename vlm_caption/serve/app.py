"""The app behind the guard: OpenAI's endpoints, a health check, and the page."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

import fastapi
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..captioning.caption import Caption
from ..core.console import first_line_of
from ..core.errors import ImageError, ImageTooLargeError
from .batcher import ServerBusyError, ServerClosedError
from .protocol import ChatJob, ReplyHead, RequestError, chat_chunk, chat_completion, error_body, parse_chat, settled
from .service import Service

logger = logging.getLogger(__name__)

_RETRY_AFTER_CLOSING = 10  # seconds

Result = TypeVar("Result")


def build_app(service: Service, page: bool = True) -> fastapi.FastAPI:
    """Returns the app, without the guard that belongs in front of it.

    Args:
        service: The captioner.
        page: Whether the page is at "/".
    """
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(HTTPException)
    async def refuse(request: fastapi.Request, error: HTTPException) -> Response:
        return _refuse(error)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "model": service.name}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        model = {"id": service.name, "object": "model", "created": 0, "owned_by": "vlm_caption"}
        return {"object": "list", "data": [model]}

    @app.post("/v1/chat/completions")
    async def chat_completions(request: fastapi.Request) -> Response:
        start = time.monotonic()
        try:
            response = await _answer(service, request)
        except Exception as error:  # every error has an answer
            response = _refuse(error)
        logger.info("chat completion: %d, %.2f s", response.status_code, time.monotonic() - start)
        return response

    if page:
        from .page import mount_page

        mount_page(app, service)
    return app


async def _answer(service: Service, request: fastapi.Request) -> Response:
    """Answers a request, or raises what `_refuse` turns into an answer."""
    limits = service.limits
    try:
        body = await asyncio.wait_for(request.body(), limits.body_timeout)
    except TimeoutError as error:
        raise RequestError(408, f"The request did not come within {limits.body_timeout:g} s.") from error
    job = parse_chat(body, service.name, limits)
    reply = _Reply(service, job)
    if not job.stream:
        captions = await reply.captions()
        return JSONResponse(chat_completion(captions, reply.head))
    events = reply.events()
    first = await anext(events)  # a mistake is known by now, and has its own status
    return StreamingResponse(_lines(first, events), media_type="text/event-stream")


class _Reply:
    """The reply to one request, whole or in events."""

    def __init__(self, service: Service, job: ChatJob) -> None:
        self.job, self.timeout = job, service.limits.timeout
        self.head = ReplyHead(service.name, f"chatcmpl-{uuid.uuid4().hex}", int(time.time()))
        self._texts: asyncio.Queue[list[str] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(texts: list[str] | None) -> None:
            loop.call_soon_threadsafe(self._texts.put_nowait, texts)

        settings = service.settings(job.text, job.generation)
        on_text = put if job.stream and job.only_grows else None
        self._future = asyncio.wrap_future(service.caption(job.picture, settings, on_text))
        self._future.add_done_callback(lambda _: self._texts.put_nowait(None))
        self._deadline = loop.time() + self.timeout

    async def captions(self) -> list[Caption]:
        """Waits for the captions."""
        return await self._within_time(self._future)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yields what has been written since the last event, and at the end of each caption its rest."""
        sent: dict[int, str] = {}
        try:
            while (texts := await self._within_time(self._texts.get())) is not None:
                for index, text in enumerate(texts):
                    known, now = sent.get(index, ""), settled(text, self.job.generation.get("stop", ()))
                    if len(now) > len(known) and now.startswith(known):
                        yield chat_chunk(index, now[len(known) :], None, self.head)
                        sent[index] = now
            for index, caption in enumerate(await self.captions()):
                yield chat_chunk(index, caption.text.removeprefix(sent.get(index, "")), caption, self.head)
        finally:  # also if the client has gone
            self._future.cancel()

    async def _within_time(self, awaitable: Awaitable[Result]) -> Result:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await awaitable
        except TimeoutError as error:
            raise RequestError(504, f"There was no caption within {self.timeout:g} s: try again later.") from error


async def _lines(first: dict[str, Any], events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Yields server-sent events. One that fails in the middle ends with its error."""
    yield _line(first)
    try:
        async for event in events:
            yield _line(event)
    except Exception as error:  # the status has gone out already
        yield _line(json.loads(bytes(_refuse(error).body)))
    yield "data: [DONE]\n\n"


def _line(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _refuse(error: Exception) -> Response:
    """Returns the answer that says what is wrong."""
    headers: dict[str, str] = {}
    parameter = None
    match error:
        case RequestError():
            status, parameter = error.status, error.parameter
        case ServerBusyError():
            status, headers = 429, {"Retry-After": str(error.retry_after)}
        case ServerClosedError():
            status, headers = 503, {"Retry-After": str(_RETRY_AFTER_CLOSING)}
        case ImageTooLargeError():
            status = 413
        case ImageError():
            status, parameter = 400, "messages"
        case HTTPException():  # the guard's
            return JSONResponse(error_body(error.status_code, error.detail), error.status_code)
        case ClientDisconnect():
            status = 400
        case ValueError():  # a setting that the captioner refuses
            status = 400
        case _:
            logger.error("A request failed: %s", first_line_of(error))
            return JSONResponse(error_body(500, "The captioner failed: its log says why."), 500)
    message = f"The picture: {error.reason}." if isinstance(error, ImageError) else str(error)
    return JSONResponse(error_body(status, message, parameter), status, headers)
