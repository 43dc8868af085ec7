"""Whether this processor multiplies faster in bfloat16 than in float32, which `precision: auto` decides by its name.

Both multiply the same linear layer in turns; the fastest repeat counts, because other programs only make one slower.

    nice python benchmarks/bfloat16.py [--repeats 200]
"""

import argparse
import time
from collections.abc import Sequence

import torch
from torch import nn

from vlm_caption.towers.precision import use_bf16

# Positions of a batch, and the language model's own sizes (SmolLM2-135M's feed-forward layers).
ROWS, INPUTS, OUTPUTS = 800, 576, 1536


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    repeats = parser.parse_args(argv).repeats
    dtypes = (torch.float32, torch.bfloat16)
    layers = {dtype: nn.Linear(INPUTS, OUTPUTS).to(dtype) for dtype in dtypes}
    inputs = {dtype: torch.randn(ROWS, INPUTS).to(dtype) for dtype in dtypes}
    seconds = dict.fromkeys(dtypes, float("inf"))
    for _ in range(repeats):
        for dtype in dtypes:
            start = time.perf_counter()
            layers[dtype](inputs[dtype])
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    for dtype, fastest in seconds.items():
        print(f"{dtype}: {2 * ROWS * INPUTS * OUTPUTS / fastest / 1e9:.0f} GFLOP/s")
    ratio = seconds[torch.float32] / seconds[torch.bfloat16]
    print(f"bfloat16 has {ratio:.2f} x the speed of float32; auto is {'bf16' if use_bf16('auto') else 'fp32'}")


if __name__ == "__main__":
    main()
