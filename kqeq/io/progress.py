"""Progress on standard error: shown on a terminal or on request, silent elsewhere.

    with kqeq.show_progress():          # in a batch job: lines with an estimate of the rest
        model.fit(frames)

The environment variable ``KQEQ_PROGRESS`` (1 or 0) decides for a whole process where nobody asks.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

VARIABLE = "KQEQ_PROGRESS"

SELDOM = 10.0
"""Seconds between two states of a bar where it does not go to a terminal."""

_ASKED: ContextVar[bool | None] = ContextVar("kqeq_progress", default=None)


def shown() -> bool:
    """Whether progress is shown: as asked for, else as the environment says, else on a terminal."""
    asked = _ASKED.get()
    if asked is not None:
        return asked
    said = os.environ.get(VARIABLE, "")
    if said in ("0", "1"):
        return said == "1"
    return bool(sys.stderr is not None and sys.stderr.isatty())


@contextmanager
def show_progress(show: bool | None = True) -> Iterator[None]:
    """Show progress, or do not, inside a ``with`` block.

    Parameters
    ----------
    show : bool, optional
        ``None`` leaves it to the environment and the terminal.
    """
    token = _ASKED.set(show if show is not None else _ASKED.get())
    try:
        yield
    finally:
        _ASKED.reset(token)


def track(items: Iterable[T], description: str, **options: Any) -> Iterable[T]:
    """Wrap an iterable in a progress bar that appears after a second."""
    from tqdm import tqdm

    if not shown():
        return items
    terminal = sys.stderr.isatty()
    options.setdefault("mininterval", 0.1 if terminal else SELDOM)
    bar: Iterable[T] = tqdm(
        items, desc=description, leave=False, delay=1.0 if terminal else SELDOM, ascii=not terminal, **options
    )
    return bar


def say(text: str) -> None:
    """Print a line among progress bars."""
    from tqdm import tqdm

    if shown():
        tqdm.write(text, file=sys.stderr)


class Remaining:
    """Estimates how long an iteration still takes from how fast its measure falls.

    Parameters
    ----------
    most : int
        Iterations after which it ends in any case.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.times: list[float] = [time.perf_counter()]
        self.measures: list[float] = []

    def note(self, measure: float, target: float) -> tuple[int | None, float | None, float]:
        """Take note of an iteration.

        Parameters
        ----------
        measure : float
            What falls, roughly geometrically.
        target : float
            At which it ends.

        Returns
        -------
        more : int or None
            Iterations that remain, about, at most as many as are left; ``None`` where nothing has fallen yet.
        seconds : float or None
            What they take, about.
        longest : float
            Seconds if all that are left are needed.
        """
        self.times.append(time.perf_counter())
        self.measures.append(measure)
        done = len(self.measures)
        left = max(0, self.most - done)
        each = (self.times[-1] - self.times[max(0, done - 3)]) / min(done, 3)
        more: int | None = None
        if target > 0.0 and measure <= target:
            more = 0
        elif done > 1 and target > 0.0 and 0.0 < measure < self.measures[0]:
            # the mean fall of the last three iterations
            before = self.measures[max(0, done - 4)]
            rate = math.log(before / measure) / (done - 1 - max(0, done - 4))
            if rate > 0.0:
                more = min(left, math.ceil(math.log(measure / target) / rate))
        return more, None if more is None else more * each, left * each


def duration(seconds: float) -> str:
    """For example ``40 s``, ``3 min``, ``1 h 20 min``."""
    if seconds < 90.0:
        return f"{seconds:.2g} s" if seconds < 10.0 else f"{seconds:.0f} s"
    minutes = round(seconds / 60.0)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


__all__ = ["VARIABLE", "Remaining", "duration", "say", "show_progress", "shown", "track"]
