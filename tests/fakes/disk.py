"""The operating system's file calls, watched: each one that changes a file or folder below `root` is shown first.

`watched(root, watcher)` replaces the functions of `os`, and `open` for writing, that Python code changes files
with. A watcher sees every change before it happens (and may refuse it with an `OSError`, delay it, or have it left
out) and again when it has returned. Reads, and whatever lies outside `root`, pass untouched. What C code writes by
itself (SQLite) is not seen; calls that would slip past (`sendfile`, `copy_file_range`) are refused.
"""

import builtins
import contextlib
import errno
import io
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

__all__ = ["Call", "Kind", "Watcher", "watched"]

Kind = Literal["open", "create", "write", "truncate", "sync", "link", "rename", "unlink", "mkdir", "rmdir", "drop"]


@dataclass(slots=True, eq=False)
class Call:
    """One change. `handle` numbers the open file it goes through (never used again, unlike a descriptor).

    `size_bytes` is a truncation's new size; `data_only` tells fdatasync from fsync; `target` is where a link or
    rename goes. `open` is a file that stood there already. `drop` changes nothing on the medium: what the cache
    holds of `size_bytes` at `offset` is forgotten, where that is clean.
    """

    kind: Kind
    path: str
    handle: int | None = None
    target: str | None = None
    offset: int = 0
    data: bytes = b""
    size_bytes: int = 0
    data_only: bool = False
    is_folder: bool = False


class Watcher(Protocol):
    """Sees the changes below a folder, on the threads that make them."""

    def before(self, call: Call) -> bool:
        """Look at a change that is about to happen; False leaves it out, as if the code did not make it.

        Raises:
            OSError: the medium refuses.
        """

    def after(self, call: Call, done: int | None) -> None:
        """Look at its outcome: bytes written (0 for other kinds), or None where the kernel refused."""


