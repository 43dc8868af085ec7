"""Which images make a batch: those with captions of like length, so that little of a batch is padding."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

_STEPS_IN_A_WINDOW = 32


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that follow one another in a dataset, and how many rows of them an epoch has.

    Attributes:
        rows: How many there are.
        drawn: How many an epoch has. Of fewer than all, each epoch has others. Of more than all, every row comes as
            often as that is whole times, and some once more.
    """

    rows: int
    drawn: int

    @classmethod
    def of_weight(cls, rows: int, weight: float) -> "Group":
        """Returns a group of which an epoch has `weight` times as many rows as there are, at least one."""
        return cls(rows, max(round(weight * rows), min(rows, 1)))

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """Returns the rows of an epoch, int64 [drawn]."""
        if not self.rows:
            return np.arange(0)
        times, rest = divmod(self.drawn, self.rows)
        some = random.choice(self.rows, rest, replace=False) if rest else np.arange(0)
        return np.concatenate([np.tile(np.arange(self.rows), times), some])


class LengthBatchSampler(Sampler[list[int]]):
    """Batches of rows of similar length, in an order that depends on a seed and the epoch alone.

    An epoch's rows are shuffled and cut into windows; a window's rows are sorted by length and cut into steps; the
    steps are shuffled. So short and long rows alternate, and are beside other rows in each epoch. Nothing is kept
    between epochs, and no other random state is used: an epoch that is resumed in its middle has the same order.

    Args:
        groups: The rows, and how many an epoch has of each group; or the number of rows, each once an epoch.
        batch_size: The number of rows in a batch.
        batches_a_step: How many consecutive batches make one step of the optimizer (accumulated, or one for each
            process). They are cut from the same place, so how a step is divided does not change what is in it.
        lengths: Gets row numbers and returns their lengths, for a window at a time.
        seed: The seed of the shuffling.

    Attributes:
        epoch: The epoch to draw for, from 0; the training loop sets it.
    """

    drop_last = False  # as `BatchSampler` has it: accelerate asks

    def __init__(
        self,
        groups: int | Sequence[Group],
        batch_size: int,
        batches_a_step: int,
        lengths: Callable[[list[int]], Sequence[int]],
        seed: int = 0,
    ):
        self.groups = [Group(groups, groups)] if isinstance(groups, int) else list(groups)
        self.batch_size, self.step_size = batch_size, batch_size * batches_a_step
        self.lengths, self.seed = lengths, seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-sum(group.drawn for group in self.groups if group.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        draw = np.random.default_rng((self.seed, self.epoch))
        starts = itertools.accumulate((group.rows for group in self.groups), initial=0)
        drawn = [start + group.draw(draw) for start, group in zip(starts, self.groups, strict=False)]
        rows = draw.permutation(np.concatenate(drawn))
        for start in range(0, len(rows), _STEPS_IN_A_WINDOW * self.step_size):
            window = rows[start : start + _STEPS_IN_A_WINDOW * self.step_size]
            window = window[np.argsort(self.lengths(window.tolist()), kind="stable")]
            whole = len(window) // self.step_size
            # What is left over comes last, as a loop that deals batches out to processes expects.
            for step in [*draw.permutation(whole), *range(whole, -(-len(window) // self.step_size))]:
                images = window[step * self.step_size : (step + 1) * self.step_size].tolist()
                for at in range(0, len(images), self.batch_size):
                    yield images[at : at + self.batch_size]
