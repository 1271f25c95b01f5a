"""Chunks: the parts of a source that one worker reads each.

Every source can do two things: cut itself into chunks, which is cheap and done once, and read one chunk, which is done
by many workers at once.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

DOCUMENTS_PER_CHUNK = 500


class Chunk(NamedTuple):
    """A part of one source that one worker reads.

    Attributes:
        source: index of the source among all sources.
        first: number of the first line, or of the row group.
        items: what to read; only the source knows how. A list or a range has one item for each document.
        notes: what cutting left out before this chunk, as (what, count).
    """

    source: int
    first: int
    items: Any
    notes: tuple[tuple[str, int], ...] = ()

    @property
    def num_documents(self) -> int | None:
        """Documents in the chunk, `None` where they are not known before it is read."""
        return len(self.items) if isinstance(self.items, (list, range)) else None


def chunked(items: Iterable[Any], source: int, notes: Counter[str]) -> Iterator[Chunk]:
    """Cut items, one for each document, into chunks; what `notes` gathers meanwhile travels with them."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == DOCUMENTS_PER_CHUNK:
            yield Chunk(source, 0, batch, _take(notes))
            batch = []
    if batch or notes:
        yield Chunk(source, 0, batch, _take(notes))


def _take(notes: Counter[str]) -> tuple[tuple[str, int], ...]:
    taken = tuple(sorted(notes.items()))
    notes.clear()
    return taken
