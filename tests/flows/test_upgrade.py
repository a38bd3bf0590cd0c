"""This version opens the data of an earlier one: answers work, nothing is embedded again, `doctor` finds no fault."""

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.providers.choice import LOCAL_MODEL
from shared.settings import ROOT
from tests.conftest import until
from tests.flows.test_up import Up

BEFORE = "cf6ebe8"  # the version before the modules moved into packages


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a checkout of the earlier version, with the dependencies of this version."""
    packed = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:
        pytest.skip(f"the history of this checkout does not hold {BEFORE}")
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder


@pytest.fixture
def up(tmp_path: Path, model: Path) -> Iterator[Up]:
    run = Up(tmp_path, model)
    yield run
    run.end()


def test_the_data_of_an_earlier_version_is_opened(up: Up, earlier: Path) -> None:
    (up.inbox / "heron.md").write_text("# Heron\n\nThe grey heron of the boathouse is called Balduin.\n")
    (up.inbox / "empty.md").write_text("")
    (up.inbox / "notes").mkdir()
    (up.inbox / "notes" / "stork.txt").write_text("The white stork on the roof is called Adele.\n")
    up.start(earlier)
    until(lambda: "2 ready" in up.command("status", root=earlier).stdout, 60, pause=0.3)
    assert up.command("ask", "What is the heron called?", root=earlier).returncode == 0
    before = up.command("search", "stork", "--json", root=earlier).stdout
    up.stop()
    (up.inbox / "duck.md").write_text("The duck that came in between is called Emma.\n")

    up.start()
    until(lambda: "3 ready" in up.command("status").stdout, 60, pause=0.3)
    assert "Balduin" in up.command("ask", "What is the heron called?").stdout
    assert "Emma" in up.command("search", "duck").stdout
    after = up.command("search", "stork", "--json").stdout
    assert chunk_ids(before)[0] == chunk_ids(after)[0], "the chunk is the one that was made before"
    examined = up.command("doctor")
    assert examined.returncode == 0, examined.stdout
    assert "empty.md" in up.command("status").stdout
    assert (up.data / LOCAL_MODEL).is_symlink()


def chunk_ids(results: str) -> list[int]:
    return [result["chunk_id"] for result in json.loads(results)["results"]]
