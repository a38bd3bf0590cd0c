"""The child's side of the wall, run by `worker/parsing.py`: tell a file's format and take out its text."""

import json
import os
import resource
import signal
import stat
import sys
from dataclasses import asdict
from typing import Any, BinaryIO

from shared.errors import UnreadableError
from shared.models import Parsed
from worker.formats_detect import detect, later, refuse_broken
from worker.formats_text import parse_text

# liteparse reserves 1.2 GB of address space (measured: 30 MB of it resident), so the fence on addresses stands that
# much higher than the limit on resident memory, which the parent watches.
RESERVED_ADDRESSES = 1536 << 20
TEXT_FORMATS = ("markdown", "rst", "text", "csv", "tsv", "code")


def parse_file(path: str, name: str, max_text_chars: int) -> Parsed:
    """Read the file at `path`. Raises UnreadableError, or OSError when it cannot be opened."""
    data = read_bytes(path, name)
    if not data:
        raise UnreadableError(f"{name} is empty (0 bytes); write something into it and it is read again.")
    format = detect(data, name)
    refuse_broken(format, name)
    if format in TEXT_FORMATS:
        parsed = parse_text(data, name, format)
    elif format == "html":
        from worker.formats_html import parse_html

        parsed = parse_html(data, name)
    elif format == "pdf":
        from worker.formats_pdf import parse_pdf

        parsed = parse_pdf(data, name, max_text_chars)
    elif format in ("docx", "pptx", "xlsx"):
        from worker.formats_office import parse_office

        parsed = parse_office(data, name, format, max_text_chars)
    else:
        raise later(format, name)
    if len(parsed.text) > max_text_chars:
        raise too_long(name, len(parsed.text), max_text_chars)
    if not parsed.text.strip():
        raise UnreadableError(
            f"{name} has no text in it, only blank space; write something into it and it is read again."
        )
    return parsed


def read_bytes(path: str, name: str) -> bytes:
    # O_NONBLOCK: opening a named pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnreadableError(f"{name} is not a regular file; drop a copy of what it stands for instead.")
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def too_long(name: str, chars: int, limit: int) -> UnreadableError:
    return UnreadableError(
        f"{name} holds {chars:,} characters of text, the limit is {limit:,}; split it, or raise ASKFOLDER_MAX_TEXT_MB."
    )


def answer(request: dict[str, Any]) -> dict[str, Any]:
    name = request["name"]
    try:
        return asdict(parse_file(request["path"], name, request["max_text_chars"]))
    except UnreadableError as error:
        return {"error": "unreadable", "message": str(error)}
    except PermissionError:
        return {"error": "permission"}
    except MemoryError:
        return {"error": "memory"}
    except RecursionError:
        return {
            "error": "unreadable",
            "message": f"{name} is nested too deeply to be read; save it again in a simpler form.",
        }
    except OSError as error:
        return {"error": "gone", "message": error.strerror or type(error).__name__}
    except Exception as error:
        message = (
            f"{name} could not be read, it seems damaged; "
            "open it in the program that made it, save it again and drop it again."
        )
        return {"error": "unreadable", "message": message, "detail": f"{type(error).__name__}: {error}"[:500]}


def receive(pipe: BinaryIO) -> dict[str, Any] | None:
    header = pipe.read(8)
    if len(header) < 8:
        return None
    request: dict[str, Any] = json.loads(pipe.read(int.from_bytes(header, "big")))
    return request


def send(pipe: BinaryIO, reply: dict[str, Any]) -> None:
    message = json.dumps(reply, ensure_ascii=False).encode("utf-8")
    pipe.write(len(message).to_bytes(8, "big"))
    pipe.write(message)
    pipe.flush()


def set_limits(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        addresses = memory_bytes + RESERVED_ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))


def main() -> None:
    memory_bytes, seconds = int(sys.argv[1]), float(sys.argv[2])
    # A library that prints must not write into the replies: the real pipe moves away from descriptor 1.
    replies = os.fdopen(os.dup(1), "wb")
    requests = os.fdopen(os.dup(0), "rb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    set_limits(memory_bytes)
    sys.setrecursionlimit(20_000)  # documents nest; Python's frames are no danger to the C stack
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while (request := receive(requests)) is not None:
        # Should the parent die during this document, nobody else would end a reader that hangs.
        signal.alarm(int(seconds) + 30)
        reply = answer(request)
        signal.alarm(0)
        try:
            send(replies, reply)
        except BrokenPipeError:
            break
        if reply.get("error") == "memory":
            break
    os._exit(0)


if __name__ == "__main__":
    main()
