"""Limits on the size of the code, and a formatter that is never switched off."""

from pathlib import Path

from scripts.size import measure
from shared.settings import ROOT

LINES = 17_000  # total of worker/, api/ and shared/
FILE_LINES = 450
FUNCTION_LINES = 60
PARAMETERS = 7


def test_the_code_is_within_the_limits() -> None:
    size = measure()
    assert size.lines <= LINES
    assert [row for row in size.files if row[0] > FILE_LINES] == []
    assert [row for row in size.functions if row[0] > FUNCTION_LINES] == []
    assert [row for row in size.signatures if row[0] > PARAMETERS] == []


def test_the_formatter_is_never_switched_off() -> None:
    mark = "fmt: " + "skip"
    files = [*ROOT.glob("*/**/*.py")]
    ours = [path for path in files if ".venv" not in path.parts]
    assert [
        str(path) for path in ours if mark in path.read_text() or mark.replace("skip", "off") in path.read_text()
    ] == []


def test_sizes_are_measured(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.py").write_text("class A:\n    def f(self, x, *, y):\n        return x\n\n\ndef g(): ...\n")
    size = measure(tmp_path, ("a",))
    assert (size.lines, size.files) == (6, [(6, "a/b.py")])
    assert size.functions == [(2, "a/b.py:2 f"), (1, "a/b.py:6 g")]
    assert size.signatures == [(2, "a/b.py:2 f"), (0, "a/b.py:6 g")]
