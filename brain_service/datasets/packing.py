"""Several short sequences in one row: best fit, longest first, from the lengths alone.

Best fit decreasing puts each piece into the fullest row that still takes it, and needs at most 11/9 of the rows
of the best packing, plus one (Johnson et al., SIAM J. Comput. 3, 1974).
"""

from bisect import bisect_left, insort

import numpy as np
from jaxtyping import Int64

from brain_service.datasets.rows import RowTable, plan_windows

__all__ = ["pack_rows"]


def pack_rows(lengths: Int64[np.ndarray, " n"], sequence_length: int) -> RowTable:
    """Return rows of at most T steps, each of one or more windows; every step lies in exactly one of them.

    `lengths` are the episodes' steps, shape `[n]`.

    Within a row a window that starts inside its episode comes first: there it can still be given what was done
    just before it.
    """
    windows = plan_windows(lengths, sequence_length)
    order = np.lexsort((windows[:, 1], windows[:, 0], -windows[:, 2]))
    sizes = windows[:, 2].tolist()
    rows: list[list[int]] = []
    room: dict[int, list[int]] = {}  # rows by the steps that they still take
    rooms: list[int] = []  # the keys of `room`, in order
    for window in order.tolist():
        size = sizes[window]
        place = bisect_left(rooms, size)
        if place == len(rooms):
            row, left = len(rows), sequence_length
            rows.append([])
        else:
            left = rooms[place]
            row = room[left].pop()
            if not room[left]:
                del room[left], rooms[place]
        rows[row].append(window)
        if left > size:
            if left - size not in room:
                insort(rooms, left - size)
            room.setdefault(left - size, []).append(row)
    return _table(windows, rows)


def _table(windows: Int64[np.ndarray, "windows 3"], rows: list[list[int]]) -> RowTable:
    starts = windows[:, 1].tolist()
    ordered = [window for row in rows for window in sorted(row, key=lambda window: (starts[window] == 0, window))]
    bounds = np.cumsum([0] + [len(row) for row in rows], dtype=np.int64)
    pieces = windows[ordered]
    ends = np.cumsum(pieces[:, 2])
    # A piece starts where the steps before it in its row end.
    before = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    columns = before - np.repeat(before[bounds[:-1]], np.diff(bounds))
    return RowTable(np.concatenate([columns[:, None], pieces], axis=1), bounds)
