"""Settings: unknown and wrong settings stop the start with an error; secrets stay secret."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import settings
from shared.errors import SettingsError


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in settings.names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    settings.load.cache_clear()
    yield
    settings.load.cache_clear()


def test_settings_are_read_from_the_env_file_and_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("ASKFOLDER_PORT=9000\nASKFOLDER_FLOWER_PORT=9001\nOTHER=1\n")
    monkeypatch.setenv("ASKFOLDER_PORT", "9100")
    loaded = settings.load()
    assert (loaded.port, loaded.flower_port) == (9100, 9001)
    with pytest.raises(Exception, match="frozen"):
        loaded.port = 1
    assert loaded.inbox == tmp_path / "inbox"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ASKFOLDER_PROT", "1", "ASKFOLDER_PROT: there is no such setting"),
        ("ASKFOLDER_PORT", "x", "ASKFOLDER_PORT"),
        ("ASKFOLDER_PORT", "70000", "less than or equal to 65535"),
        ("ASKFOLDER_EMBEDDER", "magic", "'local', 'openai' or 'voyage'"),
        ("ASKFOLDER_EMBEDDER", "voyage", "needs VOYAGE_API_KEY"),
        ("ASKFOLDER_ANSWERER", "claude", "needs ANTHROPIC_API_KEY"),
        ("ASKFOLDER_CONTEXT", "claude", "ASKFOLDER_CONTEXT=claude needs ANTHROPIC_API_KEY"),
        ("ASKFOLDER_RERANKER", "voyage", "ASKFOLDER_RERANKER=voyage needs VOYAGE_API_KEY"),
        ("ASKFOLDER_RERANKER", "claude", "needs ANTHROPIC_API_KEY"),
        ("ASKFOLDER_RERANKER", "local", "needs ASKFOLDER_RERANKER_MODEL"),
        ("ASKFOLDER_RERANKER", "cohere", "'off', 'voyage', 'local' or 'claude'"),
        ("ASKFOLDER_RERANK_SECONDS", "0", "greater than 0"),
        ("ASKFOLDER_RESCAN_SECONDS", "0", "greater than or equal to 1"),
        ("ASKFOLDER_CHUNK_TOKENS", "12", "a chunk needs at least 32 tokens"),
        ("ASKFOLDER_COSINE_WEIGHT", "1.5", "less than or equal to 1"),
        ("ASKFOLDER_BUDGET_ANSWERS", "-1", "greater than or equal to 0"),
        ("ASKFOLDER_BUDGET_EMBEDDING", "much", "ASKFOLDER_BUDGET_EMBEDDING"),
        ("ASKFOLDER_PRICES", "my-model", "ASKFOLDER_PRICES: value error, 'my-model' is not a price; write model=IN"),
    ],
)
def test_wrong_settings_are_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=words):
        settings.load()


def test_unknown_settings_in_the_env_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("ASKFOLDER_COLOUR=red\n")
    with pytest.raises(SettingsError, match="ASKFOLDER_COLOUR"):
        settings.load()


def test_keys_do_not_change_the_embedder_and_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sesame")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-sesame")
    loaded = settings.load()
    assert loaded.embedder == "local"
    assert loaded.answers_with_claude()
    assert "sesame" not in repr(loaded) + str(loaded)
