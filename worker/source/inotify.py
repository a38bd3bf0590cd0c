"""An observer for Linux over private classes of watchdog (`InotifyFD`, `InotifyEmitter`): check it after an upgrade.

watchdog ignores folders that the kernel refuses to watch, events that the kernel dropped, and folders moved elsewhere.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyEmitter
from watchdog.observers.inotify_c import CallbackId, InotifyEvent, InotifyFD, Mask, WatchCallback, WatchDescriptor


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Functions that the observer calls from its threads, with paths as the file system spells them."""

    ignores: Callable[[str], bool]
    refused: Callable[[str], None]  # the user's limit of watches is reached: this folder is not watched
    moved: Callable[[int, bool], None]  # number of a move; True: a folder left, False: it arrived below the root
    lost: Callable[[], None]


class _Reader(InotifyFD):
    def __init__(self, callbacks: Callbacks) -> None:
        super().__init__()
        self.callbacks = callbacks

    def add_callback(self, path: bytes, mask: Mask, callback: WatchCallback, id_: CallbackId) -> WatchDescriptor:
        name = os.fsdecode(path)
        # watchdog skips a folder below the root after an OSError, but would take an unreadable one for watched.
        if self.callbacks.ignores(name):
            raise OSError(errno.EPERM, "ignored")
        if not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        try:
            return super().add_callback(path, mask, callback, id_)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self.callbacks.refused(name)
            raise

    def handle_event(self, event: InotifyEvent) -> None:
        if event.is_moved_to or (event.is_moved_from and event.is_directory):
            self.callbacks.moved(event.cookie, event.is_moved_from)
        try:
            super().handle_event(event)
        finally:
            if event.is_queue_overflow:  # after watchdog renewed the watches: what the next scan misses has events
                self.callbacks.lost()


class Inotify(BaseObserver):
    """watchdog's InotifyObserver with our reader."""

    def __init__(self, callbacks: Callbacks) -> None:
        self.reader = _Reader(callbacks)
        self.reader.start()
        super().__init__(InotifyEmitter, inotify_fd=self.reader)

    def is_alive(self) -> bool:
        return super().is_alive() and self.reader.is_alive()

    def on_thread_stop(self) -> None:
        super().on_thread_stop()
        self.reader.stop()
        self.reader.join()
