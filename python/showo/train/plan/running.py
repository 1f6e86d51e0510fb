"""What a long training needs besides: data, checkpoints, and work that is lost when something breaks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from showo.model.transformer import Showo
from showo.train.config import ShowoTraining
from showo.train.plan.flops import count_parameters

# Of one core, as `python -m benchmarks.bench_data --side 256` measures it of pictures of 256 x 256 and of their codes.
PIXELS_A_SECOND = 330 * 256**2  # read and decoded from PNG; JPEG takes less
CODES_A_SECOND = 8000  # samples of ready codes, read
PICTURE_BYTES = 100e3  # of a picture in a data set, as it is downloaded: assumed
CODES_BYTES = 700  # of the codes of a picture, two bytes each, and its caption
HOURS_OF_GPU = 54 * 24 * 16384 / 419  # between failures: Llama 3's training (arXiv 2407.21783, section 3.3.4)


@dataclass(frozen=True)
class Reading:
    """What reads so many samples a second: cores, and bytes/s."""

    cores: float
    bandwidth: float


def reading(pictures: float, side: int, *, coded: bool) -> Reading:
    """Of so many pictures a second, `side` pixels long, or of their ready codes."""
    if coded:
        return Reading(pictures / CODES_A_SECOND, pictures * CODES_BYTES)
    return Reading(pictures * side**2 / PIXELS_A_SECOND, pictures * PICTURE_BYTES)


def checkpoint_bytes(model: Showo, config: ShowoTraining) -> float:
    """Weights, AdamW's two moments of what learns, and an average of the weights, all in fp32."""
    everything, learned = count_parameters(model)
    return 4 * (everything * (2 if config.ema_decay else 1) + 2 * learned)


@dataclass(frozen=True)
class Failures:
    """A training that stands still `saving` seconds for every checkpoint, which is whole `writing` seconds later, and
    breaks every `between` seconds on average, after which it needs `restart` seconds to go on.
    """

    saving: float
    writing: float
    between: float
    restart: float

    def best_interval(self) -> float:
        """Seconds between checkpoints with which the least is lost: Daly, "A higher order estimate of the optimum
        checkpoint interval for restart dumps" (2006), equation 37. Its first term is Young's (1974).
        """
        if self.saving >= 2 * self.between:
            return self.between
        root = math.sqrt(2 * self.saving * self.between)
        share = math.sqrt(self.saving / (2 * self.between))
        return root * (1 + share / 3 + share**2 / 9) - self.saving

    def lost(self, interval: float) -> float:
        """Expected share of the time that is lost with a checkpoint every `interval` seconds: standing still, and after
        a failure half an interval on average, what was not whole yet, and the restart.
        """
        return self.saving / interval + (interval / 2 + self.writing + self.restart) / self.between
