"""The parsing child, run by `worker/parsing/parser.py`: detect a file's format and extract its text."""

import errno
import json
import os
import signal
import stat
import sys
from dataclasses import fields, replace
from importlib import import_module
from typing import Any, BinaryIO

from shared.errors import UnreadableError
from shared.models import Parsed
from worker.parsing.blocks import refuse_pages
from worker.parsing.detect import detect, refuse_broken, unsupported
from worker.parsing.limits import allow, die_with, set_limits
from worker.parsing.metadata import document_date, front_matter

MAX_HEADINGS = 100_000  # with MAX_PAGES a bound on the memory of the parent
# Format → module whose `parse(data, name, format, max_text_chars)` reads it. A module is imported with the first
# document of its format, because some libraries take long to load.
PARSERS = {
    **dict.fromkeys(("markdown", "rst", "text", "csv", "tsv", "code"), "text"),
    **dict.fromkeys(("docx", "pptx", "xlsx"), "office"),
    "html": "html",
    "pdf": "pdf",
}


def parse_file(path: str, name: str, max_text_chars: int) -> Parsed:
    """Parse the file at `path`. Raises UnreadableError, or OSError if it cannot be opened."""
    data = read_bytes(path, name)
    if not data:
        raise UnreadableError(f"{name} is empty (0 bytes); write something into it and it is read again.")
    format = detect(data, name)
    refuse_broken(format, name)
    if format not in PARSERS:
        raise unsupported(format, name)
    parsed: Parsed = import_module(f"worker.parsing.{PARSERS[format]}").parse(data, name, format, max_text_chars)
    if format in ("markdown", "text"):  # its words stay in the text, to be searched and cited
        parsed = replace(parsed, metadata=front_matter(parsed.text))
    if len(parsed.text) > max_text_chars:
        raise UnreadableError(
            f"{name} holds {len(parsed.text):,} characters of text, the limit is {max_text_chars:,}; "
            "split it, or raise ASKFOLDER_MAX_TEXT_MB."
        )
    if not parsed.text.strip():
        raise UnreadableError(
            f"{name} has no text in it, only blank space; write something into it and it is read again."
        )
    return bounded(replace(parsed, dated=document_date(parsed.metadata)) if parsed.metadata else parsed, name)


def bounded(parsed: Parsed, name: str) -> Parsed:
    """Remove the lowest levels of too many headings, so that the paths of the others stay correct."""
    refuse_pages(len(parsed.pages), name)
    headings = parsed.headings
    while len(headings) > MAX_HEADINGS:
        lowest = max(heading.level for heading in headings)
        headings = tuple(heading for heading in headings if heading.level < lowest)
    return replace(parsed, headings=headings) if headings is not parsed.headings else parsed


def read_bytes(path: str, name: str) -> bytes:
    # O_NONBLOCK: opening a named pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnreadableError(f"{name} is not a regular file; drop a copy of the file instead.")
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    name = request["name"]
    try:
        parsed = parse_file(request["path"], name, request["max_text_chars"])
        # asdict would copy each value, which takes longer than parsing a small file.
        values = {field.name: getattr(parsed, field.name) for field in fields(parsed)}
        headings = [(heading.start, heading.level, heading.title) for heading in parsed.headings]
        return values | {"headings": headings, "dated": parsed.dated.isoformat() if parsed.dated else None}
    except UnreadableError as error:
        return {"error": "unreadable", "message": str(error)}
    except PermissionError:
        return {"error": "permission"}
    except MemoryError:
        return {"error": "memory"}
    except RecursionError:
        message = f"{name} is nested too deeply to be read; save it again in a simpler form."
        return {"error": "unreadable", "message": message}
    except OSError as error:
        if error.errno == errno.ENOMEM:
            return {"error": "memory"}
        return {"error": "gone", "message": error.strerror or type(error).__name__}
    except Exception as error:
        message = (
            f"{name} could not be read, it seems damaged; "
            "open it in the program that made it, save it again and drop it again."
        )
        return {"error": "unreadable", "message": message, "detail": f"{type(error).__name__}: {error}"[:500]}


def receive(pipe: BinaryIO) -> dict[str, Any] | None:
    header = pipe.read(8)
    size = int.from_bytes(header, "big")
    request: dict[str, Any] | None = json.loads(pipe.read(size)) if len(header) == 8 else None
    return request


def send(pipe: BinaryIO, reply: dict[str, Any]) -> None:
    message = json.dumps(reply, ensure_ascii=False).encode("utf-8")
    pipe.write(len(message).to_bytes(8, "big"))
    pipe.write(message)
    pipe.flush()


def main() -> None:
    memory_bytes, parent = int(sys.argv[1]), int(sys.argv[2])
    # The pipes move away from descriptors 0 and 1, so that a library that prints does not write into a reply.
    replies = os.fdopen(os.dup(1), "wb")
    requests = os.fdopen(os.dup(0), "rb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    die_with(parent)
    set_limits(memory_bytes)
    sys.setrecursionlimit(20_000)  # for nested documents; Python frames do not use the C stack
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    while (request := receive(requests)) is not None:
        allow(request["seconds"])
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
