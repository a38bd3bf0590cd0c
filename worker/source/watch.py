"""Watches a folder by events. They are hints: what they miss is found by a scan, and `lost` says when that is due."""

import contextlib
import errno
import os
import sys
import threading
import time
from pathlib import Path
from typing import Literal

from watchdog.events import (
    DirAttribEvent,
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserverVFS

from shared.log import log
from worker.source.file_system import file_system, is_remote
from worker.source.folder import FolderSource, encode
from worker.source.ignore import RULES

POLL_SECONDS = 1.0
MOVE_SECONDS = 1.0  # a folder that left and did not arrive elsewhere below the root within them was moved out
AGAIN_SECONDS = 1.0  # between two attempts to watch a folder that could not be watched

# Not: opened, closed without a write (our own reading makes those), a folder's modification (what was done in it comes by itself).
EVENTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileModifiedEvent,
    FileClosedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileAttribEvent,
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    DirAttribEvent,
]


class Watch:
    """What happens below a source's root, as keys. `start`, then scan, then `changed` again and again, from one thread."""

    def __init__(self, source: FolderSource, mode: Literal["auto", "poll"]) -> None:
        self.source = source
        self.mode = mode
        self.refused: set[str] = set()  # folders that the kernel had no watch left for
        self._root = ""  # without links: a link itself has no events, and FSEvents reports real paths
        self._identity: tuple[int, int] | None = None
        self._observer: BaseObserver | None = None
        self._error: OSError | None = None
        self._limit: int | None = None  # when the watches were set
        self._next_attempt = 0.0
        self._left: dict[int, float] = {}  # folders moved away, by the kernel's number of the move: since when
        self._keys: set[str] = set()
        self._lost = self._rules_changed = False
        self._news = threading.Condition()

    def start(self) -> None:
        """Starts watching; where that is impossible `problem` says so and `changed` tries again."""
        self._next_attempt = time.monotonic() + AGAIN_SECONDS
        self._limit = _limit("watches")
        self._rules_changed = False
        self._identity = self._error = None
        self.refused.clear()
        self._left.clear()
        observer = None
        try:
            self._root = os.path.realpath(self.source.root)
            self._identity = _identity(self._root)
            observer = self._new_observer()
            observer.schedule(_Handler(self), self._root, recursive=True, event_filter=EVENTS)
            observer.start()
            self._observer = observer
        except OSError as error:
            self._error = error
            if observer:
                observer.stop()

    def stop(self) -> None:
        if self._observer:
            self._observer.stop()
            self._observer.join()
            self._observer = None

    def changed(self, wait: float) -> set[str]:
        """Keys that something happened to, ignored ones left out. Waits so many seconds for the first; restarts what died."""
        if not self.alive() and time.monotonic() >= self._next_attempt:
            self._restart()
        with self._news:
            self._news.wait_for(lambda: self._keys or self._lost or self._rules_changed, wait)
            keys, self._keys = self._keys, set()
        if self._rules_changed or self._moved_out():  # other folders are to be watched now
            self._restart()
        return keys

    @property
    def lost(self) -> bool:
        """Whether events were lost, or may have been: everything must be scanned."""
        return self._lost

    def take_lost(self) -> bool:
        with self._news:
            lost, self._lost = self._lost, False
        return lost

    def alive(self) -> bool:
        """Whether the watcher runs, and on the folder that is at the root now."""
        observer = self._observer
        if observer is None or not observer.is_alive() or not all(emitter.is_alive() for emitter in observer.emitters):
            return False
        try:
            return _identity(os.path.realpath(self.source.root)) == self._identity
        except OSError:
            self._identity = None  # when the same folder is back, what happened in the meantime is not known
            return False

    def problem(self, folders: int) -> str | None:
        """What is not watched, as a sentence. `folders`: how many a whole scan saw."""
        if self._error:
            return self._impossible(self._error)
        if self.refused and _limit("watches") != self._limit:
            self._restart()
        if refused := [path for path in self.refused.copy() if os.path.isdir(path)]:
            return (
                f"{len(refused)} of {folders} folders in {self.source.root} are not watched, changes there are only found by the "
                f"regular scan: this user has no more watches (fs.inotify.max_user_watches is {self._limit}). Raise it "
                f"(sudo sysctl fs.inotify.max_user_watches={_twice(self._limit, folders)}), or set ASKFOLDER_WATCH=poll."
            )
        if self.mode == "auto" and self._observer and is_remote(kind := file_system(Path(self._root))):
            return (
                f"{self.source.root} is on a {kind} file system: what other machines change there is not reported and only found "
                "by the regular scan. Set ASKFOLDER_WATCH=poll to find it sooner."
            )
        return None

    def _impossible(self, error: OSError) -> str:
        start = f"The folder {self.source.root} cannot be watched ({error.strerror or error}); changes are found by the regular scan. "
        if error.errno == errno.ENOSPC:
            limit = _limit("watches")
            return start + (
                f"fs.inotify.max_user_watches is {limit}: raise it (sudo sysctl fs.inotify.max_user_watches={_twice(limit, 0)}), "
                "or set ASKFOLDER_WATCH=poll."
            )
        if error.errno == errno.EMFILE:
            limit = _limit("instances")
            return start + (
                f"fs.inotify.max_user_instances is {limit}: raise it (sudo sysctl fs.inotify.max_user_instances={_twice(limit, 0)}), "
                "or set ASKFOLDER_WATCH=poll."
            )
        return (
            start + "Check that it exists and may be read by this user; if that does not help set ASKFOLDER_WATCH=poll."
        )

    def _moved_out(self) -> bool:
        """Whether a folder left the root: watchdog goes on watching it, and trips when another takes its name or it comes back."""
        return any(time.monotonic() - since > MOVE_SECONDS for since in self._left.copy().values())

    def _restart(self) -> None:
        self.stop()
        self.start()
        if self._observer:
            log.info(f"Watching {self.source.root} again", action="watch.restarted")
            self._lose()

    def _new_observer(self) -> BaseObserver:
        if self.mode == "poll":
            return PollingObserverVFS(
                stat=os.lstat,
                listdir=lambda folder: self.source.entries(self.key(folder or "") or ""),
                polling_interval=POLL_SECONDS,
            )
        if sys.platform == "linux":
            return _Inotify(self)
        return Observer()

    # --- called by the observer's threads ---

    def key(self, path: str) -> str | None:
        """The key of a path below the root; None when it is the root itself, or elsewhere."""
        start = self._root.rstrip("/") + "/"
        return encode(path[len(start) :]) or None if path.startswith(start) else None

    def ignores(self, path: str) -> bool:
        key = self.key(path)
        return key is not None and self.source.ignores(key)

    def _happened(self, paths: set[str]) -> None:
        rules = any(os.path.basename(path) == RULES and not self.ignores(os.path.dirname(path)) for path in paths)
        keys = {key for path in paths if (key := self.key(path)) and not self.source.ignores(key)}
        if rules or not keys <= self._keys:
            with self._news:
                self._keys |= keys
                self._rules_changed |= rules
                self._news.notify()

    def _lose(self) -> None:
        with self._news:
            self._lost = True
            self._news.notify()


