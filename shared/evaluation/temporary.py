"""A temporary system for `askfolder eval`: its documents, its data folder, and its processes."""

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
from shared.client import Client, NotRunningError, local_address
from shared.errors import AskfolderError, PermanentError
from shared.evaluation.question_sets import read_corpus
from shared.providers import minilm
from shared.providers.choice import LOCAL_MODEL
from shared.settings import load, names, read
from shared.system.up import READY_SECONDS, Say, System, started

OWN = ("inbox", "data", "host", "port", "flower_port", "database_url", "redis_url")  # settings of a temporary system
MARK = "eval.json"  # in a kept folder: names its documents
REPORT_SECONDS = 15.0  # between lines about the progress


@contextlib.contextmanager
def workplace(keep: Path | None, documents: str) -> Iterator[Path]:
    """Yield the folder to work in. Raises PermanentError when the folder to keep belongs to other documents."""
    if keep is None:
        folder = Path(tempfile.mkdtemp(prefix="askfolder-eval-"))
        try:
            yield folder
        finally:
            for _ in range(50):  # a process that was stopped during its start may still write a file
                shutil.rmtree(folder, ignore_errors=True)
                if not folder.exists():
                    break
                time.sleep(0.1)
        return
    mark = keep / MARK
    try:
        keep.mkdir(parents=True, exist_ok=True)
        if not mark.exists() and any(keep.iterdir()):
            raise PermanentError(f"{keep} holds other files: name a new or empty folder with --keep.")
        if not mark.exists():
            mark.write_text(json.dumps({"documents": documents}))
        kept = json.loads(mark.read_text())["documents"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PermanentError(f"{keep} cannot be used with --keep ({error}).") from None
    if kept != documents:
        raise PermanentError(f"{keep} holds the index of {kept}, not of {documents}: name another folder with --keep.")
    yield keep


def write_corpus(folder: Path, target: Path) -> dict[str, str]:
    """Write each document of a BEIR folder as a file of `target`, unless it is there. Return file name → id."""
    ids: dict[str, str] = {}
    target.mkdir(exist_ok=True)
    for name, title, text in read_corpus(folder):
        file = file_name(name) + (".md" if title.strip() else ".txt")
        if file in ids:
            raise PermanentError(f"{folder} has the document {name} twice.")
        ids[file] = name
        content = f"# {' '.join(title.split())}\n\n{text}\n" if title.strip() else f"{text}\n"
        data, path = content.encode("utf-8", "replace"), target / file
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)
    if not ids:
        raise PermanentError(f"The corpus of {folder} holds no document.")
    for path in target.iterdir():
        if path.name not in ids:
            path.unlink()
    return ids


def file_name(name: str) -> str:
    """Return a file name, without suffix, that every file system accepts and no rule ignores.

    Names of different documents differ in more than case.
    """
    if re.fullmatch("[a-z0-9][a-z0-9_-]{0,99}", name):
        return name
    readable = re.sub("[^a-z0-9_-]+", "-", name.lower())[:60].strip("-_")
    return f"{readable}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:12]}".lstrip("-")


def gather(paths: Iterable[Path], target: Path) -> Path:
    """Return the folder to index: the given one, or `target` with copies of several files and folders."""
    originals = [Path(os.path.abspath(path.expanduser())) for path in paths]
    for path in originals:
        if not path.exists():
            raise PermanentError(f"{path} does not exist: name files or folders of documents with --documents.")
        if target.absolute().is_relative_to(path):
            raise PermanentError(
                f"{path} holds {target.parent}, where the index would be: name another folder with --keep."
            )
    if len(originals) == 1 and originals[0].is_dir():
        return originals[0]
    shared = Path(os.path.commonpath([path.parent for path in originals]))
    wanted = target.with_name("documents.new")
    shutil.rmtree(wanted, ignore_errors=True)
    for path in originals:
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
    """Return the data folder for these changed settings. Each has its own, so that a kept index is not built again."""
    if not changes:
        return work / "data"
    return work / f"data-{hashlib.sha256(json.dumps(sorted(changes.items())).encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def temporary(documents: Path, data: Path, changes: Mapping[str, str], say: Say) -> Iterator[Client]:
    """Run a system that has indexed all `documents`, with this checkout's settings and `changes` to them."""
    if taken := sorted(name for name in changes if names().get(name) in OWN):
        raise PermanentError(f"{taken[0]} cannot be set: a temporary system uses its own value.")
    port, flower_port = _free_ports()
    own = dict(zip(OWN, (documents, data, "127.0.0.1", port, flower_port, "", ""), strict=True))
    settings = read(changes).model_copy(update=own)
    _lend_model(data)
    with started(settings, say, without=("flower",), env=changes) as system:
        system.ready(threading.Event())
        with Client(local_address(settings), keys.key(settings), settings.ask_seconds + 10) as client:
            _wait(system, client, say)
            yield client


def _free_ports() -> tuple[int, int]:
    with socket.socket() as web, socket.socket() as flower:
        web.bind(("127.0.0.1", 0))
        flower.bind(("127.0.0.1", 0))
        return web.getsockname()[1], flower.getsockname()[1]


def _lend_model(data: Path) -> None:
    """Link the built-in model, if this checkout has built it already."""
    model, link = load().data / LOCAL_MODEL, data / LOCAL_MODEL
    if link.is_symlink() and not link.exists():
        link.unlink()
    if not link.exists() and minilm.is_whole(model):
        data.mkdir(mode=0o711, parents=True, exist_ok=True)  # the servers' user must pass
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(model)


def _wait(system: System, client: Client, say: Say) -> None:
    """Wait until every document of the folder is indexed or has failed."""
    asked = _scan(system, client)
    next_report = time.monotonic() + REPORT_SECONDS
    while True:
        if problem := system.revive():
            raise PermanentError(problem)
        rows = [row for row in client.call("GET", "/sources")["sources"] if row["id"] in asked["sources"]]
        if problem := next((row["problem"] for row in rows if row["held"] or row["problem"]), None):
            raise PermanentError(problem)
        if rows and all(row["scanned_at"] and row["scanned_at"] > asked["asked_at"] for row in rows):
            listing = client.call("GET", "/documents", query={"limit": 1})
            counts, files = listing["counts"], sum(row["scan"]["files"] for row in rows)
            waiting = counts.get("queued", 0) + counts.get("ingesting", 0)
            if not waiting and not listing["building"] and sum(counts.values()) >= files:
                if not counts.get("ready"):
                    raise PermanentError(f"{system.settings.inbox} holds no document that can be read.")
                return
            if time.monotonic() > next_report:
                next_report = time.monotonic() + REPORT_SECONDS
                done, left = sum(counts.values()) - waiting, listing["load"]["eta_seconds"]
                say(f"{done:,} of {files:,} documents{f', about {left:.0f} s to go' if left else ''} …")
        time.sleep(0.2)


def _scan(system: System, client: Client) -> dict[str, Any]:
    """Request a scan of the folder, as soon as the producer accepts one."""
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
