"""A folder is unmounted, loses most of its files, or is replaced: nothing is deleted, and a problem is reported."""

import shutil
import subprocess
import time
from pathlib import Path

from tests.faults.checks import check, settle
from tests.faults.folder import SMALL, Folder, Sizes, files
from tests.faults.result import Result
from tests.faults.system import Faulty, wait

TINY = Sizes(small=(1, 4), middle_every=0, large_every=0)
SAID_SECONDS = 60.0


def source_away(system: Faulty, documents: int, still: float = 3.0) -> Result:
    """Run the campaign. `still`: seconds without changes while the source is unavailable or replaced."""
    result = Result("source away")
    folder = Folder(system.folder, "away", 800_000, TINY)
    folder.fill(documents)
    if settle(system, 120) is None:
        result.must("ready at the start", "no", "yes", False)
        return result.finish()
    count = len(files(system.folder))
    system.standin.forget()

    place = Place(system.folder)
    place.hide()
    _stays(system, result, f"unmounted ({place.how})", count, still, new="while-away.txt")
    place.show()
    _goes_on(system, result, "mounted again", "heronback")

    aside = system.folder / ".aside"  # hidden and therefore ignored
    aside.mkdir()
    there = sorted(files(system.folder))
    for number, key in enumerate(there[: len(there) * 6 // 10]):
        (system.folder / key).rename(aside / str(number))
    _stays(system, result, "60 % of the files removed", len(there), still, new="after-removal.txt")
    (system.folder / "after-removal.txt").unlink(missing_ok=True)
    for number, key in enumerate(there[: len(there) * 6 // 10]):
        (aside / str(number)).rename(system.folder / key)
    aside.rmdir()
    _goes_on(system, result, "the files are back", "heronagain")
    result.equal("texts embedded again when they came back", system.standin.paid_again(), 0)

    count = len(files(system.folder))
    place.hide()
    other = Folder(system.folder, "other", 850_000, SMALL)
    other.fill(8)
    _stays(system, result, "replaced by another folder", count, still)
    system.reconcile(confirm=True)
    took = settle(system, 60)
    result.at_most("replaced, and confirmed: the new folder is what answers after", took, 60, " s")
    result.damage(check(system, [folder, other]))
    place.show()
    system.reconcile(confirm=True)
    result.at_most("the old folder is back, and confirmed", settle(system, 180), 180, " s")
    result.damage(check(system, [folder, other]))
    return result.finish()


class Place:
    """Remove and restore the folder: with a bind mount if the system has one, else by renaming it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.backing = folder, folder.with_name("backing")
        self.mounted = self.backing.exists()
        self.how = "umount" if self.mounted else "renamed away, an empty folder in its place"

    def hide(self) -> None:
        """Leave an empty mount point."""
        if self.mounted:
            assert wait(lambda: subprocess.run(["umount", str(self.folder)], capture_output=True).returncode == 0, 10)
        else:
            self.folder.rename(self.backing)
            self.folder.mkdir()

    def show(self) -> None:
        """Restore the folder and remove its replacement."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.mounted:
            subprocess.run(["mount", "--bind", str(self.backing), str(self.folder)], check=True)
        else:
            self.folder.rmdir()
            self.backing.rename(self.folder)


def _stays(system: Faulty, result: Result, what: str, count: int, still: float, new: str = "") -> None:
    """Require that a scan reports its stop, and that no document is deleted or ingested meanwhile."""
    system.reconcile()
    began = time.monotonic()
    problem = wait(system.problems, SAID_SECONDS, 0.1)
    result.must(
        f"{what}: a sentence",
        f"after {time.monotonic() - began:.1f} s" if problem else "none",
        "there is one",
        bool(problem),
    )
    if problem:
        result.remarks.append(f"{what}: “{problem[0].replace(str(system.folder), '…')}”")
    if new:
        (system.folder / new).write_text("heronunwanted stands here.\n")
    ready = []
    ended = time.monotonic() + still
    while time.monotonic() < ended:
        ready.append(_ready(system))
        time.sleep(0.2)
    result.must(f"{what}: documents that answer", min(ready), f"{count}, as before", set(ready) == {count})
    if new:
        result.must(
            f"{what}: a new file is taken", "no" if not _known(system, new) else "yes", "no", not _known(system, new)
        )


def _goes_on(system: Faulty, result: Result, what: str, words: str) -> None:
    took = wait(lambda: not system.problems(), 90, 0.2)
    result.must(f"{what}: it goes on by itself", "yes" if took else "no", "yes", bool(took))
    note = system.note(f"{words}.txt", words, 60)
    result.at_most(f"{what}: a new note is found after", note, 60, " s")
    result.at_most(f"{what}: at rest after", settle(system, 60), 60, " s")


def _ready(system: Faulty) -> int:
    return int(system.rows("SELECT count(*) FROM document WHERE state = 'ready'")[0][0])


def _known(system: Faulty, key: str) -> bool:
    return bool(system.rows("SELECT 1 FROM document WHERE key = %s AND state <> 'deleted'", key))
