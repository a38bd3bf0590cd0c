"""The child's side of the wall, run by `worker/parsing/parser.py`: tell a file's format and take out its text."""

import errno
import json
import os
import signal
import stat
import sys
from dataclasses import replace
from typing import Any, BinaryIO

from shared.errors import UnreadableError
from shared.models import Parsed
from worker.parsing.blocks import refuse_pages
from worker.parsing.detect import detect, later, refuse_broken
from worker.parsing.limits import allow, die_with, set_limits
from worker.parsing.metadata import document_date, front_matter
from worker.parsing.text import parse_text

MAX_HEADINGS = 100_000  # with MAX_PAGES it bounds what the parent has to hold, however small they are
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
        if format in ("markdown", "text"):  # it stays in the text too: its words can be searched for and cited
            parsed = replace(parsed, metadata=front_matter(parsed.text))
    elif format == "html":
        from worker.parsing.html import parse_html

        parsed = parse_html(data, name)
    elif format == "pdf":
        from worker.parsing.pdf import parse_pdf

        parsed = parse_pdf(data, name, max_text_chars)
    elif format in ("docx", "pptx", "xlsx"):
        from worker.parsing.office import parse_office

        parsed = parse_office(data, name, format, max_text_chars)
    else:
        raise later(format, name)
    if len(parsed.text) > max_text_chars:
        raise too_long(name, len(parsed.text), max_text_chars)
    if not parsed.text.strip():
        raise UnreadableError(
            f"{name} has no text in it, only blank space; write something into it and it is read again."
        )
    return bounded(replace(parsed, dated=document_date(parsed.metadata)) if parsed.metadata else parsed, name)


def bounded(parsed: Parsed, name: str) -> Parsed:
    """Leave the lowest levels out of too many headings: the paths that stay are true."""
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
        parsed = parse_file(request["path"], name, request["max_text_chars"])
        # Not asdict: it copies every value, which takes longer than reading a small file.
        return {
            "text": parsed.text,
            "format": parsed.format,
            "kind": parsed.kind,
            "title": parsed.title,
            "headings": [(heading.start, heading.level, heading.title) for heading in parsed.headings],
            "pages": parsed.pages,
            "metadata": parsed.metadata,
            "dated": parsed.dated.isoformat() if parsed.dated else None,
        }
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
    if len(header) < 8:
        return None
    request: dict[str, Any] = json.loads(pipe.read(int.from_bytes(header, "big")))
    return request


def send(pipe: BinaryIO, reply: dict[str, Any]) -> None:
    message = json.dumps(reply, ensure_ascii=False).encode("utf-8")
    pipe.write(len(message).to_bytes(8, "big"))
    pipe.write(message)
    pipe.flush()


def main() -> None:
    memory_bytes, parent = int(sys.argv[1]), int(sys.argv[2])
    # A library that prints must not write into the replies: the real pipe moves away from descriptor 1.
    replies = os.fdopen(os.dup(1), "wb")
    requests = os.fdopen(os.dup(0), "rb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    die_with(parent)
    set_limits(memory_bytes)
    sys.setrecursionlimit(20_000)  # documents nest; Python's frames are no danger to the C stack
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
