"""What a power cut may leave of the changes that a process made: the model behind the crash tests.

A `Recording` keeps every change of files and folders below its root in order, with the flushes and with what was
promised to clients meanwhile. `Medium` replays it up to any instant, and `survive` draws one of the states in
which the medium may be found at that instant.

What is certain: whatever an fsync or fdatasync that returned without error covered. It covers a change of the same
file (for entries: of the same folder) that had returned before the flush began, nothing else.

What is open, each independently of everything else:
- every 512-byte sector with unflushed changes holds any version it ever had since its last flush, not necessarily
  that of another sector's instant; a sector that never was on the medium may also hold zeros, or bytes of files
  that were deleted earlier (FAT, ext4 with data=writeback);
- the last sector may be torn at any byte;
- the size is any that the file had since its last flush, so it may grow without its data. A shrinking that only
  fdatasync covered stays open (POSIX has it keep only what reading the data back needs);
- every unflushed entry of a folder (create, link, rename, unlink, mkdir) happened or not, in any order, except
  that changes of one and the same name keep theirs, and that a rename is one change. An fsync of a file does not
  save its entry, an fsync of a folder saves neither its files' data nor its own entry in its parent;
- after a flush that failed, what it should have covered counts as clean, as in the kernel's page cache: it stays
  open under every later flush until the sector is written again and flushed.

This is harsher than ext4, XFS, btrfs or F2FS, which order much of it; code that stands this stands those. Outside
the model, for no append-only format can help: a medium that damages sectors which it was not told to write, or
that answers a flush without having flushed.

Sources: POSIX.1-2024 (fsync, fdatasync); Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014;
Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020.
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.disk import Call
from tests.fakes.recording import Begin, Change, End, Event, Recording, Tree
from tests.fakes.sectors import Fate, File, Version

__all__ = ["Medium"]


@dataclass(slots=True, eq=False)
class _Folder:
    """A folder: its entries as processes see them, and as the medium surely has them."""

    entries: dict[str, "File | _Folder"] = field(default_factory=dict)
    base: dict[str, "File | _Folder"] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Entries:
    """One unflushed change of entries: what each name became, and the folders that are still to be flushed."""

    sets: list[tuple[_Folder, str, "File | _Folder | None"]]
    at: int
    waits: list[_Folder]


class Medium:
    """The state of the medium at an instant of a recording: play events in order, then ask what may survive."""

    def __init__(self, recording: Recording) -> None:
        self._root = recording.root
        self._top = _Folder()
        self._open: dict[int, File | _Folder] = {}
        self._pending: list[_Entries] = []
        self._versions: dict[Change, list[Version]] = {}
        self._began: dict[Change, int] = {}
        self._deleted: list[bytes] = []
        self._now = 0
        for path, content in sorted(recording.before_it.items()):
            node = _Folder() if content is None else File(bytearray(content), len(content), bytearray(content))
            folder, name = self._parent(os.path.join(self._root, path))  # noqa: PTH118
            folder.entries[name] = folder.base[name] = node

    def play(self, event: Event) -> None:
        """Take the next event of the recording."""
        self._now += 1
        if isinstance(event, Begin):
            self._begin(event.change)
        elif isinstance(event, End):
            self._end(event.change)

    def survive(self, fate: Fate, rng: random.Random) -> Tree:
        """Return one state in which a power cut at this instant may leave the medium."""
        views: dict[_Folder, dict[str, File | _Folder]] = {}
        undone: set[tuple[_Folder, str]] = set()
        for change in self._pending:
            happens = {"lost": False, "kept": True}.get(fate.entries, rng.random() < 0.5)
            names = {(folder, name) for folder, name, _ in change.sets}
            if not happens or names & undone:
                undone |= names
                continue
            for folder, name, node in change.sets:
                view = views.setdefault(folder, dict(folder.base))
                if node is None:
                    view.pop(name, None)
                else:
                    view[name] = node
        tree: Tree = {}
        self._collect(self._top, "", views, tree, lambda file: file.survive(fate, rng, self._deleted))
        return tree

    def holds(self, handle: int) -> bytes:
        """Return what reading an open file without the cache gives now: of what no flush covered, nothing."""
        node = self._open[handle]
        assert isinstance(node, File)
        return bytes(node.base[: node.base_size])

    def _collect(
        self,
        folder: _Folder,
        prefix: str,
        views: dict[_Folder, dict[str, File | _Folder]],
        tree: Tree,
        content: Callable[[File], bytes],
    ) -> None:
        for name, node in views.get(folder, folder.base).items():
            if isinstance(node, _Folder):
                tree[prefix + name] = None
                self._collect(node, f"{prefix}{name}/", views, tree, content)
            else:
                tree[prefix + name] = content(node)

    def _parent(self, path: str) -> tuple[_Folder, str]:
        *folders, name = Path(path).relative_to(self._root).parts
        here = self._top
        for part in folders:
            found = here.entries[part]
            assert isinstance(found, _Folder), path
            here = found
        return here, name

    def _node(self, path: str) -> "File | _Folder":
        if path == self._root:
            return self._top
        folder, name = self._parent(path)
        return folder.entries[name]

    def _begin(self, change: Change) -> None:
        call = change.call
        self._began[change] = self._now
        if call.kind in ("write", "truncate"):
            file = self._open[call.handle or 0]
            assert isinstance(file, File)
            size = max(len(file.data), call.offset + len(call.data)) if call.kind == "write" else call.size_bytes
            self._versions[change] = file.change(self._now, call.offset, call.data, size)

    def _end(self, change: Change) -> None:
        call, began = change.call, self._began.pop(change)
        for version in self._versions.pop(change, []):
            version.at, version.lost = self._now, change.failed
        if call.kind == "sync":
            self._flush(change, began)
        elif change.failed:
            return
        elif call.kind == "open":
            self._open[call.handle or 0] = self._node(call.path)
        elif call.kind not in ("write", "truncate", "drop"):
            self._rename_or_such(call)

    def _flush(self, change: Change, began: int) -> None:
        node = self._open[change.call.handle or 0]
        if isinstance(node, File):
            if change.failed:
                node.lose(began)
            else:
                node.flush(began, change.call.data_only)
            return
        if change.failed:
            return
        for waiting in self._pending:
            if waiting.at < began:
                waiting.waits = [folder for folder in waiting.waits if folder is not node]
        self._settle_entries()

    def _settle_entries(self) -> None:
        """Move what every folder concerned has flushed to the sure side, and what it builds upon with it."""
        sure: set[tuple[_Folder, str]] = set()
        settled: set[_Entries] = set()
        for change in reversed(self._pending):
            names = {(folder, name) for folder, name, _ in change.sets}
            if not change.waits or names & sure:
                settled.add(change)
                sure |= names
        for change in self._pending:
            if change in settled:
                for folder, name, node in change.sets:
                    if node is None:
                        folder.base.pop(name, None)
                    else:
                        folder.base[name] = node
        self._pending = [change for change in self._pending if change not in settled]

    def _rename_or_such(self, call: Call) -> None:
        folder, name = self._parent(call.path)
        sets: list[tuple[_Folder, str, File | _Folder | None]] = []
        if call.kind in ("create", "mkdir"):
            node: File | _Folder = File() if call.kind == "create" else _Folder()
            if call.handle is not None:
                self._open[call.handle] = node
            sets.append((folder, name, node))
        elif call.kind in ("unlink", "rmdir"):
            gone = folder.entries[name]
            if isinstance(gone, File):
                self._deleted.append(bytes(gone.data))
            sets.append((folder, name, None))
        else:
            target = self._parent(call.target or "")
            sets.append((*target, folder.entries[name]))
            if call.kind == "rename":
                sets.append((folder, name, None))
        for where, entry, now in sets:
            if now is None:
                where.entries.pop(entry)
            else:
                where.entries[entry] = now
        waits = list({id(where): where for where, _, _ in sets}.values())
        self._pending.append(_Entries(sets, self._now, waits))
