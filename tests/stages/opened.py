"""Record which files a process opens, by any library, with the kernel's inotify."""

import ctypes
import os
import struct
from pathlib import Path

IN_OPEN, IN_Q_OVERFLOW, IN_ISDIR = 0x20, 0x4000, 0x40000000
EVENT = struct.Struct("iIII")


class Opened:
    """A context that records in `paths` the files opened below `root`, in folders that exist when it starts."""

    def __init__(self, root: Path) -> None:
        self.root, self.paths = root, set()

    def __enter__(self):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.queue = self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.queue >= 0, os.strerror(ctypes.get_errno())
        self.folders = {}
        for folder in (self.root, *(path for path in self.root.rglob("*") if path.is_dir() and not path.is_symlink())):
            watch = self.libc.inotify_add_watch(self.queue, os.fsencode(folder), IN_OPEN)
            assert watch >= 0, os.strerror(ctypes.get_errno())
            self.folders[watch] = folder
        return self

    def __exit__(self, *_):
        events = b""
        while True:
            try:
                events += os.read(self.queue, 1 << 16)
            except BlockingIOError:
                break
        os.close(self.queue)
        while events:
            watch, mask, _cookie, length = EVENT.unpack_from(events)
            name = events[EVENT.size : EVENT.size + length].rstrip(b"\0")
            assert not mask & IN_Q_OVERFLOW, "more files were opened than the kernel keeps events of"
            if not mask & IN_ISDIR:
                self.paths.add((self.folders[watch] / os.fsdecode(name)).relative_to(self.root).as_posix())
            events = events[EVENT.size + length :]
