"""A full disk below PostgreSQL: questions are answered, documents wait, and ingestion resumes with free space."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from shared import db
from shared.system.servers import Servers
from tests.conftest import System, new_system, until

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mount"), reason="needs root and `mount`, for a small file system"
)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 150 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150m", "none", str(folder)], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def readiness(system: System) -> dict[str, str]:
    missing: dict[str, str] = httpx2.get(f"http://127.0.0.1:{system.port}/readyz", trust_env=False).json()["missing"]
    return missing


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))


def test_documents_wait_while_the_disk_is_full(small: Path, model: Path, tmp_path: Path) -> None:
    servers = Servers(small / "data")
    servers.start()
    try:
        db.migrate(servers.database_url)
        (tmp_path / "run").mkdir()
        system = new_system(servers, servers.database_url, model, tmp_path / "run")
        system.env["ASKFOLDER_DATA"] = str(small / "data")
        (small / "data" / "models").symlink_to(system.data / "models")
        (system.folder / "a.md").write_text("The heron stands still.")
        system.start("web", "worker", "producer")
        until(lambda: system.search("heron"))
        assert readiness(system) == {}
        fill(small / "fill")
        for n in range(8):
            (system.folder / f"{n}.txt").write_text("\n".join(f"Stork {n * 1000 + k}" for k in range(3000)))
        until(lambda: "disk" in readiness(system))
        until(
            lambda: (
                any("disk is full" in (d["error"] or "") for d in system.documents().values())
                or "space left" in system.log("worker")
            ),
            40,
        )
        assert system.search("heron"), "what is there answers"
        (small / "fill").unlink()
        rows = system.settled(9, 120)
        assert {row["state"] for row in rows.values()} == {"ready"}
        assert readiness(system) == {}
        assert "Traceback" not in system.log("worker")
        system.stop()
    finally:
        servers.stop()
