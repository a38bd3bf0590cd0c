"""The settings: read once, from the environment and `.env`, frozen. A wrong or unknown one stops the start with a sentence."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dotenv import dotenv_values
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from shared import prices
from shared.errors import SettingsError

ROOT = Path(__file__).resolve().parent.parent  # the checkout, or /app in the image


def _env(name: str, default: object, description: str, **limits: float) -> Any:
    return Field(default, validation_alias=AliasChoices(name), description=description, **limits)  # type: ignore[call-overload]


class Settings(BaseSettings):
    """All settings; the field's alias is the environment's name. `docs/settings.md` is generated from here."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, populate_by_name=True)

    database_url: str = _env("DATABASE_URL", "", "PostgreSQL ≥ 15 with pgvector ≥ 0.8.4; empty: an embedded one")
    redis_url: str = _env("REDIS_URL", "", "Redis ≥ 6.2 or Valkey; empty: an embedded one")

    inbox: Path = _env("ASKFOLDER_INBOX", Path("inbox"), "the folder that is mirrored; never written to")
    data: Path = _env("ASKFOLDER_DATA", Path(".askfolder"), "keys, logs and the embedded servers' data")
    host: str = _env("ASKFOLDER_HOST", "127.0.0.1", "the address that the API listens on")
    port: int = _env("ASKFOLDER_PORT", 8000, "the API's port", ge=1, le=65535)
    flower_port: int = _env("ASKFOLDER_FLOWER_PORT", 5555, "Flower's port", ge=1, le=65535)
    allowed_hosts: str = _env(
        "ASKFOLDER_ALLOWED_HOSTS", "", "further host names, separated by commas, that requests may name"
    )
    admin_key: SecretStr | None = _env(
        "ASKFOLDER_ADMIN_KEY", None, "the API's key; unset: made and kept in the data folder"
    )

    embedder: Literal["local", "openai", "voyage"] = _env("ASKFOLDER_EMBEDDER", "local", "who turns text into vectors")
    embedding_model: str = _env(
        "ASKFOLDER_EMBEDDING_MODEL",
        "",
        "the provider's model; for local: a directory with model.onnx and tokenizer.json",
    )
    embedding_dimensions: int | None = _env(
        "ASKFOLDER_EMBEDDING_DIMENSIONS", None, "shorter vectors, where the model can", ge=8, le=4000
    )
    openai_api_key: SecretStr | None = _env("OPENAI_API_KEY", None, "for ASKFOLDER_EMBEDDER=openai")
    openai_base_url: str = _env("OPENAI_BASE_URL", "", "another server with the same interface, with its /v1")
    voyage_api_key: SecretStr | None = _env(
        "VOYAGE_API_KEY", None, "for ASKFOLDER_EMBEDDER=voyage or ASKFOLDER_RERANKER=voyage"
    )
    voyage_base_url: str = _env("VOYAGE_BASE_URL", "", "another server with the same interface, with its /v1")

    reranker: Literal["off", "voyage", "local", "claude"] = _env(
        "ASKFOLDER_RERANKER", "off", "who puts the first 50 passages found for a question in order again"
    )
    reranker_model: str = _env(
        "ASKFOLDER_RERANKER_MODEL",
        "",
        "its model (rerank-2.5, claude-haiku-5-5); for local: a directory with model.onnx and tokenizer.json",
    )
    rerank_seconds: float = _env(
        "ASKFOLDER_RERANK_SECONDS", 3.0, "a reranker's deadline; then the order stays", gt=0, le=60
    )

    context: Literal["off", "claude"] = _env(
        "ASKFOLDER_CONTEXT",
        "off",
        "who writes a sentence or two about each chunk's place in its document, to find it by",
    )
    context_model: str = _env("ASKFOLDER_CONTEXT_MODEL", "claude-haiku-5-5", "the model that writes them")

    answerer: Literal["auto", "claude", "extractive"] = _env(
        "ASKFOLDER_ANSWERER", "auto", "auto: Claude where there is a key, else sentences quoted from the documents"
    )
    anthropic_api_key: SecretStr | None = _env("ANTHROPIC_API_KEY", None, "turns Claude's answers on")
    anthropic_model: str = _env("ANTHROPIC_MODEL", "claude-sonnet-5-5", "the model that answers")
    anthropic_base_url: str = _env("ANTHROPIC_BASE_URL", "", "another server with the same interface")
    strict: Literal["on", "off"] = _env(
        "ASKFOLDER_STRICT", "on", "on: sentences that no words of the documents support are left out of answers"
    )
    check_model: str = _env(
        "ASKFOLDER_CHECK_MODEL",
        "",
        "a small model (claude-haiku-5-5) that is asked about sentences which their quotes support partly; empty: none is",
    )
    rewrite_model: str = _env(
        "ASKFOLDER_REWRITE_MODEL",
        "",
        "the small model that makes follow-up questions stand alone; empty: claude-haiku-5-5, at another ANTHROPIC_BASE_URL ANTHROPIC_MODEL",
    )
    ask_seconds: float = _env("ASKFOLDER_ASK_SECONDS", 90.0, "an answer's deadline", gt=0, le=600)

    question_log: Literal["on", "off"] = _env(
        "ASKFOLDER_QUESTION_LOG",
        "on",
        "whether questions and answers are kept in the database, to be rated and measured with",
    )

    budget_embedding: float | None = _env(
        "ASKFOLDER_BUDGET_EMBEDDING",
        None,
        "dollars a day (UTC) for embedding; beyond it documents wait; unset: no cap",
        ge=0,
    )
    budget_answers: float | None = _env(
        "ASKFOLDER_BUDGET_ANSWERS",
        None,
        "dollars a day (UTC) for answers; beyond it they are quoted without a model; unset: no cap",
        ge=0,
    )
    prices: str = _env(
        "ASKFOLDER_PRICES",
        "",
        "of models that docs/costs.md lacks, in dollars per million tokens: model=IN, other=IN/OUT",
    )

    concurrency: int = _env(
        "ASKFOLDER_CONCURRENCY", 0, "documents worked on at once; 0: by the number of cores", ge=0, le=64
    )
    rescan_seconds: float = _env("ASKFOLDER_RESCAN_SECONDS", 300.0, "time between full scans of the folder", ge=1)
    watch: Literal["auto", "poll"] = _env("ASKFOLDER_WATCH", "auto", "poll: for network drives and bind mounts")
    guard_percent: int = _env(
        "ASKFOLDER_GUARD_PERCENT",
        50,
        "a scan that would remove 20 or more documents, and more than this share of all (in %), stops until `askfolder reconcile --confirm`",
        ge=0,
        le=100,
    )
    chunk_tokens: int = _env(
        "ASKFOLDER_CHUNK_TOKENS", 0, "the most tokens of a chunk; 0: what the embedder reads, up to 400", ge=0, le=8000
    )
    cosine_weight: float = _env(
        "ASKFOLDER_COSINE_WEIGHT", 0.65, "what meaning counts in a passage's rank, against words", ge=0, le=1
    )
    parse_seconds: float = _env("ASKFOLDER_PARSE_SECONDS", 120.0, "the time that reading one file may take", gt=0)
    parse_memory_mb: int = _env("ASKFOLDER_PARSE_MEMORY_MB", 2048, "the memory that reading one file may take", ge=256)
    max_file_mb: int = _env("ASKFOLDER_MAX_FILE_MB", 200, "larger files are refused", ge=1)
    max_text_mb: int = _env(
        "ASKFOLDER_MAX_TEXT_MB", 20, "files with more text (in million characters) are refused", ge=1
    )

    url: str = _env("ASKFOLDER_URL", "", "where the command line finds a running system; empty: this checkout's")
    key: SecretStr | None = _env("ASKFOLDER_KEY", None, "the key that the command line uses there")

    @field_validator("chunk_tokens")
    @classmethod
    def _no_scraps(cls, tokens: int) -> int:
        if 0 < tokens < 32:
            raise ValueError("fewer than 32 tokens say nothing by themselves (0: what the embedder reads)")
        return tokens

    @field_validator("inbox", "data")
    @classmethod
    def _from_the_checkout(cls, path: Path) -> Path:
        return Path(os.path.abspath(ROOT / path.expanduser()))  # not resolve(): a linked folder keeps its name

    @field_validator("prices")
    @classmethod
    def _that_can_be_read(cls, text: str) -> str:
        try:
            prices.read(text)
        except SettingsError as error:
            raise ValueError(str(error).partition(": ")[2]) from None
        return text

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *sources: PydanticBaseSettingsSource, **named: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (named["init_settings"], named["env_settings"], named["dotenv_settings"])

    def answers_with_claude(self) -> bool:
        return self.answerer == "claude" or (self.answerer == "auto" and self.anthropic_api_key is not None)

    def workers(self) -> int:
        """Documents worked on at once: one more than there are cores, so that a small file never waits for large ones.

        Twice as many with a provider's embedder: they wait for its answers, one request each.
        """
        return self.concurrency or min(os.cpu_count() or 2, 8) * (1 if self.embedder == "local" else 2) + 1


