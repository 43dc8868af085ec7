"""What a server accepts. Needs no other package."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServingLimits:
    """What a server accepts.

    Attributes:
        max_body: The bytes of a request. A picture in a data URL takes a third more than its file.
        max_upload: The bytes of the files that the page sends at once.
        max_pixels: The pixels of a picture, width x height.
        max_waiting: The pictures that wait; more are refused.
        max_choices: The captions of a picture.
        max_new_tokens: The tokens of a caption. A request for more gets this many.
        timeout: The seconds from a whole request to its answer.
        body_timeout: The seconds in which a request must have come.

    Raises:
        ValueError: A limit is not above 0.
    """

    max_body: int = 20_000_000
    max_upload: int = 1_000_000_000
    max_pixels: int = 40_000_000
    max_waiting: int = 64
    max_choices: int = 8
    max_new_tokens: int = 128
    timeout: float = 60.0
    body_timeout: float = 20.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}.")
