"""`askfolder up` on the command line: its screen, its refusals, its end."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from shared.providers.choice import LOCAL_MODEL
from shared.settings import ROOT
from tests.conftest import free_port, until


class Up:
    """A run of `askfolder up` with its own data folder, whose path has a space and is too long for a socket."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.data = folder / ("a long name " * 9) / ".askfolder"
        (self.data / "models").mkdir(parents=True, exist_ok=True)
        (self.data / LOCAL_MODEL).symlink_to(model)
        self.inbox = folder / "in box"
        self.inbox.mkdir()
        self.port, self.flower_port = free_port(), free_port()
        self.processes: list[subprocess.Popen[str]] = []
        self.out = folder / "out.txt"

    def env(self, **more: str) -> dict[str, str]:
        env = {
            n: v
            for n, v in os.environ.items()
            if not n.startswith(("ASKFOLDER_", "ANTHROPIC_", "OPENAI_", "DATABASE_", "REDIS_"))
        }
        return env | {
            "ASKFOLDER_DATA": str(self.data),
            "ASKFOLDER_PORT": str(self.port),
            "ASKFOLDER_FLOWER_PORT": str(self.flower_port),
            "HTTP_PROXY": "http://127.0.0.1:1",
            "http_proxy": "http://127.0.0.1:1",  # a proxy that does not exist
            **more,
        }

    def command(self, *arguments: str, root: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [root / "askfolder", *arguments], env=self.env(**env), capture_output=True, text=True, timeout=60
        )

    def start(self, root: Path = ROOT) -> str:
        """Start `askfolder up` from a checkout and return its screen."""
        with self.out.open("w") as out:
            self.processes.append(
                subprocess.Popen(
                    [root / "askfolder", "up", "--inbox", str(self.inbox)],
                    env=self.env(),
                    stdout=out,
                    stderr=out,
                    text=True,
                    start_new_session=True,
                )
            )
        until(lambda: "/?key=" in self.out.read_text() or self.processes[-1].poll() is not None, 60)
        return self.out.read_text()

    def family(self) -> list[psutil.Process]:
        process = psutil.Process(self.processes[-1].pid)
        return [process, *process.children(recursive=True)]

    def stop(self) -> None:
        self.processes[-1].send_signal(signal.SIGINT)
        self.processes[-1].wait(60)

    def end(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
                process.wait(30)


@pytest.fixture
def up(tmp_path: Path, model: Path) -> Iterator[Up]:
    run = Up(tmp_path, model)
    yield run
    run.end()


def test_up_from_start_to_end(up: Up) -> None:
    (up.inbox / "heron.md").write_text("# Heron\n\nThe grey heron of the boathouse is called Balduin.\n")
    before = {path.name: path.stat().st_mtime_ns for path in up.inbox.rglob("*")}
    screen = up.start()
    assert "Data sent to other services  none" in screen
    link = re.search(r"http://127\.0\.0\.1:\d+/\?key=\S+", screen)
    password = re.search(r"password ([^)\s]+)", screen)
    assert link
    assert password
    with httpx2.Client(trust_env=False, follow_redirects=True) as browser:
        page = browser.get(link[0])
        assert page.status_code == 200
        assert "askfolder" in page.text
    until(lambda: "Balduin" in up.command("search", "What is the heron called?").stdout, 30, pause=0.3)
    answer = up.command("ask", "What", "is", "the", "grey", "heron", "called?")
    assert answer.returncode == 0, answer.stderr
    assert "Balduin" in answer.stdout
    assert "heron.md" in answer.stdout
    refused = up.command("ask", "Who won the football world cup of 1998?")
    assert (refused.returncode, refused.stdout.strip()) == (3, "I don't have information on that.")
    assert "1 ready" in up.command("status").stdout
    compared = up.command("reconcile")
    assert (compared.returncode, compared.stdout) == (
        0,
        f"{up.inbox}: 1 files; 0 new or changed, 0 renamed, 0 gone.\n",
    )
    examined = up.command("doctor")
    assert (examined.returncode, examined.stdout.partition(":")[0]) == (0, "The index is consistent")

    flower_url = f"http://127.0.0.1:{up.flower_port}"
    with httpx2.Client(trust_env=False) as browser:
        assert browser.get(f"{flower_url}/").status_code == 401
        assert browser.get(f"{flower_url}/api/tasks").status_code == 401
        (up.inbox / "second.md").write_text("Flower is surely listening by now.")

        def named() -> list[dict[str, str]]:  # earlier tasks have no name in Flower
            tasks = browser.get(f"{flower_url}/api/tasks", auth=("askfolder", password[1])).json()
            return [task for task in tasks.values() if task["name"] and "second.md" in (task["args"] or "")]

        tasks = until(named)
    assert {task["name"] for task in tasks} == {"ingest"}

    second = up.command("up", ASKFOLDER_PORT=str(free_port()))
    assert second.returncode == 1
    assert "already running" in second.stderr

    family = up.family()
    flower = next(process for process in family if "flower" in process.cmdline())
    flower.suspend()  # the process never ends by itself, so it must be killed
    up.stop()
    assert [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    (up.inbox / "second.md").unlink()
    assert {path.name: path.stat().st_mtime_ns for path in up.inbox.rglob("*")} == before
    assert "Traceback" not in up.out.read_text()

    up.start()
    assert "Balduin" in up.command("search", "heron").stdout, "the data is there at the next start"
    logs = "".join(path.read_text(errors="replace") for path in (up.data / "logs").iterdir())
    key = (up.data / "key").read_text().strip()
    assert key not in logs
    assert password[1] not in logs
    assert (up.data / "key").stat().st_mode & 0o777 == 0o600


def test_a_dead_server_is_restarted(up: Up) -> None:
    (up.inbox / "heron.md").write_text("The grey heron of the boathouse is called Balduin.\n")
    up.start()
    until(lambda: "Balduin" in up.command("search", "heron").stdout, 30, pause=0.3)
    for name in ("postgres", "valkey-server"):
        next(process for process in up.family() if process.name() == name).kill()
        until(lambda: "Balduin" in up.command("search", "heron").stdout, 40, pause=0.3)
    (up.inbox / "stork.md").write_text("The white stork is called Adele.\n")
    until(lambda: "Adele" in up.command("search", "stork").stdout, 60, pause=0.3)


def test_servers_left_by_a_killed_run_are_ended_by_the_next_run(up: Up) -> None:
    up.start()
    family = up.family()
    for process in family:
        if process.name() not in ("postgres", "valkey-server"):
            process.kill()
    up.processes[-1].wait()
    assert "Data sent to other services" in up.start()


def test_up_refuses_with_a_sentence(up: Up, tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = up.command("up", ASKFOLDER_PORT=str(taken.getsockname()[1]))
        assert "cannot be used" in result.stderr
        assert "ASKFOLDER_PORT" in result.stderr
    refusals: tuple[tuple[list[str], dict[str, Any], str], ...] = (
        (["up", "--inbox", str(tmp_path / "nowhere")], {}, "nowhere cannot be read"),
        (["up"], {"ASKFOLDER_DATA": "/proc/nowhere"}, "cannot be written"),
        (["up"], {"ASKFOLDER_COLOUR": "red"}, "ASKFOLDER_COLOUR: there is no such setting"),
        (["up"], {"ASKFOLDER_PORT": "many"}, "ASKFOLDER_PORT"),
        (["up"], {"ASKFOLDER_EMBEDDER": "openai"}, "OPENAI_API_KEY"),
        (["up"], {"ASKFOLDER_ANSWERER": "claude"}, "ANTHROPIC_API_KEY"),
        (
            ["up"],
            {"DATABASE_URL": "postgresql://127.0.0.1:1/x", "REDIS_URL": "redis://127.0.0.1:1"},
            "Redis (127.0.0.1) does not answer",
        ),
        (["up"], {"DATABASE_URL": "postgresql://127.0.0.1:1/x"}, "PostgreSQL (x on 127.0.0.1:1) does not answer"),
    )
    for arguments, env, words in refusals:
        result = up.command(*arguments, **env)
        assert result.returncode == 1, (arguments, env, result.stdout)
        assert words in result.stderr
        assert "Traceback" not in result.stderr + result.stdout
    result = up.command("status")
    assert result.returncode == 4
    assert "make up" in result.stderr
