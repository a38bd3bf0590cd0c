"""The scan against the ledger, without Celery: new, renamed and removed files; one producer at a time."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from shared.db import Connection, connect
from shared.ledger import claims, documents, generations, sources
from shared.models import Parsed
from shared.settings import Settings
from worker.indexing import index
from worker.source import guard, scan
from worker.source.folder import FolderSource
from worker.source.scan import Scanner


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def scanner(connection: Connection, inbox: Path, tmp_path: Path) -> Scanner:
    generations.want(connection, "local", "model", "", 8, "1/200/28", "1")
    settings = Settings(inbox=inbox, data=tmp_path / "data")
    return Scanner(settings, connection, FolderSource(inbox), lambda folders: None, index.rename)


def write(path: Path, text: str, age: float = 60.0) -> None:
    """Write a file with an mtime `age` seconds in the past."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)


def ingest_all(connection: Connection, scanner: Scanner) -> None:
    """Do the work of the workers, without chunks."""
    for due in documents.due(connection, [scanner.source_id], 10_000):
        claim = claims.claim(connection, due.id)
        assert claim
        with scanner.source.fetch(claim.key) as file, connection.transaction():
            claims.lock(connection, claim)
            parsed = Parsed(file.path.read_text(), "text", "text")
            claims.set_text(connection, claim, parsed, file.revision, file.sha256)
            claims.ready(connection, claim)


def states(connection: Connection) -> dict[str, str]:
    return {row.key: row.state for row in documents.known(connection, 1).values()}


def problem(connection: Connection) -> tuple[str | None, bool]:
    (row,) = sources.listed(connection)
    return row["problem"], row["held"]  # type: ignore[return-value]


def settle(scanner: Scanner, below: set[str] | None = None, seconds: float = guard.MASS_STILL_SECONDS) -> None:
    """Scan twice, so that stable removals are applied."""
    scanner.scan(below)
    time.sleep(seconds + 0.05)
    scanner.scan(below)


def filled(connection: Connection, scanner: Scanner, inbox: Path, count: int) -> None:
    for n in range(count):
        write(inbox / f"{n:03}.txt", f"text {n}")
    scanner.scan()
    ingest_all(connection, scanner)


# --- new and changed files ---


def test_new_changed_touched_removed_and_restored_files(scanner: Scanner, connection: Connection, inbox: Path) -> None:
    write(inbox / "a.txt", "one")
    scanner.scan()
    assert states(connection) == {"a.txt": "queued"}
    ingest_all(connection, scanner)
    scanner.scan()
    assert states(connection) == {"a.txt": "ready"}, "nothing is done twice"
    write(inbox / "a.txt", "two", 30)
    scanner.scan()
    assert states(connection) == {"a.txt": "queued"}
    ingest_all(connection, scanner)
    (inbox / "a.txt").unlink()
    scanner.scan()
    assert states(connection) == {"a.txt": "ready"}, "more removals may follow, or the file may be written again"
    settle(scanner, {"a.txt"}, guard.STILL_SECONDS)
    assert states(connection) == {"a.txt": "deleted"}
    write(inbox / "a.txt", "three", 20)
    scanner.scan({"a.txt"})
    assert states(connection) == {"a.txt": "queued"}


def test_an_unfinished_file_waits(scanner: Scanner, connection: Connection, inbox: Path) -> None:
    path = inbox / "slow.txt"
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nf = open(sys.argv[1], 'w')\nfor n in range(4):\n"
            "    f.write(f'part {n}\\n'); f.flush(); time.sleep(0.7)\n",
            str(path),
        ],
    )
    while not path.exists():
        time.sleep(0.01)
    while writer.poll() is None:  # the writer pauses for longer than the usual quiet period of a file
        scanner.scan()
        time.sleep(0.1)
        if writer.poll() is None:
            assert states(connection) == {}, path.read_text()
    scanner.scan()
    time.sleep(scan.SETTLE_SECONDS + 0.05)
    scanner.scan()
    assert states(connection) == {"slow.txt": "queued"}
    assert scanner.unsettled == {}


