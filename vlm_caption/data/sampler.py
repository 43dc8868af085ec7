"""Which images make a batch: those with captions of like length, so that little of a batch is padding."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_STEPS_IN_A_WINDOW = 32


class LengthBatchSampler(Sampler[list[int]]):
    """Batches of rows of like length, in an order that a seed and the epoch settle.

    An epoch's rows are shuffled and cut into windows; a window's rows are sorted by length and cut into steps; the
    steps are shuffled. So every row comes once an epoch, short and long ones in turn, and beside other ones each time.
    Nothing is kept between epochs and no other random state is used: an epoch taken up in its middle goes on alike.

    Args:
        count: how many rows there are.
        batch_size: rows a batch.
        batches_a_step: how many batches in a row make one step of the optimiser (accumulated, or one a process); they
            are cut from the same place, so how a step is divided does not change what is in it.
        lengths: gets row numbers and returns their lengths, for a window at a time.
        seed: of the shuffling.
        pool: how many rows follow the `count` rows, of which each epoch takes only some.
        drawn: how many rows of the pool an epoch takes, others in each epoch.

    Attributes:
        epoch: the epoch to draw for, from 0; the training loop sets it.
    """

    drop_last = False  # as `BatchSampler` has it: accelerate asks

    def __init__(
        self,
        count: int,
        batch_size: int,
        batches_a_step: int,
        lengths: Callable[[list[int]], Sequence[int]],
        seed: int = 0,
        pool: int = 0,
        drawn: int = 0,
    ):
        self.count, self.batch_size, self.step_size = count, batch_size, batch_size * batches_a_step
        self.lengths, self.seed = lengths, seed
        self.pool, self.drawn = pool, min(drawn, pool)
        self.epoch = 0

    def __len__(self) -> int:
        return -(-(self.count + self.drawn) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        draw = np.random.default_rng((self.seed, self.epoch))
        rows = draw.permutation(self.count)
        if self.drawn:
            others = self.count + draw.choice(self.pool, self.drawn, replace=False)
            rows = draw.permutation(np.concatenate([rows, others]))
        for start in range(0, len(rows), _STEPS_IN_A_WINDOW * self.step_size):
            window = rows[start : start + _STEPS_IN_A_WINDOW * self.step_size]
            window = window[np.argsort(self.lengths(window.tolist()), kind="stable")]
            whole = len(window) // self.step_size
            # What is left over comes last, as a loop that deals batches out to processes expects.
            for step in [*draw.permutation(whole), *range(whole, -(-len(window) // self.step_size))]:
                images = window[step * self.step_size : (step + 1) * self.step_size].tolist()
                for at in range(0, len(images), self.batch_size):
                    yield images[at : at + self.batch_size]
