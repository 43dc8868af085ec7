"""The page: a picture, its caption as it is written, how sure it is, and where the captioner looked.

Gradio's own ways out are closed: no statistics, no fonts or scripts of other hosts, and no address is fetched that a
browser sends.
"""

import logging
import os
import queue
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import fastapi
import gradio as gr

from ..captioning.caption import Caption
from ..captioning.columns import Entry, as_entry, columns_of
from ..captioning.tables import csv_head, csv_lines
from ..core.console import first_line_of
from ..core.errors import ImageError
from ..core.text import readable
from .batcher import ServerBusyError, ServerClosedError
from .service import Service, Settings

logger = logging.getLogger(__name__)

# Of the table, with their widths: on a phone it is moved sideways.
_COLUMNS = {"picture": "140px", "caption": "280px", "score": "90px", "confidence": "120px", "problem": "220px"}
_FONTS = ["system-ui", "sans-serif"]
_HOURS_OF_A_FILE = 1
_PROBLEM = "problem"
_SECONDS_UNTIL_RETRY = 0.1

# What a person may see as it stands.
_KNOWN_ERRORS = (ImageError, ValueError, ServerBusyError, ServerClosedError)


def mount_page(app: fastapi.FastAPI, service: Service) -> None:
    """Puts the page at "/".

    Args:
        app: The app.
        service: The captioner.
    """
    gr.mount_gradio_app(
        app,
        _build(service),
        path="/",
        max_file_size=service.limits.max_body,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        theme=gr.themes.Default(font=_FONTS, font_mono=["ui-monospace", "monospace"]),
    )


def _build(service: Service) -> gr.Blocks:
    seconds = _HOURS_OF_A_FILE * 3600
    with gr.Blocks(title="vlm_caption", analytics_enabled=False, delete_cache=(seconds, seconds)) as page:
        gr.Markdown(f"# Captions\n{service.name}")
        with gr.Tab("A picture"):
            one = _add_picture_tab(service)
        with gr.Tab("Several pictures"):
            several = _add_table_tab(service)
        with gr.Accordion("Prompt and decoding", open=False):
            controls = _add_controls(service)
        _connect_picture(service, one, controls)
        _connect_table(service, several, controls)
    for block in page.blocks.values():
        _forbid_fetching(block)
    return page.queue(default_concurrency_limit=service.batch_size, max_size=service.limits.max_waiting)


def _forbid_fetching(block: Any) -> None:
    """Lets a component take files that were uploaded, and no address."""
    move = block.async_move_resource_to_block_cache

    async def move_uploaded(place: str | Path | None) -> str | None:
        if place is not None and "://" in str(place):
            raise gr.Error("Nothing is fetched: upload the file.", print_exception=False)
        return await move(place)

    block.async_move_resource_to_block_cache = move_uploaded


def _add_controls(service: Service) -> list[gr.components.Component]:
    """Adds the controls, in the order of the arguments of `_settings`."""
    limits = service.limits
    text = gr.Textbox(
        value="",  # by default it is None
        label="Question" if service.asks else "Prompt",
        info="What to ask about the picture." if service.asks else "The caption continues this text.",
    )
    with gr.Row():
        beams = gr.Slider(0, 8, 0, step=1, label="Beams", info="0: as the checkpoint has it. 1: the likeliest token.")
        count = gr.Slider(1, limits.max_choices, 3, step=1, label="Captions", info="The first and its alternatives.")
        longest = gr.Slider(1, limits.max_new_tokens, 40, step=1, label="Longest caption", info="In tokens.")
    with gr.Row():
        is_drawn = gr.Checkbox(label="Sample", info="Draw the words at random. There are then no beams.")
        temperature = gr.Slider(0.1, 2, 1, step=0.1, label="Temperature", info="Of sampling.")
        top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="Of sampling.")
    with gr.Row():
        stop = gr.Textbox(value="", label="Stop", info="End captions before this text.")
        max_words = gr.Slider(0, 50, 0, step=1, label="Most words", info="0: no limit.")
    return [text, beams, count, longest, is_drawn, temperature, top_p, stop, max_words]


def _settings(service: Service, values: Sequence[Any]) -> Settings:
    """Returns the settings for the values of the controls."""
    text, beams, count, longest, is_drawn, temperature, top_p, stop, max_words = values
    generation: dict[str, Any] = {"max_new_tokens": int(longest), "num_return_sequences": int(count)}
    if is_drawn:
        generation |= {"do_sample": True, "num_beams": 1, "temperature": temperature, "top_p": top_p}
    elif beams:
        generation["num_beams"] = max(int(beams), int(count))
    if stop.strip():
        generation["stop"] = (stop,)
    if max_words:
        generation["max_words"] = int(max_words)
    return service.settings(text.strip(), generation)