def test_a_file_that_stays_open_is_finally_queued(
    scanner: Scanner, connection: Connection, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "HELD_OPEN_SECONDS", 0.2)
    with (inbox / "log.txt").open("w") as log:
        log.write("a line\n")
        log.flush()
        scanner.scan()
        assert states(connection) == {}
        time.sleep(0.25)
        scanner.scan()
        assert states(connection) == {"log.txt": "queued"}


def test_an_unfinished_file_that_disappears_is_forgotten(scanner: Scanner, inbox: Path) -> None:
    (inbox / "a.txt").write_text("half")
    scanner.scan()
    assert set(scanner.unsettled) == {"a.txt"}
    (inbox / "a.txt").unlink()
    scanner.scan({"a.txt"})
    assert scanner.unsettled == {}


def test_a_single_new_file_does_not_wait_for_many_others(scanner: Scanner, connection: Connection, inbox: Path) -> None:
    for n in range(scan.CROWD * 2):
        write(inbox / f"{n}.txt", "x")
    write(inbox / "among.txt", "a note " * 50, age=10)  # the newest file
    scanner.scan()
    write(inbox / "after.txt", "a longer note " * 50)
    scanner.scan({"after.txt"})
    due = documents.due(connection, [scanner.source_id], scan.CROWD + 1)
    assert {"among.txt", "after.txt"} <= {document.key for document in due}


# --- renamed files ---


@pytest.mark.parametrize("touched", [False, True])
def test_renamed_file_keeps_its_document(scanner: Scanner, connection: Connection, inbox: Path, touched: bool) -> None:
    write(inbox / "a.txt", "the same")
    write(inbox / "b.txt", "of a size")
    scanner.scan()
    ingest_all(connection, scanner)
    before = documents.known(connection, scanner.source_id)["a.txt"].id
    (inbox / "sub").mkdir()
    (inbox / "a.txt").rename(inbox / "sub" / "c.txt")
    if touched:
        os.utime(inbox / "sub" / "c.txt")
    scanner.scan({"a.txt", "sub"})
    known = documents.known(connection, scanner.source_id)
    assert {key: row.state for key, row in known.items()} == {"sub/c.txt": "ready", "b.txt": "ready"}
    assert known["sub/c.txt"].id == before
    scanner.scan()
    assert documents.due(connection, [scanner.source_id], 10) == []


def test_rename_ends_the_lease(scanner: Scanner, connection: Connection, inbox: Path) -> None:
    write(inbox / "a.txt", "first")
    scanner.scan()
    ingest_all(connection, scanner)
    write(inbox / "a.txt", "secon", 50)
    scanner.scan()
    (due,) = documents.due(connection, [scanner.source_id], 10)
    claim = claims.claim(connection, due.id)
    assert claim
    (inbox / "a.txt").unlink()
    write(inbox / "b.txt", "first", 40)  # the old bytes under another name
    scanner.scan()
    assert states(connection) == {"b.txt": "ready"}
    with pytest.raises(claims.LostClaim):
        claims.progress(connection, claim, "embedding")


def test_a_folder_is_moved_in_and_out(scanner: Scanner, connection: Connection, inbox: Path, tmp_path: Path) -> None:
    for n in range(3):
        write(tmp_path / "elsewhere" / f"{n}.txt", f"text {n}")
    (tmp_path / "elsewhere").rename(inbox / "sub")
    scanner.scan({"sub"})
    ingest_all(connection, scanner)
    assert states(connection) == dict.fromkeys(("sub/0.txt", "sub/1.txt", "sub/2.txt"), "ready")
    (inbox / "sub").rename(tmp_path / "elsewhere")
    settle(scanner, {"sub"}, guard.STILL_SECONDS)
    assert set(states(connection).values()) == {"deleted"}


