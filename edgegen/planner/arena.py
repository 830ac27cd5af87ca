"""What onnxruntime's CPU allocator makes of a graph's events: memory that it has touched, which it never gives back.

Two things make that more than the peak. The first run of a session takes each value's memory from an arena of regions, which
leaves gaps; and it notes which memory it needed when, so that every later run takes one block for all values, laid out at
once. That block seldom fits into what the first run left, so it comes on top (core/framework/bfc_arena.cc,
mem_pattern_planner.h and execution_frame.cc of onnxruntime 1.31).
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgegen.planner.liveness import Event, rounded

_FIRST_REGION = 1 << 20  # bytes: BFCArena::DEFAULT_INITIAL_CHUNK_SIZE_BYTES
_MOST_UNUSED = 128 << 20  # DEFAULT_MAX_DEAD_BYTES_PER_CHUNK
_LARGEST_STEP = 1 << 30  # DEFAULT_MAX_POWER_OF_TWO_EXTEND_BYTES: regions grow no further


@dataclass
class Chunk:
    """A piece of a region, at its bytes from `start` to `stop`."""

    region: int
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        """From one end to the other."""
        return self.stop - self.start


@dataclass
class Arena:
    """Best fit among the free pieces of regions, each twice as large as the last."""

    free: list[Chunk] = field(default_factory=list)
    next_region: int = _FIRST_REGION
    regions: int = 0
    touched: list[tuple[int, int, int]] = field(default_factory=list)

    def take(self, size_bytes: int) -> Chunk:
        """The smallest free piece that holds so much, of which the rest stays free where it is worth it; or a new region."""
        fitting = [chunk for chunk in self.free if chunk.size_bytes >= size_bytes]
        chunk = min(fitting, key=lambda one: (one.size_bytes, one.region, one.start)) if fitting else self._extend(size_bytes)
        if chunk in self.free:
            self.free.remove(chunk)
        if chunk.size_bytes >= 2 * size_bytes or chunk.size_bytes - size_bytes >= _MOST_UNUSED:
            self.free.append(Chunk(chunk.region, chunk.start + size_bytes, chunk.stop))
            chunk = Chunk(chunk.region, chunk.start, chunk.start + size_bytes)
        self.touched.append((chunk.region, chunk.start, chunk.start + size_bytes))
        return chunk

    def give(self, chunk: Chunk) -> None:
        """A piece becomes free, and one with its free neighbours."""
        beside = [
            one for one in self.free if one.region == chunk.region and chunk.start <= one.stop and one.start <= chunk.stop
        ]
        for one in beside:
            self.free.remove(one)
        ends = [chunk, *beside]
        self.free.append(Chunk(chunk.region, min(one.start for one in ends), max(one.stop for one in ends)))

    def touched_bytes(self) -> int:
        """Of all regions: what was ever handed out."""
        total, place = 0, (-1, 0)
        for region, start, stop in sorted(self.touched):
            reached = place[1] if region == place[0] else 0
            total += max(stop - max(start, reached), 0)
            place = (region, max(stop, reached))
        return total

    def _extend(self, size_bytes: int) -> Chunk:
        is_large_enough = size_bytes <= self.next_region
        while size_bytes > self.next_region:
            self.next_region *= 2
        size = self.next_region
        if is_large_enough and self.next_region < _LARGEST_STEP:
            self.next_region *= 2
        self.regions += 1
        return Chunk(self.regions, 0, size)


def replay(events: Sequence[Event], arena: Arena) -> None:
    """The first run: each value from the arena; what is held at the end goes back, too."""
    held: dict[bytes, Chunk] = {}
    for event in events:
        if event.size_bytes:
            held[event.buffer] = arena.take(event.size_bytes)
        else:
            arena.give(held.pop(event.buffer))
    for chunk in held.values():
        arena.give(chunk)


def block_bytes(events: Sequence[Event]) -> int:
    """The one block of the later runs: each value at the best gap between those that are held when it is made."""
    held: list[tuple[int, int, bytes]] = []
    most = 0
    for event in events:
        if not event.size_bytes:
            held = [one for one in held if one[2] != event.buffer]
            continue
        start = _best_gap(held, event.size_bytes, most)
        bisect.insort(held, (start, start + event.size_bytes, event.buffer))
        most = max(most, start + event.size_bytes)
    return most


def _best_gap(held: Sequence[tuple[int, int, bytes]], size_bytes: int, most: int) -> int:
    """Where the smallest gap begins that is large enough, the end of the block among them; behind everything if none is."""
    reached, found = 0, list[tuple[int, int]]()
    for start, stop, _ in held:
        if start - reached >= size_bytes:
            found.append((start - reached, reached))
        reached = max(reached, stop)
    if most - reached >= size_bytes:
        found.append((most - reached, reached))
    return min(found)[1] if found else reached


def touched_bytes(events: Sequence[Event], outputs: frozenset[bytes], *, has_pattern: bool) -> int:
    """What a session's runs touch, the second and all later ones included.

    Args:
        events: of one run.
        outputs: of the graph: their memory is in no pattern, for they live longer than the run.
        has_pattern: whether later runs take one block (`enable_mem_pattern`; edgegen's sessions with state do not).
    """
    arena = Arena()
    replay(events, arena)
    if has_pattern:
        inner = [event for event in events if event.buffer not in outputs]
        own = [event for event in events if event.buffer in outputs and event.size_bytes]
        block = rounded(block_bytes(inner))
        if block:
            taken = arena.take(block)
            for event in own:
                arena.take(event.size_bytes)
            arena.give(taken)
    return arena.touched_bytes()
