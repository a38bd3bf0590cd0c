"""Watch a folder by file system events. Events are hints: a scan finds what they miss, and `lost` asks for one."""

import contextlib
import errno
import os
import sys
import threading
import time
from pathlib import Path
from typing import Literal

from watchdog import events
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserverVFS

from shared.log import log
from worker.source.file_system import file_system, is_remote
from worker.source.folder import FolderSource
from worker.source.ignore import RULES
from worker.source.paths import encode

if sys.platform == "linux":
    from worker.source.inotify import Callbacks, Inotify

POLL_SECONDS = 1.0
MOVE_SECONDS = 1.0  # a folder that left the root and did not arrive below it so soon was moved out
AGAIN_SECONDS = 1.0  # between two attempts to watch a folder that could not be watched

# Left out: files opened or closed without a write (our own reads), and modified folders (their entries are reported).
EVENTS: list[type[FileSystemEvent]] = [
    events.FileCreatedEvent,
    events.FileModifiedEvent,
    events.FileClosedEvent,
    events.FileDeletedEvent,
    events.FileMovedEvent,
    events.FileAttribEvent,
    events.DirCreatedEvent,
    events.DirDeletedEvent,
    events.DirMovedEvent,
    events.DirAttribEvent,
]


class Watch(FileSystemEventHandler):
    """Collects the keys that change below a source's root. Call `start`, scan, then `changed` again and again.

    `observer`: watchdog's threads, None if the folder cannot be watched. `lost`: events may be lost, full scan due.
    """

    def __init__(self, source: FolderSource, mode: Literal["auto", "poll"]) -> None:
        self.source = source
        self.mode = mode
        self.observer: BaseObserver | None = None
        self.lost = False
        self._root = ""  # resolved: a link itself has no events, and FSEvents reports real paths
        self._identity: tuple[int, int] | None = None
        self._error: OSError | None = None
        self._limit: int | None = None  # of watches, at the start
        self._next_attempt = 0.0
        self._refused: set[str] = set()  # folders beyond the limit of watches
        self._left: dict[int, float] = {}  # number of a move out of a watched folder → when
        self._keys: set[str] = set()
        self._rules_changed = False
        self._news = threading.Condition()

    def start(self) -> None:
        """Start watching. After a failure `problem` returns the reason and `changed` tries again."""
        self._next_attempt = time.monotonic() + AGAIN_SECONDS
        self._limit = _limit("watches")
        self._rules_changed = False
        self._identity = self._error = None
        self._refused.clear()
        self._left.clear()
        observer = None
        try:
            self._root = os.path.realpath(self.source.root)
            self._identity = _identity(self._root)
            observer = self._new_observer()
            observer.schedule(self, self._root, recursive=True, event_filter=EVENTS)
            observer.start()
            self.observer = observer
        except OSError as error:
            self._error = error
            if observer:
                observer.stop()

    def stop(self) -> None:
        if self.observer:
            self.observer.stop()
            self.observer.join()
            self.observer = None

    def changed(self, wait: float) -> set[str]:
        """Return the changed keys that are not ignored; wait so many seconds for the first. Restart a dead watcher."""
        if not self.alive() and time.monotonic() >= self._next_attempt:
            self._restart()
        with self._news:
            self._news.wait_for(lambda: self._keys or self.lost or self._rules_changed, wait)
            keys, self._keys = self._keys, set()
        # A folder that left the root stays watched, and watchdog fails when it comes back or another takes its name.
        moved_out = any(time.monotonic() - since > MOVE_SECONDS for since in self._left.copy().values())
        if self._rules_changed or moved_out:
            self._restart()
        return keys

    def take_lost(self) -> bool:
        """Return `lost` and reset it."""
        with self._news:
            lost, self.lost = self.lost, False
        return lost

    def alive(self) -> bool:
        """Return True if the observer runs and watches the folder that is now at the root."""
        observer = self.observer
        if observer is None or not observer.is_alive() or not all(emitter.is_alive() for emitter in observer.emitters):
            return False
        try:
            return _identity(os.path.realpath(self.source.root)) == self._identity
        except OSError:
            self._identity = None  # if the same folder comes back, events in between are unknown
            return False

    def problem(self, folders: int) -> str | None:
        """Return a sentence about unwatched folders, if any. `folders`: number of folders in the last full scan."""
        if self._error:
            return self._impossible(self._error)
        if self._refused and _limit("watches") != self._limit:
            self._restart()
        if refused := [path for path in self._refused.copy() if os.path.isdir(path)]:
            return (
                f"{len(refused)} of {folders} folders in {self.source.root} are not watched; changes there are found "
                "only by the regular scan, because the limit of watches is reached. "
                f"{_raise_limit('watches', self._limit, folders)}"
            )
        if self.mode == "auto" and self.observer and is_remote(kind := file_system(Path(self._root))):
            return (
                f"{self.source.root} is on a {kind} file system, which does not report changes by other machines; only "
                "the regular scan finds them. Set ASKFOLDER_WATCH=poll to find them sooner."
            )
        return None

    def _impossible(self, error: OSError) -> str:
        name = {errno.ENOSPC: "watches", errno.EMFILE: "instances"}.get(error.errno or 0)
        advice = (
            _raise_limit(name, _limit(name), 0)
            if name
            else "Check that it exists and may be read by this user; if this does not help, set ASKFOLDER_WATCH=poll."
        )
        return (
            f"The folder {self.source.root} cannot be watched ({error.strerror or error}); changes are found by the "
            f"regular scan. {advice}"
        )

    def _restart(self) -> None:
        self.stop()
        self.start()
        if self.observer:
            log.info(f"Watching {self.source.root} again", action="watch.restarted")
            self._lose()

    def _new_observer(self) -> BaseObserver:
        if self.mode == "poll":
            return PollingObserverVFS(
                stat=os.lstat,
                listdir=lambda folder: self.source.rules.entries(self._key(folder or "") or ""),
                polling_interval=POLL_SECONDS,
            )
        if sys.platform == "linux":
            return Inotify(Callbacks(self._ignores, self._refused.add, self._move, self._lose))
        return Observer()

    # --- called by the observer's threads ---

    def _key(self, path: str) -> str | None:
        """Return the key of a path below the root, None for the root itself and for paths elsewhere."""
        start = self._root.rstrip("/") + "/"
        return encode(path[len(start) :]) or None if path.startswith(start) else None

    def _ignores(self, path: str) -> bool:
        key = self._key(path)
        return key is not None and self.source.rules.ignores(key)

    def on_any_event(self, event: FileSystemEvent) -> None:
        paths = {os.fsdecode(path) for path in (event.src_path, event.dest_path) if path}
        rules = any(os.path.basename(path) == RULES and not self._ignores(os.path.dirname(path)) for path in paths)
        keys = {key for path in paths if (key := self._key(path)) and not self.source.rules.ignores(key)}
        if rules or not keys <= self._keys:
            with self._news:
                self._keys |= keys
                self._rules_changed |= rules
                self._news.notify()

    def _move(self, number: int, leaves: bool) -> None:
        if leaves:
            self._left[number] = time.monotonic()
        else:
            self._left.pop(number, None)

    def _lose(self) -> None:
        with self._news:
            self.lost = True
            self._news.notify()


def _identity(folder: str) -> tuple[int, int]:
    """Return device and inode of a folder. Raises OSError if it is missing or not a folder."""
    status = os.stat(os.path.join(folder, ""))
    return status.st_dev, status.st_ino


def _limit(name: str) -> int | None:
    """Return the kernel's limit for this user (a container may have a lower one), None on other systems."""
    limits = []
    for path in (f"/proc/sys/fs/inotify/max_user_{name}", f"/proc/sys/user/max_inotify_{name}"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text()))
    return min(limits, default=None)


def _raise_limit(name: str, limit: int | None, needed: int) -> str:
    setting = f"fs.inotify.max_user_{name}"
    enough = 2 * max(limit or 0, needed)
    return f"{setting} is {limit}: raise it (sudo sysctl {setting}={enough}), or set ASKFOLDER_WATCH=poll."