def _add_picture_tab(service: Service) -> dict[str, Any]:
    with gr.Row():
        with gr.Column():
            # In no mode, the file is passed on as it came.
            picture = gr.Image(label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard"])
            button = gr.Button("Caption", variant="primary")
        with gr.Column():
            caption = gr.Textbox(label="Caption", lines=2, interactive=False)
            confidence = gr.Markdown()
            alternatives = gr.Textbox(label="Alternatives", interactive=False)
            heat = gr.Image(
                label="Where it looked",
                interactive=False,
                visible=not service.is_exported,
                buttons=["download", "fullscreen"],  # and none that shares it with the Hub
            )
    return {
        "picture": picture,
        "button": button,
        "outputs": [caption, confidence, alternatives, heat],
    }


def _connect_picture(service: Service, tab: dict[str, Any], controls: list[gr.components.Component]) -> None:
    def write(path: str | None, *values: Any) -> Iterator[tuple[Any, ...]]:
        if path is None:
            raise gr.Error("Drop a picture first.", print_exception=False)
        settings, content = _settings(service, values), Path(path).read_bytes()
        texts: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
        future = _submit(lambda: service.caption(content, settings, texts.put))
        future.add_done_callback(lambda _: texts.put(None))
        while (so_far := _get(texts, future, service)) is not None:
            yield so_far[0], "", "", None
        [best, *others] = _result(future, service)
        shown = best.text, _describe(best), "\n".join(map(_describe_briefly, others))
        yield *shown, None
        if not service.is_exported and best.text.strip():
            yield *shown, _result(_submit(lambda: service.look(content, best.text, settings)), service)

    inputs = [tab["picture"], *controls]
    gr.on(
        [tab["button"].click, tab["picture"].upload],
        write,
        inputs,
        tab["outputs"],
        api_visibility="private",
        show_progress="minimal",
    )


def _add_table_tab(service: Service) -> dict[str, Any]:
    files = gr.File(label="Pictures", file_count="multiple", type="filepath")
    folder = gr.File(label="Or a folder", file_count="directory", type="filepath")
    button = gr.Button("Caption all", variant="primary")
    table = gr.Dataframe(
        headers=list(_COLUMNS), column_widths=list(_COLUMNS.values()), label="Captions", interactive=False, wrap=True
    )
    download = gr.DownloadButton("Download the table (CSV)", interactive=False)
    return {"files": files, "folder": folder, "button": button, "outputs": [table, download]}


def _connect_table(service: Service, tab: dict[str, Any], controls: list[gr.components.Component]) -> None:
    def write(files: list[str] | None, folder: list[str] | None, *values: Any) -> Iterator[tuple[Any, ...]]:
        paths = [Path(path) for path in [*(files or []), *(folder or [])]]
        if not paths:
            raise gr.Error("Drop pictures first.", print_exception=False)
        settings = _settings(service, values)
        entries: list[Entry] = []
        for start in range(0, len(paths), service.batch_size):
            batch = paths[start : start + service.batch_size]
            futures = [_queue(service, path, settings) for path in batch]
            for path, future in zip(batch, futures, strict=True):
                try:
                    found = _result(future, service)
                except gr.Error as error:
                    entries.append({"image": readable(path.name), _PROBLEM: error.message})
                else:
                    entries += [as_entry(replace(caption, image=path.name)) for caption in found]
            yield [*map(_row, entries)], None
        yield [*map(_row, entries)], _offer(entries)

    inputs = [tab["files"], tab["folder"], *controls]
    tab["button"].click(write, inputs, tab["outputs"], api_visibility="private")


def _queue(service: Service, path: Path, settings: Settings) -> Future:
    """Queues a picture of a table, once the queue has room. The future raises whatever goes wrong."""
    end = time.monotonic() + service.limits.timeout
    try:
        content = path.read_bytes()
        while True:
            try:
                return service.caption(content, settings)
            except ServerBusyError:
                if time.monotonic() > end:
                    raise
                time.sleep(_SECONDS_UNTIL_RETRY)
    except Exception as error:
        failed: Future = Future()
        failed.set_exception(error)
        return failed


def _offer(entries: Sequence[Entry]) -> Any:
    """Returns the button with the table as its file. Only a table with problems has a column for them."""
    columns = [*columns_of(entries)]
    if any(_PROBLEM in entry for entry in entries):
        columns.append(_PROBLEM)
    path = Path(gr.utils.get_upload_folder()) / os.urandom(16).hex() / "captions.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes((csv_head(columns) + csv_lines(entries, columns)).encode())
    return gr.DownloadButton(value=str(path), interactive=True)


def _row(entry: Entry) -> list[Any]:
    return [
        entry["image"],
        entry.get("caption", ""),
        *map(entry.get, ("score", "confidence")),
        entry.get(_PROBLEM, ""),
    ]


def _describe_briefly(caption: Caption) -> str:
    if caption.confidence is None:
        return f"{caption.text} (score {caption.score:.2f})"
    return f"{caption.text} (confidence {caption.confidence:.0%})"


def _describe(caption: Caption) -> str:
    """Returns how sure a caption is, as Markdown."""
    score = f"Score {caption.score:.2f} (mean log-probability of a token)"
    ending = "" if caption.finished else "; cut at the longest length"
    if caption.confidence is None:
        return f"{score}{ending}. This checkpoint is not calibrated, so it has no confidence."
    return f"**Confidence {caption.confidence:.0%}.** {score}{ending}."


def _submit(start: Any) -> Future:
    try:
        return start()
    except _KNOWN_ERRORS as error:
        raise gr.Error(str(error), print_exception=False) from error


def _get(texts: "queue.SimpleQueue[list[str] | None]", future: Future, service: Service) -> list[str] | None:
    """Returns the next texts, the latest that are there."""
    try:
        latest = texts.get(timeout=service.limits.timeout)
        while latest is not None and not texts.empty():
            latest = texts.get()
    except queue.Empty:
        future.cancel()
        raise _too_late(service) from None
    return latest


def _result(future: Future, service: Service) -> Any:
    try:
        return future.result(service.limits.timeout)
    except TimeoutError as error:
        future.cancel()
        raise _too_late(service) from error
    except _KNOWN_ERRORS as error:
        message = error.reason if isinstance(error, ImageError) else str(error)
        raise gr.Error(message, print_exception=False) from error
    except Exception as error:
        logger.error("A picture of the page failed: %s", first_line_of(error))
        raise gr.Error("The captioner failed: its log says why.", print_exception=False) from error


def _too_late(service: Service) -> gr.Error:
    return gr.Error(f"Nothing came within {service.limits.timeout:g} s: try again later.", print_exception=False)
