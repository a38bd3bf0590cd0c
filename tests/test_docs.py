"""The documents agree with the code: generated pages are fresh, links have a target, every named command exists."""

import re
import tomllib
from pathlib import Path

import pytest

from scripts import docs
from shared.cli.commands import cli
from shared.settings import ROOT, load, names

WRITTEN = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_generated_pages_are_fresh() -> None:
    assert docs.stale() == []


def test_settings_page_names_every_setting() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    assert [name for name in names() if f"| `{name}` |" not in page] == []


def test_example_settings_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the example with every line enabled must have valid names and defaults."""
    for line in (ROOT / ".env.example").read_text().splitlines():
        if match := re.fullmatch(r"#?([A-Z_]+)=(.*)", line):
            monkeypatch.setenv(match[1], match[2])
    load.cache_clear()
    try:
        assert load().port == 8000
    finally:
        load.cache_clear()


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_links_and_names_exist(path: Path) -> None:
    text = path.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []
    used = set(re.findall(r"\bASKFOLDER_[A-Z_]+[A-Z]\b", text))
    assert sorted(used - set(names())) == []
    commands = set(re.findall(r"(?:\./|exec (?:-T )?api )askfolder ([a-z]+)\b", text))
    assert sorted(commands - set(cli.commands)) == []


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"image: askfolder:{version}\n" in (ROOT / "docker-compose.yml").read_text()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