def test_other_bytes_with_equal_size_and_time_are_noticed(
    scanner: Scanner, connection: Connection, inbox: Path
) -> None:
    write(inbox / "a.txt", "one")
    write(inbox / "b.txt", "six")
    scanner.scan()
    ingest_all(connection, scanner)
    status = (inbox / "a.txt").stat()
    (inbox / "a.txt").write_text("two")
    os.utime(inbox / "a.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    scanner.scan()
    assert states(connection) == {"a.txt": "ready", "b.txt": "ready"}, "invisible without reading"
    scanner.scan(rehash=True)
    assert states(connection) == {"a.txt": "queued", "b.txt": "ready"}
    ingest_all(connection, scanner)
    assert claims.text(connection, documents.known(connection, 1)["a.txt"].id)[1].text == "two"  # type: ignore[index]


# --- removals that need confirmation ---


def test_removal_of_a_large_share_needs_confirmation(scanner: Scanner, connection: Connection, inbox: Path) -> None:
    filled(connection, scanner, inbox, 50)
    for n in range(30):
        (inbox / f"{n:03}.txt").unlink()
    write(inbox / "new.txt", "new")
    settle(scanner)
    assert set(states(connection).values()) == {"ready"}
    assert len(states(connection)) == 50, "new files are not queued either"
    message, held = problem(connection)
    assert held
    assert "30 of the 50 documents" in str(message)
    assert "askfolder reconcile --confirm" in str(message)
    assert scanner.stopped
    scanner.scan(confirmed=True)
    assert sorted(states(connection).values()) == ["deleted"] * 30 + ["queued"] + ["ready"] * 20
    assert problem(connection) == (None, False)


def test_scans_resume_when_the_files_are_back(
    scanner: Scanner, connection: Connection, inbox: Path, tmp_path: Path
) -> None:
    filled(connection, scanner, inbox, 40)
    inbox.rename(tmp_path / "away")
    scanner.scan()
    assert "cannot be read" in str(problem(connection)[0])
    inbox.mkdir()
    settle(scanner)
    message, held = problem(connection)
    assert held
    assert "not the same folder as before" in str(message)
    inbox.rmdir()
    (tmp_path / "away").rename(inbox)
    scanner.scan()
    assert problem(connection) == (None, False)
    assert set(states(connection).values()) == {"ready"}


def test_a_replacement_by_a_small_folder_is_noticed(
    scanner: Scanner, connection: Connection, inbox: Path, tmp_path: Path
) -> None:
    filled(connection, scanner, inbox, 2)
    inbox.rename(tmp_path / "old")
    inbox.mkdir()
    write(inbox / "other.txt", "other")
    settle(scanner, seconds=guard.STILL_SECONDS)
    assert "not the same folder as before" in str(problem(connection)[0])
    assert states(connection) == {"000.txt": "ready", "001.txt": "ready"}


def test_small_numbers_and_small_shares_are_removed_at_once(
    scanner: Scanner, connection: Connection, inbox: Path
) -> None:
    filled(connection, scanner, inbox, 60)
    for n in range(19):
        (inbox / f"{n:03}.txt").unlink()
    settle(scanner, seconds=guard.STILL_SECONDS)
    assert sorted(set(states(connection).values())) == ["deleted", "ready"]
    for n in range(19, 39):
        (inbox / f"{n:03}.txt").unlink()
    for _ in range(2):
        scanner.scan()
        assert list(states(connection).values()).count("deleted") == 19, (
            "many at once are looked at twice, a second apart"
        )
    time.sleep(guard.MASS_STILL_SECONDS + 0.05)
    scanner.scan()
    assert list(states(connection).values()).count("deleted") == 39


def test_a_removal_in_progress_is_applied_only_when_stable(
    scanner: Scanner, connection: Connection, inbox: Path
) -> None:
    """During `rm -r` of a large folder each scan sees more removals; only stable removals may be applied."""
    filled(connection, scanner, inbox, 100)
    for n in range(80):
        (inbox / f"{n:03}.txt").unlink()
        if n in (0, 4) or n % 10 == 9:
            scanner.scan({f"{k:03}.txt" for k in range(n + 1)})
            time.sleep(0.2)
    time.sleep(guard.MASS_STILL_SECONDS + 0.05)
    scanner.scan()
    assert set(states(connection).values()) == {"ready"}
    assert "80 of the 100" in str(problem(connection)[0])


def test_removals_that_never_become_stable_are_finally_applied(
    scanner: Scanner, connection: Connection, inbox: Path
) -> None:
    filled(connection, scanner, inbox, 60)
    for n in range(18):
        (inbox / f"{n:03}.txt").unlink()
        scanner.scan()
        time.sleep(0.2)
    assert "deleted" in states(connection).values()


def test_removals_by_an_ignore_rule_need_no_confirmation(scanner: Scanner, connection: Connection, inbox: Path) -> None:
    filled(connection, scanner, inbox, 40)
    (inbox / ".askfolderignore").write_text("*.txt\n")
    settle(scanner)
    assert set(states(connection).values()) == {"deleted"}
    assert problem(connection) == (None, False)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs root and `mount`")
def test_unmounted_folder_changes_nothing(scanner: Scanner, connection: Connection, inbox: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "none", str(inbox)], capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        filled(connection, scanner, inbox, 3)
    finally:
        subprocess.run(["umount", str(inbox)], check=True)
    settle(scanner, seconds=guard.STILL_SECONDS)
    assert "unmounted" in str(problem(connection)[0])
    assert set(states(connection).values()) == {"ready"}


def test_an_unreadable_folder_keeps_its_documents(
    scanner: Scanner, connection: Connection, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(inbox / "sub" / "a.txt", "one")
    write(inbox / "b.txt", "two")
    scanner.scan()
    ingest_all(connection, scanner)
    complete = scanner.source.discover()  # the tests may run as root, who can read every folder
    seen = replace(complete, files=[file for file in complete.files if file.key == "b.txt"], closed=["sub"])
    monkeypatch.setattr(scanner.source, "discover", lambda below: seen)
    settle(scanner)
    assert set(states(connection).values()) == {"ready"}
    assert "sub" in str(problem(connection)[0])


# --- one producer at a time ---


def test_a_second_producer_waits_and_takes_over(database_url: str, connection: Connection) -> None:
    with connect(database_url) as first, connect(database_url) as second:
        assert sources.serve(first, "folder", "/somewhere")
        assert not sources.serve(second, "folder", "/somewhere")
        assert sources.serve(second, "folder", "/elsewhere"), "another folder is another's"
        connection.execute("SELECT pg_terminate_backend(%s)", [first.info.backend_pid])
        deadline = time.monotonic() + 5
        while not sources.serve(second, "folder", "/somewhere"):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_scan_is_requested_only_from_the_serving_producer(
    database_url: str, connection: Connection, scanner: Scanner
) -> None:
    assert sources.ask_scan(connection, True, False) == []
    with connect(database_url) as serving:
        sources.serve(serving, "folder", str(scanner.source.root))
        assert sources.ask_scan(connection, True, False) == [scanner.source_id]
        assert sources.asked_scan(connection, scanner.source_id) == (True, False)
        assert sources.asked_scan(connection, scanner.source_id) is None


# --- at scale ---


def test_twenty_thousand_files_are_queued_by_one_scan(scanner: Scanner, connection: Connection, inbox: Path) -> None:
    for folder in range(20):
        (inbox / str(folder)).mkdir()
        for n in range(1000):
            (inbox / str(folder) / f"{n}.txt").touch()
    past = time.time() - 60
    for path in inbox.rglob("*.txt"):
        os.utime(path, (past, past))
    scanner.scan()
    assert len(states(connection)) == 20_000
    shutil.move(inbox / "3", inbox / "three")
    scanner.scan()
    assert not scanner.stopped