class _Handler(FileSystemEventHandler):
    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_any_event(self, event: FileSystemEvent) -> None:
        self.watch._happened({os.fsdecode(path) for path in (event.src_path, event.dest_path) if path})


if sys.platform == "linux":
    from watchdog.observers.inotify import InotifyEmitter
    from watchdog.observers.inotify_c import CallbackId, InotifyEvent, InotifyFD, Mask, WatchCallback, WatchDescriptor

    class _Reader(InotifyFD):
        """watchdog's reader of the kernel's events, which otherwise passes over what it could not watch or has lost."""

        def __init__(self, watch: Watch) -> None:
            super().__init__()
            self.watch = watch

        def add_callback(self, path: bytes, mask: Mask, callback: WatchCallback, id_: CallbackId) -> WatchDescriptor:
            name = os.fsdecode(path)
            # watchdog leaves out a folder below the root that an OSError is raised for; a closed one it would take for watched
            if self.watch.ignores(name):
                raise OSError(errno.EPERM, "ignored")
            if not os.access(path, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            try:
                return super().add_callback(path, mask, callback, id_)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    self.watch.refused.add(name)
                raise

        def handle_event(self, event: InotifyEvent) -> None:
            if event.is_moved_from and event.is_directory:
                self.watch._left[event.cookie] = time.monotonic()
            elif event.is_moved_to:
                self.watch._left.pop(event.cookie, None)
            try:
                super().handle_event(event)
            finally:
                if event.is_queue_overflow:  # after the watches were set again: what a scan misses from now on is seen
                    self.watch._lose()

    class _Inotify(BaseObserver):
        """As watchdog's InotifyObserver, with our reader."""

        def __init__(self, watch: Watch) -> None:
            self.reader = _Reader(watch)
            self.reader.start()
            super().__init__(InotifyEmitter, inotify_fd=self.reader)

        def is_alive(self) -> bool:
            return super().is_alive() and self.reader.is_alive()

        def on_thread_stop(self) -> None:
            super().on_thread_stop()
            self.reader.stop()
            self.reader.join()


def _identity(folder: str) -> tuple[int, int]:
    """Raises OSError when it is not there, or no folder."""
    status = os.stat(os.path.join(folder, ""))
    return status.st_dev, status.st_ino


def _limit(name: str) -> int | None:
    """What the kernel allows this user; a container may have less than the machine. None on another system."""
    limits = []
    for path in (f"/proc/sys/fs/inotify/max_user_{name}", f"/proc/sys/user/max_inotify_{name}"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text()))
    return min(limits, default=None)


def _twice(limit: int | None, needed: int) -> int:
    return 2 * max(limit or 0, needed)
