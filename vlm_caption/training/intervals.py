"""How long the warm-up is, and how often a run logs, evaluates and saves, by default as shares of its steps."""

from dataclasses import dataclass

from ..config.sections import TrainingSection


@dataclass(frozen=True)
class Intervals:
    """Numbers of optimizer steps.

    Attributes:
        warmup: The length of the warm-up.
        logging, evaluation, saving: Between two log entries, two evaluations, and two checkpoints.
    """

    warmup: int
    logging: int
    evaluation: int
    saving: int


def choose_intervals(settings: TrainingSection, steps: int) -> Intervals:
    """Returns the intervals of a run: those of its settings, or shares of its length where they are null.

    A run of 43 steps with 100 steps of warm-up would never reach its learning rate, and one with an evaluation every
    250 steps would have no curve.

    Args:
        settings: The settings of the run, or of one of its stages.
        steps: The number of steps that it is to take.
    """
    tenth = min(max(steps // 10, 10), 250)
    return Intervals(
        warmup=min(steps // 10, 100) if settings.warmup_steps is None else settings.warmup_steps,
        logging=settings.logging_steps or min(max(steps // 50, 1), 25),
        evaluation=settings.eval_steps or tenth,
        saving=settings.save_steps or tenth,
    )
