"""A whole system over some documents, in a folder that is removed in the end or kept for the next time: for `askfolder eval`."""

import contextlib
import filecmp
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shared import keys
from shared.client import Client, NotRunningError
from shared.errors import AskfolderError, PermanentError
from shared.evaluation.question_sets import read_corpus
from shared.providers import minilm
from shared.providers.choice import LOCAL_MODEL
from shared.settings import load, read
from shared.system.up import READY_SECONDS, Say, System, started

OWN = {
    "DATABASE_URL",
    "REDIS_URL",
    "ASKFOLDER_INBOX",
    "ASKFOLDER_DATA",
    "ASKFOLDER_HOST",
    "ASKFOLDER_PORT",
    "ASKFOLDER_FLOWER_PORT",
}
MARK = "eval.json"  # in a kept folder: whose documents these are
SAY_SECONDS = 15.0


@contextlib.contextmanager
def workplace(keep: Path | None, documents: str) -> Iterator[Path]:
    """The folder to work in. Raises PermanentError when the one to keep holds something else than these documents."""
    if keep is None:
        folder = Path(tempfile.mkdtemp(prefix="askfolder-eval-"))
        try:
            yield folder
        finally:
            for _ in range(50):  # what was ended in the middle of its start may still write a file
                shutil.rmtree(folder, ignore_errors=True)
                if not folder.exists():
                    break
                time.sleep(0.1)
        return
    mark = keep / MARK
    try:
        keep.mkdir(parents=True, exist_ok=True)
        if not mark.exists() and any(keep.iterdir()):
            raise PermanentError(f"{keep} holds other things: name a folder that is new or empty with --keep.")
        if not mark.exists():
            mark.write_text(json.dumps({"documents": documents}))
        kept = json.loads(mark.read_text())["documents"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PermanentError(f"{keep} cannot be used with --keep ({error}).") from None
    if kept != documents:
        raise PermanentError(f"{keep} holds the index of {kept}, not of {documents}: name another folder with --keep.")
    yield keep


def write_corpus(folder: Path, target: Path) -> dict[str, str]:
    """Each document of a BEIR folder as a file of `target`, what is there already left alone. Returns file name → id."""
    ids: dict[str, str] = {}
    target.mkdir(exist_ok=True)
    for name, title, text in read_corpus(folder):
        file = file_name(name) + (".md" if title.strip() else ".txt")
        if file in ids:
            raise PermanentError(f"{folder} has the document {name} twice.")
        ids[file] = name
        content = f"# {' '.join(title.split())}\n\n{text}\n" if title.strip() else f"{text}\n"
        whole, path = content.encode("utf-8", "replace"), target / file
        if not path.exists() or path.read_bytes() != whole:
            path.write_bytes(whole)
    if not ids:
        raise PermanentError(f"The corpus of {folder} holds no document.")
    for path in target.iterdir():
        if path.name not in ids:
            path.unlink()
    return ids


def file_name(name: str) -> str:
    """A name that every file system takes, that no rule ignores, and that differs in more than case; without an ending."""
    if re.fullmatch("[a-z0-9][a-z0-9_-]{0,99}", name):
        return name
    readable = re.sub("[^a-z0-9_-]+", "-", name.lower())[:60].strip("-_")
    return f"{readable}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:12]}".lstrip("-")


def gather(paths: Iterable[Path], target: Path) -> Path:
    """The folder to mirror: the only one that is named, or copies in `target` of several, under the folder they share."""
    whole = [Path(os.path.abspath(path.expanduser())) for path in paths]
    for path in whole:
        if not path.exists():
            raise PermanentError(f"{path} is not there: name files or folders of documents with --documents.")
        if target.absolute().is_relative_to(path):
            raise PermanentError(
                f"{path} holds {target.parent}, where the index would be: name another folder with --keep."
            )
    if len(whole) == 1 and whole[0].is_dir():
        return whole[0]
    shared = Path(os.path.commonpath([path.parent for path in whole]))
    wanted = target.with_name("documents.new")
    shutil.rmtree(wanted, ignore_errors=True)
    for path in whole:
        copy = wanted / path.relative_to(shared)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, copy, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(path, copy)
    if target.exists() and _same(filecmp.dircmp(wanted, target)):
        shutil.rmtree(wanted)
        return target
    shutil.rmtree(target, ignore_errors=True)
    wanted.rename(target)
    return target


def _same(compared: "filecmp.dircmp[str]") -> bool:
    differs = compared.left_only or compared.right_only or compared.diff_files or compared.funny_files
    return not differs and all(_same(below) for below in compared.subdirs.values())


def data_folder(work: Path, changes: Mapping[str, str]) -> Path:
    """Where the index with these changed settings lies: one for each, so that a kept one is not built again."""
    if not changes:
        return work / "data"
    return work / f"data-{hashlib.sha256(json.dumps(sorted(changes.items())).encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def temporary(documents: Path, data: Path, changes: Mapping[str, str], say: Say) -> Iterator[Client]:
    """A system that holds all of `documents`, with the settings of here and `changes` to them."""
    if taken := sorted(OWN & changes.keys()):
        raise PermanentError(f"{taken[0]} cannot be chosen: a temporary system has its own.")
    with _free_ports() as (port, flower_port):
        settings = read(changes).model_copy(
            update={
                "inbox": documents,
                "data": data,
                "host": "127.0.0.1",
                "port": port,
                "flower_port": flower_port,
                "database_url": "",
                "redis_url": "",
            }
        )
    _lend_model(data)
    more = {
        **changes,
        "ASKFOLDER_HOST": "127.0.0.1",
        "ASKFOLDER_PORT": str(port),
        "ASKFOLDER_FLOWER_PORT": str(flower_port),
    }
    with started(settings, say, without=("flower",), more=more) as system:
        system.ready(threading.Event())
        with Client(f"http://127.0.0.1:{port}", keys.key(settings), settings.ask_seconds + 10) as client:
            _wait(system, client, say)
            yield client


@contextlib.contextmanager
def _free_ports() -> Iterator[tuple[int, int]]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        yield int(one.getsockname()[1]), int(other.getsockname()[1])


def _lend_model(data: Path) -> None:
    """The built-in model, when this checkout has built it already."""
    built, here = load().data / LOCAL_MODEL, data / LOCAL_MODEL
    if here.is_symlink() and not here.exists():
        here.unlink()
    if not here.exists() and minilm.is_whole(built):
        data.mkdir(mode=0o711, parents=True, exist_ok=True)  # the servers' user must pass
        here.parent.mkdir(exist_ok=True)
        here.symlink_to(built)


def _wait(system: System, client: Client, say: Say) -> None:
    """Waits until everything in the folder is in the index, or failed for good."""
    asked = _scan(system, client)
    said = time.monotonic()
    while True:
        if problem := system.revive():
            raise PermanentError(problem)
        rows = [row for row in client.call("GET", "/sources")["sources"] if row["id"] in asked["sources"]]
        if held := next((row["problem"] for row in rows if row["held"] or row["problem"]), None):
            raise PermanentError(held)
        if rows and all(row["scanned_at"] and row["scanned_at"] > asked["asked_at"] for row in rows):
            listing = client.call("GET", "/documents", query={"limit": 1})
            counts, files = listing["counts"], sum(row["scan"]["files"] for row in rows)
            waiting = counts.get("queued", 0) + counts.get("ingesting", 0)
            if not waiting and not listing["building"] and sum(counts.values()) >= files:
                if not counts.get("ready"):
                    raise PermanentError(f"{system.settings.inbox} holds no document that can be read.")
                return
            if time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                left = listing["load"]["eta_seconds"]
                say(
                    f"{sum(counts.values()) - waiting:,} of {files:,} documents"
                    + (f", about {left:.0f} s to go" if left else "")
                    + " …"
                )
        time.sleep(0.2)


def _scan(system: System, client: Client) -> dict[str, Any]:
    """Asks for a look at the whole folder, as soon as the producer takes it."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        system.revive()
        try:
            asked: dict[str, Any] = client.call("POST", "/reconcile", {})
            return asked
        except NotRunningError:
            raise
        except AskfolderError:  # no producer yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
