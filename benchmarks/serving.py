"""Many clients at once: `python benchmarks/serving.py`.

Each of 50 clients sends one photo to a server on this machine, all at the same moment, and waits for its caption. It
prints how many got none, the median and the 95th percentile of the seconds until an answer, and captions a second, for
a server that captions what waits in batches and for one that captions one picture at a time. Runs alternate; the ratio
is that of the medians over the runs.
"""

import argparse
import base64
import statistics
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import uvicorn

from vlm_caption.serve import Guard, Service, ServingLimits, build_app, listen

REPOSITORY = Path(__file__).resolve().parents[1]
THREADS = 2


@contextmanager
def serving(captioner: Any, batch_size: int, clients: int) -> Generator[str]:
    """Serves a captioner while the block runs, and yields the URL of its endpoint."""
    limits = ServingLimits(max_waiting=clients, timeout=600)
    service = Service(captioner, "captioner", limits, batch_size)
    guard = Guard(build_app(service, page=False), ["127.0.0.1"], False, limits)
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(guard, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"
    server.should_exit = True
    thread.join()
    service.batcher.close()


def ask(url: str, body: dict[str, Any], start: threading.Barrier) -> tuple[int, float]:
    """Returns the status of an answer and the seconds until it came."""
    start.wait()
    begin = time.perf_counter()
    response = httpx2.post(url, json=body, timeout=900)
    return response.status_code, time.perf_counter() - begin


def load(url: str, bodies: list[dict[str, Any]]) -> tuple[int, list[float], float]:
    """Sends all requests at once. Returns the number without a caption, the seconds of each, and those of all."""
    start = threading.Barrier(len(bodies) + 1)
    with ThreadPoolExecutor(len(bodies)) as pool:
        futures = [pool.submit(ask, url, body, start) for body in bodies]
        start.wait()
        begin = time.perf_counter()
        answers = [future.result() for future in futures]
    return sum(status != 200 for status, _ in answers), [took for _, took in answers], time.perf_counter() - begin


def load_captioner(checkpoint: str) -> Any:
    """Returns a captioner of torch, or of the runtime for an export."""
    from vlm_caption import Captioner, runtime

    if runtime.is_export(checkpoint):
        return runtime.Captioner.from_pretrained(checkpoint, threads=THREADS)
    import torch

    torch.set_num_threads(THREADS)
    return Captioner.from_pretrained(checkpoint, device="cpu")


def main() -> None:
    """Prints all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(REPOSITORY / "checkpoints" / "embedded"), help="or an export")
    parser.add_argument("--clients", type=int, default=50, help="at once (50)")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 8], help="the first is the baseline (1 8)")
    parser.add_argument("--runs", type=int, default=3, help="of each (3)")
    parser.add_argument("--num-beams", type=int, help="of beam search (as the checkpoint has it)")
    arguments = parser.parse_args()
    photos = [base64.b64encode(photo.read_bytes()).decode() for photo in sorted(REPOSITORY.glob("examples/*.jpg"))]
    urls = [f"data:image/jpeg;base64,{photos[number % len(photos)]}" for number in range(arguments.clients)]
    bodies = [
        {
            "model": "captioner",
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}],
            "num_beams": arguments.num_beams,
        }
        for url in urls
    ]
    captioner = load_captioner(arguments.checkpoint)
    seconds: dict[int, list[float]] = {size: [] for size in arguments.batch_sizes}
    for _ in range(arguments.runs):
        for size, totals in seconds.items():
            with serving(captioner, size, arguments.clients) as url:
                load(url, bodies[:1])  # the first caption of a process is slow
                failed, each, total = load(url, bodies)
            totals.append(total)
            median, late = np.percentile(each, [50, 95])
            print(
                f"batches of {size}: {failed} of {len(bodies)} without a caption, p50 {median:.1f} s, "
                f"p95 {late:.1f} s, {len(bodies) / total:.2f} captions a second",
                flush=True,
            )
    baseline, *others = seconds
    for size in others:
        ratio = statistics.median(seconds[baseline]) / statistics.median(seconds[size])
        print(f"batches of {size} are {ratio:.2f} times as fast as batches of {baseline}")


if __name__ == "__main__":
    main()
