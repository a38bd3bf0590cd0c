"""`askfolder questions`: read the question log of a running system, and make question sets of rated answers."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shared.client import Client
from shared.errors import PermanentError

RATINGS = {"up": 1, "down": -1, "none": 0}
_MARK = re.compile(r"\s?\[\d{1,4}\](?!\w)")


def read(client: Client, rated: str | None, limit: int | None) -> Iterator[dict[str, Any]]:
    """Yield logged questions, newest first. `rated`: a key of RATINGS, or None for all."""
    query = {} if rated is None else {"rating": RATINGS[rated]}
    while limit is None or limit > 0:
        page = client.call("GET", "/questions", query={"limit": min(limit or 1000, 1000), **query})
        yield from page["questions"]
        limit = None if limit is None else limit - len(page["questions"])
        if page["next_cursor"] is None:
            return
        query["cursor"] = page["next_cursor"]


def export(rows: Sequence[dict[str, Any]], rated: str, path: Path) -> tuple[int, int]:
    """Write a question set, each question once. Return the numbers of written and of left out questions.

    An answer rated up becomes the reference; it is left out if the text that it cites has changed. For an answer rated
    down, the answer and its citations are written with an empty `relevant`, which a person has to fill in:
    `askfolder eval` refuses the line until then.
    """
    lines: list[dict[str, Any]] = []
    seen: set[str] = set()
    stale = 0
    for row in rows:  # only the newest answer to a question counts
        if row["question"] in seen:
            continue
        seen.add(row["question"])
        line = _right(row) if rated == "up" else _wrong(row)
        if line is None:
            stale += 1
        else:
            lines.append({"id": row["id"], "question": row["question"], **line})
    try:
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    except OSError as error:
        raise PermanentError(f"{path} cannot be written ({error.strerror}).") from None
    return len(lines), stale


def _right(row: dict[str, Any]) -> dict[str, Any] | None:
    if row["verdict"] == "no_answer":
        return {"answerable": False}
    spans: dict[str, list[list[int]]] = {}
    for citation in row["citations"]:
        span = [citation["char_start"], citation["char_end"]]
        if citation["stands"] and span not in spans.setdefault(citation["source"], []):
            spans[citation["source"]].append(span)
    if not all(citation["stands"] for citation in row["citations"]):
        return None  # the cited text has changed
    return {"relevant": list(spans), "spans": spans, "answer": _MARK.sub("", row["answer"])}


def _wrong(row: dict[str, Any]) -> dict[str, Any]:
    cited = sorted({citation["source"] for citation in row["citations"]})
    looked_at = list(dict.fromkeys(passage["source"] for passage in row["passages"]))
    return {"relevant": [], "answered": row["answer"], "cited": cited, "looked_at": looked_at}