def names() -> dict[str, str]:
    """Environment name → field name."""
    return {str(f.validation_alias.choices[0]): n for n, f in Settings.model_fields.items()}  # type: ignore[union-attr]


@functools.cache
def load() -> Settings:
    """The settings of this process. Raises SettingsError with a sentence for each that is wrong."""
    return read({})


def read(changes: Mapping[str, str]) -> Settings:
    """The settings with some changed, by the environment's names. Raises SettingsError with a sentence for each that is wrong."""
    file = ROOT / ".env"
    known = names()
    given = {**(dotenv_values(file) if file.is_file() else {}), **os.environ, **changes}
    unknown = sorted(n for n in given if n.startswith("ASKFOLDER_") and n not in known)
    if unknown:
        near = ", ".join(sorted(n for n in known if n.startswith("ASKFOLDER_")))
        raise SettingsError(f"{', '.join(unknown)}: there is no such setting. Remove or correct it; there are: {near}.")
    try:
        settings = Settings(_env_file=file if file.is_file() else None, **changes)  # type: ignore[arg-type, call-arg]
    except ValidationError as error:
        raise SettingsError(
            "\n".join(
                f"{e['loc'][0]}: {e['msg'][0].lower()}{e['msg'][1:]}; it is {e['input']!r}."
                for e in error.errors(include_url=False)
            )
        ) from None
    needs = {
        ("ASKFOLDER_EMBEDDER", "openai"): ("OPENAI_API_KEY", settings.openai_api_key),
        ("ASKFOLDER_EMBEDDER", "voyage"): ("VOYAGE_API_KEY", settings.voyage_api_key),
        ("ASKFOLDER_ANSWERER", "claude"): ("ANTHROPIC_API_KEY", settings.anthropic_api_key),
        ("ASKFOLDER_CONTEXT", "claude"): ("ANTHROPIC_API_KEY", settings.anthropic_api_key),
        ("ASKFOLDER_RERANKER", "voyage"): ("VOYAGE_API_KEY", settings.voyage_api_key),
        ("ASKFOLDER_RERANKER", "claude"): ("ANTHROPIC_API_KEY", settings.anthropic_api_key),
        ("ASKFOLDER_RERANKER", "local"): ("ASKFOLDER_RERANKER_MODEL", settings.reranker_model),
    }
    for (setting, choice), (name, value) in needs.items():
        if getattr(settings, known[setting]) == choice and not value:
            raise SettingsError(f"{setting}={choice} needs {name}; set it in .env or the environment.")
    return settings
