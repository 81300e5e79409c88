"""Progress bars: shown on a terminal, silent elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def track(items: Iterable[T], description: str, **options: Any) -> Iterable[T]:
    """Wrap an iterable in a progress bar that appears after a second and only on a terminal."""
    from tqdm import tqdm

    bar: Iterable[T] = tqdm(items, desc=description, disable=None, leave=False, delay=1.0, **options)
    return bar


def say(text: str) -> None:
    """Print a line among progress bars; only on a terminal."""
    import sys

    from tqdm import tqdm

    if sys.stderr.isatty():
        tqdm.write(text, file=sys.stderr)


__all__ = ["say", "track"]
