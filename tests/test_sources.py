"""The folder as a source: keys, what is ignored, what is never followed, what cannot be concluded."""

import os
from pathlib import Path

import pytest

from shared.errors import PermanentError, TransientError, UnreadableError
from worker.sources import FolderSource


def keys(source: FolderSource, below: set[str] | None = None) -> list[str]:
    return sorted(file.key for file in source.discover(below)[0])


def test_keys_are_relative_and_lead_back(tmp_path: Path) -> None:
    names = [b"a b.md", b"new\nline.md", "ünï 🦩.md".encode(), b"caf\xe9.md", b"100%.md", b"%E9.md", b"sub/c.md"]
    (tmp_path / "sub").mkdir()
    for name in names:
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_bytes(name)
    source = FolderSource(tmp_path)
    found = keys(source)
    assert len(found) == len(names)
    assert "caf%E9.md" in found
    assert all(key.encode() for key in found), "valid Unicode"
    assert sorted(source.path(key).read_bytes() for key in found) == sorted(names)


def test_ignored_and_links(tmp_path: Path) -> None:
    for name in (".hidden", "~$open.docx", "a.tmp", "b.md~", "c.part", "node_modules/x.md", ".git/y.md", "good.md"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (tmp_path / "outside.md").write_text("secret")
    (tmp_path / "in" / "link.md").symlink_to(tmp_path / "outside.md")
    (tmp_path / "in" / "folder").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "in" / "pipe.md")
    source = FolderSource(tmp_path / "in")
    assert keys(source) == ["good.md"]
    assert keys(source, {"node_modules/x.md", ".git", "good.md", "gone.md"}) == ["good.md"]
    with pytest.raises(UnreadableError, match="not followed"), source.fetch("link.md"):
        pass


def test_missing_root_concludes_nothing(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="nothing is changed"):
        FolderSource(tmp_path / "away").discover()


def test_change_while_reading_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("one")
    source = FolderSource(tmp_path)
    with pytest.raises(TransientError, match="changed while"), source.fetch("a.md"):
        path.write_text("two!")
    with pytest.raises(TransientError, match="not there any more"), source.fetch("a.md"):
        path.unlink()
    with pytest.raises(TransientError, match="not there any more"), source.fetch("a.md"):
        pass


def test_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "real" / "sub" / "a.md").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    source = FolderSource(tmp_path / "link")
    assert keys(source) == keys(source, {""}) == ["sub/a.md"]
