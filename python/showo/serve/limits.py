"""What a server takes from one client, and from all of them together, before it says no."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from showo.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Bytes, seconds and counts, all of them positive; UserError otherwise.

    body_bytes: of one request's body. held_bytes: of the bodies of all requests that are being answered.
    head_seconds, body_seconds: in which a client must have sent its headers, and its body.
    read_seconds: for which a client may leave what is written to it unread, when the buffers are full.
    stop_seconds: for which requests may go on when the server is told to stop.
    connections: at a time. pictures: that one request may ask for. picture_pixels: of one picture that is sent.
    grown_pixels: of one that is drawn on beyond its edges, at its end.
    """

    body_bytes: int = 16 * 1024 * 1024
    held_bytes: int = 256 * 1024 * 1024
    head_seconds: float = 10.0
    body_seconds: float = 60.0
    read_seconds: float = 60.0
    stop_seconds: float = 30.0
    connections: int = 512
    pictures: int = 10
    picture_pixels: int = 16 * 1024 * 1024
    grown_pixels: int = 4 * 1024 * 1024

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:
                raise UserError(f"{name} must be above 0, got {value}")
