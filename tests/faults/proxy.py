"""A TCP proxy with faults on demand: cut connections, swallowed data, latency."""

import contextlib
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Self

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


class Proxy:
    """Forward 127.0.0.1:port to a unix socket or (host, port). `swallow`: read and drop the data of new connections."""

    def __init__(self, upstream: Path | tuple[str, int], port: int = 0) -> None:
        self.upstream = upstream
        self.swallow = False
        self.latency = 0.0  # seconds in each direction
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._holes: set[tuple[socket.socket, socket.socket]] = set()  # their data is swallowed until they close
        self._lock = threading.Lock()
        self._closing = False
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, share: float = 1.0) -> int:
        """Reset connections, the oldest first. Return the number of reset connections."""
        with self._lock:
            chosen = sorted(self._pairs, key=lambda pair: pair[0].fileno())
            chosen = chosen[: max(1, round(len(chosen) * share))] if chosen else []
        for pair in chosen:
            self._end(pair)
        return len(chosen)

    def black_hole(self) -> None:
        """Stop forwarding and closing: open connections stay dead, new connections are accepted and not served."""
        self.swallow = True
        with self._lock:
            self._holes |= self._pairs

    def heal(self) -> None:
        """Serve new connections again. Swallowed connections stay dead, as after a lost route."""
        self.swallow, self.latency = False, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX) if isinstance(self.upstream, Path) else socket.socket()
            try:
                server.connect(str(self.upstream) if isinstance(self.upstream, Path) else self.upstream)
            except OSError:
                server.close()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                client.close()
                continue
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
                if self.swallow:
                    self._holes.add(pair)
            for source, target in (pair, pair[::-1]):
                threading.Thread(target=self._pump, args=[pair, source, target], daemon=True).start()

    def _pump(self, pair: tuple[socket.socket, socket.socket], source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if pair not in self._holes:
                    if self.latency:
                        time.sleep(self.latency)
                    target.sendall(data)
        self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            known = pair in self._pairs
            self._pairs.discard(pair)
            self._holes.discard(pair)
        for end in pair if known else ():
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.shutdown(socket.SHUT_RDWR)
            end.close()
