"""Error messages on a machine without a suitable Python."""

import subprocess
from pathlib import Path

import pytest

from shared.settings import ROOT


@pytest.mark.parametrize(
    ("python", "words"),
    [
        (None, "There is no"),
        ('case "$*" in *version_info*) exit 1;; *) echo Python 3.9.1;; esac', "Python 3.9.1 is not supported"),
        ('case "$*" in *ensurepip*) exit 1;; esac', "no venv module"),
    ],
)
def test_a_missing_requirement_is_named_in_a_sentence(tmp_path: Path, python: str | None, words: str) -> None:
    fake = tmp_path / "python3"
    if python:
        fake.write_text(f"#!/bin/sh\n{python}\n")
        fake.chmod(0o755)
    result = subprocess.run(
        ["sh", ROOT / "scripts" / "install.sh", fake, "requirements.lock"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert words in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_command_line_before_the_first_make_names_make_up(tmp_path: Path) -> None:
    (tmp_path / "askfolder").write_bytes((ROOT / "askfolder").read_bytes())
    result = subprocess.run(["sh", tmp_path / "askfolder", "status"], capture_output=True, text=True)
    assert result.returncode == 1
    assert "make up" in result.stderr
