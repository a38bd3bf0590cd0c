"""The watcher on real folders: reported keys, lost events, folders that cannot be watched."""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import until
from worker.source import watch as watch_module
from worker.source.folder import FolderSource
from worker.source.ignore import RULES
from worker.source.watch import Watch

LINUX = sys.platform == "linux"
linux = pytest.mark.skipif(not LINUX, reason="inotify is of Linux")

CHILD = """
import json, sys
from pathlib import Path
from worker.source.folder import FolderSource
from worker.source.watch import Watch
watch = Watch(FolderSource(Path(sys.argv[1])), "auto")
watch.start()
print(json.dumps(["started", False, watch.problem(12)]), flush=True)
while True:
    keys = sorted(watch.changed(0.5))
    lost = watch.take_lost()
    if keys or lost:
        print(json.dumps([keys, lost, watch.problem(12)]), flush=True)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    return tmp_path / "in"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(watch_module, "AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(watch_module, "MOVE_SECONDS", 0.6)


@pytest.fixture(params=["auto", "poll"])
def watch(root: Path, request: pytest.FixtureRequest) -> Iterator[Watch]:
    with watching(root, request.param) as watch:
        yield watch


@contextlib.contextmanager
def watching(root: Path, mode: str = "auto") -> Iterator[Watch]:
    watch = Watch(FolderSource(root), mode)  # type: ignore[arg-type]
    watch.start()
    yield watch
    watch.stop()


def seen(watch: Watch, *want: str, seconds: float = 5) -> set[str]:
    """Wait until the reported keys include the expected keys, and return all reported keys."""
    keys: set[str] = set()
    deadline = time.monotonic() + seconds
    while not keys >= set(want):
        assert time.monotonic() < deadline, f"only {keys} of {want}"
        keys |= watch.changed(0.2)
    return keys


def quiet(watch: Watch) -> None:
    """Discard the events so far."""
    time.sleep(0.25)
    watch.changed(0)


def lost(watch: Watch) -> bool:
    watch.changed(0.05)
    return watch.take_lost()


def kernel_watches() -> int:
    count = 0
    for file in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            count += file.read_text().count("inotify wd:")
    return count


def test_changed_keys_are_reported(root: Path, watch: Watch) -> None:
    (root / "sub" / "a.md").write_text("one")
    (root / "sub" / ".hidden.md").write_text("one")
    (root / "caf\u00e9.md").write_text("one")
    assert seen(watch, "sub/a.md") <= {"caf\u00e9.md", "sub/a.md"}
    quiet(watch)
    (root / "sub" / "a.md").read_text()
    (root / "sub" / "b.tmp").write_text("ignored")
    if LINUX and watch.mode == "auto":
        assert watch.changed(0.3) == set(), "neither reading nor ignored files"
    os.utime(root / "sub" / "a.md", (1, 1))
    assert seen(watch, "sub/a.md") == {"sub/a.md"}
    (root / "sub" / "a.md").unlink()
    assert seen(watch, "sub/a.md") == {"sub/a.md"}
    assert watch.problem(2) is None
    assert not watch.lost


@linux
def test_reading_and_ignored_files_cause_no_event(root: Path) -> None:
    (root / "a.md").write_text("x")
    with watching(root) as watch:
        timer = threading.Timer(0.2, lambda: [(root / "a.md").read_text(), (root / "b.tmp").write_text("x")])
        timer.start()
        began = time.monotonic()
        assert watch.changed(0.6) == set()
        assert time.monotonic() - began > 0.55
        timer.join()


def atomically(path: Path) -> None:
    path.with_name(".a.md.tmp").write_text("two")
    path.with_name(".a.md.tmp").replace(path)


def as_vim_does(path: Path) -> None:
    path.with_name("4913").write_text("")
    path.with_name("4913").unlink()
    path.rename(path.with_name("a.md~"))
    path.write_text("two")
    path.with_name("a.md~").unlink()


@pytest.mark.parametrize("save", [atomically, as_vim_does])
def test_saving_in_editors_is_reported(root: Path, watch: Watch, save: Callable[[Path], None]) -> None:
    (root / "sub" / "a.md").write_text("one")
    seen(watch, "sub/a.md")
    quiet(watch)
    save(root / "sub" / "a.md")
    assert seen(watch, "sub/a.md") == {"sub/a.md"}


def test_a_folder_is_moved_in_and_out(root: Path, tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "other" / "deep" / "a.md").write_text("x")
    (tmp_path / "other").rename(root / "new")
    seen(watch, "new")
    (root / "new" / "deep" / "b.md").write_text("x")
    assert "new/deep/b.md" in seen(watch, "new/deep/b.md")
    (root / "new").rename(root / "renamed")
    seen(watch, "new", "renamed")
    (root / "renamed" / "deep" / "c.md").write_text("x")
    seen(watch, "renamed/deep/c.md")
    (root / "renamed").rename(tmp_path / "out")
    seen(watch, "renamed")
    if LINUX and watch.mode == "auto":
        until(lambda: lost(watch), 3)
        assert kernel_watches() == 2, "a folder moved out is no longer watched"
    (tmp_path / "out").rename(root / "back")
    seen(watch, "back")
    (root / "back" / "deep" / "d.md").write_text("x")
    seen(watch, "back/deep/d.md")


def test_changed_ignore_rules_are_applied(root: Path, watch: Watch) -> None:
    (root / RULES).write_text("sub/")
    until(lambda: lost(watch), 3)
    (root / "sub" / "a.md").write_text("x")
    (root / "b.md").write_text("x")
    assert seen(watch, "b.md") == {"b.md"}
    if LINUX and watch.mode == "auto":
        assert kernel_watches() == 1, "an ignored folder costs no watch"
    (root / RULES).unlink()
    until(lambda: lost(watch), 3)
    (root / "sub" / "c.md").write_text("x")
    assert "sub/c.md" in seen(watch, "sub/c.md")


def test_the_root_disappears_and_returns(root: Path, tmp_path: Path, watch: Watch) -> None:
    root.rename(tmp_path / "elsewhere")
    assert watch.changed(0.1) == set()
    root.mkdir()
    until(lambda: lost(watch), 4)
    (root / "a.md").write_text("x")
    seen(watch, "a.md")
    shutil.rmtree(root)
    until(lambda: watch.changed(0.05) is not None and watch.problem(1), 4)
    assert "cannot be watched" in str(watch.problem(1))
    root.mkdir()
    until(lambda: lost(watch), 4)
    assert watch.problem(1) is None
    (root / "b.md").write_text("x")
    seen(watch, "b.md")


def test_the_root_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    (tmp_path / "second").mkdir()
    with watching(tmp_path / "link") as watch:
        (root / "sub" / "a.md").write_text("x")
        seen(watch, "sub/a.md")
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to(tmp_path / "second")
        until(lambda: lost(watch), 4)
        (tmp_path / "second" / "b.md").write_text("x")
        seen(watch, "b.md")


def test_a_dead_watcher_is_started_again(root: Path, watch: Watch) -> None:
    assert watch.observer
    watch.observer.stop()
    watch.observer.join()
    assert not watch.alive()
    until(lambda: lost(watch), 4)
    (root / "a.md").write_text("x")
    seen(watch, "a.md")


@linux
def test_closing_leaves_no_watch_or_thread(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        with watching(root):
            assert kernel_watches() == 2
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
    assert kernel_watches() == 0


Told = Callable[[], list[object]]


@contextlib.contextmanager
def child(root: Path, *prefix: str, code: str = CHILD) -> Iterator[tuple[subprocess.Popen[str], Told]]:
    """Yield a watching process, and a function that returns its next report: keys, lost, problem."""
    command = [*prefix, sys.executable, "-c", code, str(root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=lambda: deque(map(lines.put, process.stdout or ()), maxlen=0))
    reader.start()
    try:
        yield process, lambda: list(json.loads(lines.get(timeout=10)))
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stdout
        process.stdout.close()


@linux
def test_an_overflow_is_reported_as_lost_events(root: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 50_000:
        pytest.skip(f"{limit} events would have to be made")
    with child(root) as (process, next_report):
        assert next_report() == ["started", False, None]
        process.send_signal(signal.SIGSTOP)
        for number in range(limit // 2 + 200):  # two events for each file: created and closed
            os.close(os.open(root / f"{number}.md", os.O_CREAT))
            os.unlink(root / f"{number}.md")
        (root / "late").mkdir()
        process.send_signal(signal.SIGCONT)
        until(lambda: next_report()[1], 10, pause=0)
        (root / "late" / "a.md").write_text("x")
        until(lambda: "late/a.md" in next_report()[0], 10, pause=0)  # type: ignore[operator]


def limited(name: str, count: int) -> list[str]:
    """Return a command prefix that limits the command's own watches or instances only."""
    prefix = ["unshare", "-Ur", "sh", "-c", f'echo {count} > /proc/sys/user/max_inotify_{name} && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are not to be had here")
    return prefix


@linux
def test_the_watch_limit_is_reported(root: Path) -> None:
    for number in range(10):
        (root / str(number)).mkdir()
    with child(root, *limited("watches", 8)) as (_, next_report):
        _, _, problem = next_report()
        assert str(problem).startswith(f"4 of 12 folders in {root} are not watched")
        assert "max_user_watches is 8" in str(problem)
        assert "ASKFOLDER_WATCH=poll" in str(problem)
        (root / "a.md").write_text("x")
        assert next_report()[0] == ["a.md"], "the rest is watched"
        for number in range(10):
            (root / str(number)).rmdir()
        until(lambda: next_report()[2] is None)


@linux
@pytest.mark.parametrize(("name", "limit"), [("watches", "max_user_watches"), ("instances", "max_user_instances")])
def test_a_limit_of_zero_watches_is_reported(root: Path, name: str, limit: str) -> None:
    with child(root, *limited(name, 0)) as (_, next_report):
        problem = str(next_report()[2])
    assert "cannot be watched" in problem
    assert f"{limit} is 0" in problem
    assert "ASKFOLDER_WATCH=poll" in problem


@linux
def test_a_raised_limit_is_used(root: Path) -> None:
    code = CHILD.replace("while True:", "Path('/proc/sys/user/max_inotify_watches').write_text('100')\nwhile True:")
    code = code.replace("keys = ", "print(json.dumps(['', watch.lost, watch.problem(2)]), flush=True); keys = ")
    with child(root, *limited("watches", 1), code=code) as (_, next_report):
        reports = [next_report() for _ in range(3)]
    assert "1 of 12 folders" in str(reports[0][2])
    assert reports[1][2] is None
    assert reports[2][1:] == [True, None]
