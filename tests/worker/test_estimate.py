"""`askfolder estimate` over a real folder sends nothing and calculates the sums of a running system."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared import prices
from shared.providers.choice import LOCAL_MODEL
from shared.settings import ROOT
from tests.standins.providers import AnthropicStandin, OpenAIStandin

LINES = [f"Line {n} of the almanac says that the heron ate {n} grams of fish at the pond." for n in range(200)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "papers"
    (folder / "sub").mkdir(parents=True)
    (folder / "almanac.txt").write_text("\n".join(LINES))
    (folder / "note.md").write_text("# Heron\n\nIt eats about five hundred grams of fish a day.\n")
    (folder / "sub" / "empty.txt").write_text("")
    (folder / "sub" / "broken.pdf").write_bytes(b"%PDF-1.7 nothing")
    (folder / ".hidden.txt").write_text("not looked at")
    return folder


def run(model: Path, tmp_path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command with only the given settings."""
    data = tmp_path / "data"
    (data / "models").mkdir(parents=True, exist_ok=True)
    if not (data / LOCAL_MODEL).exists():
        (data / LOCAL_MODEL).symlink_to(model)
    ours = ("ASKFOLDER_", "ANTHROPIC_", "OPENAI_", "VOYAGE_", "DATABASE_URL", "REDIS_URL")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [sys.executable, "-m", "shared.cli", "estimate", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=clean | {"ASKFOLDER_DATA": str(data), "ASKFOLDER_INBOX": str(tmp_path / "papers")} | env,
    )


def estimate(model: Path, tmp_path: Path, *arguments: str, **env: str) -> Any:
    done = run(model, tmp_path, "--json", *arguments, **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_estimate_of_local_embedding(folder: Path, model: Path, tmp_path: Path) -> None:
    data = estimate(model, tmp_path)
    assert (data["folder"], data["files"]) == (str(folder), 4)
    assert data["formats"] == {"text": 1, "markdown": 1}
    assert data["unreadable"].keys() == {"sub/empty.txt", "sub/broken.pdf"}
    assert "empty" in data["unreadable"]["sub/empty.txt"]
    assert data["characters"] >= len("\n".join(LINES))
    assert data["tokens"] > 200 * 15
    assert data["chunks"] >= data["tokens"] / 206
    assert (data["embedding"]["to"], data["embedding"]["dollars"], data["dollars"]) == ("", 0, 0)
    assert data["contexts"] is None

    (folder / "copy.txt").write_text("\n".join(LINES))
    again = estimate(model, tmp_path)
    assert again["chunks"] > data["chunks"]
    assert again["embedding"]["tokens"] == data["embedding"]["tokens"], "a copy is embedded once"

    words = run(model, tmp_path, str(folder)).stdout
    assert "5 files" in words
    assert "3 (2 text, 1 markdown)" in words
    assert "sub/empty.txt is empty" in words
    assert "on this machine: nothing leaves it" in words
    assert words.endswith("Nothing was sent.\n")


def test_the_estimate_of_providers_and_contexts(folder: Path, model: Path, tmp_path: Path) -> None:
    keys = {"OPENAI_API_KEY": "sk-test", "ANTHROPIC_API_KEY": "sk-ant-test"}
    on = keys | {"ASKFOLDER_EMBEDDER": "openai", "ASKFOLDER_CONTEXT": "claude", "ASKFOLDER_CHUNK_TOKENS": "100"}
    data = estimate(model, tmp_path, str(folder), **on)
    embedding, contexts = data["embedding"], data["contexts"]
    assert (embedding["model"], embedding["to"]) == ("text-embedding-3-small", "OpenAI")
    assert embedding["tokens"]["input"] > data["tokens"], "headers and contexts are embedded too"
    assert embedding["dollars"] == prices.cost("text-embedding-3-small", embedding["tokens"]["input"])
    assert (contexts["model"], contexts["to"]) == ("claude-haiku-5-5", "Anthropic")
    spent = contexts["tokens"]
    assert spent["cache_read"] > spent["cache_write"] > 200 * 15
    assert contexts["dollars"] == prices.cost("claude-haiku-5-5", **spent)
    assert data["dollars"] == pytest.approx(embedding["dollars"] + contexts["dollars"])

    (folder / "copy.txt").write_text("\n".join(LINES))
    assert estimate(model, tmp_path, str(folder), **on)["dollars"] == data["dollars"], "a copy is paid for once"

    words = run(model, tmp_path, str(folder), **on, ASKFOLDER_CONTEXT_MODEL="my-model").stdout
    assert "all texts go to OpenAI: at most about $0.0" in words
    assert "all texts go to Anthropic: no price is known for my-model" in words
    assert "no price is known for all of it" in words

    with OpenAIStandin() as openai, AnthropicStandin() as claude:
        other = on | {"OPENAI_BASE_URL": openai.url, "ANTHROPIC_BASE_URL": claude.url}
        data = estimate(model, tmp_path, str(folder), **other)
        assert (data["embedding"]["to"], data["contexts"]["to"]) == (openai.url, claude.url)
        assert (data["embedding"]["dollars"], data["dollars"]) == (None, None), "another server's price is not known"
        assert (openai.requests, claude.requests) == ([], []), "nothing is sent"


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        (["/nowhere/at/all"], {}, "There is no folder /nowhere/at/all"),
        ([], {"ASKFOLDER_CONTEXT": "claude"}, "ASKFOLDER_CONTEXT=claude needs ANTHROPIC_API_KEY"),
    ],
)
def test_impossible_estimates_are_refused(
    model: Path, tmp_path: Path, arguments: list[str], env: dict[str, str], words: str
) -> None:
    done = run(model, tmp_path, *arguments, **env)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