class _Layer:
    """The replacements, one method a function of `os`. Open files are known by descriptor and numbered."""

    def __init__(self, root: Path, watcher: Watcher, first_handle: int) -> None:
        self._root = os.path.realpath(root)
        self._watcher = watcher
        self._real = {name: getattr(os, name) for name in _NAMES}
        self._real_open = io.open
        self._files: dict[int, tuple[int, str, bool, bool]] = {}  # number, path, is folder, appends
        self._numbers = itertools.count(first_handle)
        self._lock = threading.Lock()

    def replacements(self) -> dict[str, Callable[..., Any]]:
        """Return what to put into `os` under each name."""
        return {name: getattr(self, f"_{name}") for name in _NAMES}

    def open_file(self, file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        """`open`: for writing below `root`, a file object whose every write goes through `os.write`."""
        if not set(mode) & set("wax+") or self._below(file) is None:
            return self._real_open(file, mode, *rest, **more)
        return _file_object(file, mode, *rest, **more)

    def _below(self, path: Any, folder: int | None = None) -> str | None:
        """Return the absolute path if it lies in `root`."""
        if isinstance(path, int):
            known = self._files.get(path)
            return known[1] if known else None
        text = os.fsdecode(path)
        if folder is not None and not os.path.isabs(text):  # noqa: PTH117
            text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)  # noqa: PTH118
        parent, name = os.path.split(os.path.abspath(text))  # noqa: PTH100
        whole = os.path.join(os.path.realpath(parent), name)  # noqa: PTH118
        return whole if whole == self._root or whole.startswith(self._root + os.sep) else None

    def _make(self, call: Call, really: Callable[[], Any]) -> Any:
        """Show the change, make it, show its outcome."""
        if not self._watcher.before(call):
            self._watcher.after(call, len(call.data))
            return len(call.data)
        try:
            result = really()
        except OSError:
            self._watcher.after(call, None)
            raise
        self._watcher.after(call, result if call.kind == "write" else 0)
        return result

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        whole = self._below(path, dir_fd)
        really = self._real["open"]
        if whole is None:
            return int(really(path, flags, mode, dir_fd=dir_fd))
        number = next(self._numbers)
        is_new = bool(flags & os.O_CREAT) and not os.path.lexists(whole)
        is_folder = os.path.isdir(whole)  # noqa: PTH112
        call = Call("create" if is_new else "open", whole, number, is_folder=is_folder)
        fd = int(self._make(call, lambda: really(path, flags, mode, dir_fd=dir_fd)))
        if flags & os.O_TRUNC and not is_new:
            cut = Call("truncate", whole, number)
            self._watcher.before(cut)
            self._watcher.after(cut, 0)
        with self._lock:
            self._files[fd] = (number, whole, is_folder, bool(flags & os.O_APPEND))
        return fd

    def _close(self, fd: int) -> None:
        with self._lock:
            self._files.pop(fd, None)
        self._real["close"](fd)

    def _write_at(self, name: str, fd: int, data: Any, offset: int | None, *arguments: Any) -> int:
        really = self._real[name]
        known = self._files.get(fd)
        if known is None:
            return int(really(fd, *arguments))
        if offset is None:
            offset = os.lseek(fd, 0, os.SEEK_END if known[3] else os.SEEK_CUR)
        call = Call("write", known[1], known[0], offset=offset, data=data)
        return int(self._make(call, lambda: really(fd, *arguments)))

    def _write(self, fd: int, data: Any) -> int:
        return self._write_at("write", fd, bytes(data), None, data)

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        return self._write_at("pwrite", fd, bytes(data), offset, data, offset)

    def _writev(self, fd: int, buffers: Any) -> int:
        return self._write_at("writev", fd, b"".join(map(bytes, buffers)), None, buffers)

    def _pwritev(self, fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        return self._write_at("pwritev", fd, b"".join(map(bytes, buffers)), offset, buffers, offset, flags)

    def _ftruncate(self, fd: int, length: int) -> None:
        known = self._files.get(fd)
        really = self._real["ftruncate"]
        if known is None:
            really(fd, length)
        else:
            call = Call("truncate", known[1], known[0], size_bytes=length)
            self._make(call, lambda: really(fd, length))

    def _truncate(self, path: Any, length: int) -> None:
        fd = os.open(path, os.O_RDWR) if not isinstance(path, int) else path
        try:
            os.ftruncate(fd, length)
        finally:
            if fd != path:
                os.close(fd)

    def _sync_file(self, name: str, fd: int) -> None:
        known = self._files.get(fd)
        really = self._real[name]
        if known is None:
            really(fd)
        else:
            call = Call("sync", known[1], known[0], data_only=name == "fdatasync", is_folder=known[2])
            self._make(call, lambda: really(fd))

    def _fsync(self, fd: int) -> None:
        self._sync_file("fsync", fd)

    def _fdatasync(self, fd: int) -> None:
        self._sync_file("fdatasync", fd)

    def _posix_fadvise(self, fd: int, offset: int, length: int, advice: int) -> None:
        known = self._files.get(fd)
        really = self._real["posix_fadvise"]
        if known is None or advice != os.POSIX_FADV_DONTNEED:
            really(fd, offset, length, advice)
        else:
            call = Call("drop", known[1], known[0], offset=offset, size_bytes=length)
            self._make(call, lambda: really(fd, offset, length, advice))

    def _move(self, name: str, kind: Kind, source: Any, target: Any, **folders: Any) -> None:
        really = self._real[name]
        begin = self._below(source, folders.get("src_dir_fd"))
        end = self._below(target, folders.get("dst_dir_fd"))
        if begin is None and end is None:
            really(source, target, **folders)
            return
        if begin is None or end is None:
            raise OSError(errno.EXDEV, "the watched folder is a file system of its own")
        self._make(Call(kind, begin, target=end), lambda: really(source, target, **folders))

    def _link(self, src: Any, dst: Any, **folders: Any) -> None:
        self._move("link", "link", src, dst, **folders)

    def _rename(self, src: Any, dst: Any, **folders: Any) -> None:
        self._move("rename", "rename", src, dst, **folders)

    def _replace(self, src: Any, dst: Any, **folders: Any) -> None:
        self._move("replace", "rename", src, dst, **folders)

    def _at_path(self, name: str, kind: Kind, path: Any, *mode: int, dir_fd: int | None = None) -> None:
        whole = self._below(path, dir_fd)
        really = self._real[name]
        if whole is None:
            really(path, *mode, dir_fd=dir_fd)
        else:
            self._make(Call(kind, whole), lambda: really(path, *mode, dir_fd=dir_fd))

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._at_path("unlink", "unlink", path, dir_fd=dir_fd)

    def _remove(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._at_path("remove", "unlink", path, dir_fd=dir_fd)

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._at_path("mkdir", "mkdir", path, mode, dir_fd=dir_fd)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._at_path("rmdir", "rmdir", path, dir_fd=dir_fd)

    def _symlink(self, src: Any, dst: Any, *rest: Any, **more: Any) -> None:
        self._unseen("symlink", dst, src, dst, *rest, **more)

    def _posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        self._unseen("posix_fallocate", fd, fd, offset, length)

    def _sendfile(self, out_fd: int, *rest: Any, **more: Any) -> Any:
        return self._unseen("sendfile", out_fd, out_fd, *rest, **more)

    def _copy_file_range(self, src: int, dst: int, *rest: Any, **more: Any) -> Any:
        return self._unseen("copy_file_range", dst, src, dst, *rest, **more)

    def _unseen(self, name: str, place: Any, *arguments: Any, **more: Any) -> Any:
        if self._below(place) is not None:
            raise OSError(errno.EINVAL, f"the watched folder does not know {name}")
        return self._real[name](*arguments, **more)


class _File(io.RawIOBase):
    """An open file that writes through `os`, so that the layer sees it."""

    def __init__(self, fd: int, mode: str) -> None:
        self._fd = fd
        self._mode = mode

    def readable(self) -> bool:
        return "r" in self._mode or "+" in self._mode

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = os.read(self._fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        return os.write(self._fd, data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return os.lseek(self._fd, offset, whence)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        os.ftruncate(self._fd, size)
        return size

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


_NAMES = (
    "close", "copy_file_range", "fdatasync", "fsync", "ftruncate", "link", "mkdir", "open", "posix_fadvise",
    "posix_fallocate", "pwrite", "pwritev", "remove", "rename", "replace", "rmdir", "sendfile", "symlink",
    "truncate", "unlink", "write", "writev",
)  # fmt: skip


def _file_object(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    **_: Any,
) -> Any:
    """Return what `open` would, on top of `_File`."""
    flags = os.O_RDWR if "+" in mode else os.O_WRONLY
    flags |= {"w": os.O_CREAT | os.O_TRUNC, "a": os.O_CREAT | os.O_APPEND, "x": os.O_CREAT | os.O_EXCL, "r": 0}[
        mode.strip("bt+")
    ]
    raw = _File(file if isinstance(file, int) else os.open(file, flags | os.O_CLOEXEC, 0o666), mode)
    if "a" in mode:
        raw.seek(0, os.SEEK_END)
    if buffering == 0:
        return raw
    buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)


@contextlib.contextmanager
def watched(root: Path, watcher: Watcher, first_handle: int = 0) -> Iterator[None]:
    """Show `watcher` every change below `root` that this process makes inside the block."""
    layer = _Layer(root, watcher, first_handle)
    with contextlib.ExitStack() as stack:
        for name, replacement in layer.replacements().items():
            stack.callback(setattr, os, name, getattr(os, name))
            setattr(os, name, replacement)
        modules: tuple[Any, ...] = (io, builtins)
        for module in modules:
            stack.callback(setattr, module, "open", module.open)
            module.open = layer.open_file
        yield
