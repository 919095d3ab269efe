"""How a fold may go about it; imports nothing, so that a command line can name it."""

from __future__ import annotations

from typing import Literal

ClipMode = Literal["auto", "always", "never"]
"""Whether an activation may get bounds per channel: where it pays, always, never."""

MergeMode = Literal["auto", "never"]
"""Whether linear ops that can be one become one: where it costs nothing, never."""
