"""Settings, read once from the environment and `.env`. A wrong or unknown setting stops the start with a sentence."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from shared import prices
from shared.errors import SettingsError

ROOT = Path(__file__).resolve().parent.parent  # the checkout, or /app in the image
NEEDS = (  # a choice, and another setting without which it cannot work
    ("ASKFOLDER_EMBEDDER", "openai", "OPENAI_API_KEY"),
    ("ASKFOLDER_EMBEDDER", "voyage", "VOYAGE_API_KEY"),
    ("ASKFOLDER_ANSWERER", "claude", "ANTHROPIC_API_KEY"),
    ("ASKFOLDER_CONTEXT", "claude", "ANTHROPIC_API_KEY"),
    ("ASKFOLDER_RERANKER", "voyage", "VOYAGE_API_KEY"),
    ("ASKFOLDER_RERANKER", "claude", "ANTHROPIC_API_KEY"),
    ("ASKFOLDER_RERANKER", "local", "ASKFOLDER_RERANKER_MODEL"),
)


OnOff = Literal["on", "off"]
# Settings that other programs read too have no prefix.
WITHOUT_PREFIX = ("database_", "redis_", "openai_", "voyage_", "anthropic_")


def _field(default: object, description: str, **limits: float) -> Any:
    return Field(default, description=description, **limits)  # type: ignore[call-overload]


def environment_name(field: str) -> str:
    return field.upper() if field.startswith(WITHOUT_PREFIX) else f"ASKFOLDER_{field.upper()}"


class Settings(BaseSettings):
    """All settings. The variable of `port` is ASKFOLDER_PORT. `docs/settings.md` and `.env.example` are generated."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, populate_by_name=True, alias_generator=environment_name
    )

    # servers
    database_url: str = _field("", "PostgreSQL ≥ 15 with pgvector ≥ 0.8.4; empty: an embedded server")
    redis_url: str = _field("", "Redis ≥ 6.2 or Valkey; empty: an embedded server")

    # the installation
    inbox: Path = _field(Path("inbox"), "folder to mirror; askfolder never writes to it")
    data: Path = _field(Path(".askfolder"), "folder for keys, logs and the data of the embedded servers")
    host: str = _field("127.0.0.1", "address that the API listens on")
    port: int = _field(8000, "port of the API", ge=1, le=65535)
    flower_port: int = _field(5555, "port of Flower", ge=1, le=65535)
    allowed_hosts: str = _field("", "further host names that requests may use, separated by commas")
    admin_key: SecretStr | None = _field(None, "key of the API; unset: generated and stored in the data folder")

    # embedding
    embedder: Literal["local", "openai", "voyage"] = _field("local", "provider that embeds texts")
    embedding_model: str = _field("", "embedding model; for local: a directory with model.onnx and tokenizer.json")
    embedding_dimensions: int | None = _field(None, "shorter vectors, if the model supports them", ge=8, le=4000)
    openai_api_key: SecretStr | None = _field(None, "key for ASKFOLDER_EMBEDDER=openai")
    openai_base_url: str = _field("", "address of another server with the same API, including /v1")
    voyage_api_key: SecretStr | None = _field(None, "key for ASKFOLDER_EMBEDDER=voyage or ASKFOLDER_RERANKER=voyage")
    voyage_base_url: str = _field("", "address of another server with the same API, including /v1")

    # reranking
    reranker: Literal["off", "voyage", "local", "claude"] = _field(
        "off", "provider that reorders the first 50 passages found for a question"
    )
    reranker_model: str = _field(
        "",
        "reranking model (rerank-2.5, claude-haiku-5-5); for local: a directory with model.onnx and tokenizer.json",
    )
    rerank_seconds: float = _field(3.0, "time limit of reranking, after which passages keep their order", gt=0, le=60)

    # contexts of chunks
    context: Literal["off", "claude"] = _field(
        "off", "provider that describes each chunk's place in its document in a sentence or two, for search"
    )
    context_model: str = _field("claude-haiku-5-5", "model that writes these descriptions")

    # answers
    answerer: Literal["auto", "claude", "extractive"] = _field(
        "auto", "auto: Claude if there is a key, else sentences quoted from the documents"
    )
    anthropic_api_key: SecretStr | None = _field(None, "key for answers by Claude")
    anthropic_model: str = _field("claude-sonnet-5-5", "model that writes answers")
    anthropic_base_url: str = _field("", "address of another server with the same API")
    strict: OnOff = _field("on", "on: sentences without support in the documents are removed from answers")
    check_model: str = _field(
        "", "small model (claude-haiku-5-5) that checks sentences with partial support; empty: no check"
    )
    rewrite_model: str = _field(
        "",
        "small model that rewrites follow-up questions to stand alone; empty: claude-haiku-5-5, or ANTHROPIC_MODEL if "
        "ANTHROPIC_BASE_URL is set",
    )
    ask_seconds: float = _field(90.0, "time limit of an answer", gt=0, le=600)
    question_log: OnOff = _field("on", "on: the database stores questions and answers, for ratings and evaluation")

    # costs
    budget_embedding: float | None = _field(
        None, "dollars per day (UTC) for embedding, above which documents wait; unset: no cap", ge=0
    )
    budget_answers: float | None = _field(
        None, "dollars per day (UTC) for answers, above which no model is used; unset: no cap", ge=0
    )
    prices: str = _field(
        "", "prices of models missing from docs/costs.md, in dollars per million tokens: model=IN, other=IN/OUT"
    )

    # ingestion and search
    concurrency: int = _field(0, "documents processed at once; 0: depends on the cores", ge=0, le=64)
    rescan_seconds: float = _field(300.0, "seconds between full scans of the folder", ge=1)
    watch: Literal["auto", "poll"] = _field("auto", "poll: for network drives and bind mounts")
    guard_percent: int = _field(
        50,
        "a scan that would remove at least 20 documents and more than this percentage of all stops until "
        "`askfolder reconcile --confirm`",
        ge=0,
        le=100,
    )
    chunk_tokens: int = _field(0, "maximum tokens of a chunk; 0: the embedder's limit, up to 400", ge=0, le=8000)
    cosine_weight: float = _field(0.65, "weight of meaning against words in the rank of a passage", ge=0, le=1)
    parse_seconds: float = _field(120.0, "time limit for reading one file", gt=0)
    parse_memory_mb: int = _field(2048, "memory limit for reading one file", ge=256)
    max_file_mb: int = _field(200, "larger files are refused", ge=1)
    max_text_mb: int = _field(20, "files with more text (in millions of characters) are refused", ge=1)

    # the command line
    url: str = _field("", "address of the system that the command line uses; empty: this checkout's system")
    key: SecretStr | None = _field(None, "key that the command line sends to ASKFOLDER_URL")

    @field_validator("chunk_tokens")
    @classmethod
    def _large_enough(cls, tokens: int) -> int:
        if 0 < tokens < 32:
            raise ValueError("a chunk needs at least 32 tokens (0: as many as the embedder reads)")
        return tokens

    @field_validator("inbox", "data")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return Path(os.path.abspath(ROOT / path.expanduser()))  # not resolve(), which would replace a symbolic link

    @field_validator("prices")
    @classmethod
    def _readable(cls, text: str) -> str:
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
        """Documents processed at once: one more than the cores, so that a small file never waits for large ones.

        With a remote embedder twice the cores: each document waits for its request.
        """
        return self.concurrency or min(os.cpu_count() or 2, 8) * (1 if self.embedder == "local" else 2) + 1


def names() -> dict[str, str]:
    """Environment name → field name."""
    return {environment_name(field): field for field in Settings.model_fields}


@functools.cache
def load() -> Settings:
    """Load the settings of this process, once. Errors as in `read`."""
    return read({})


def read(changes: Mapping[str, str]) -> Settings:
    """Read the settings, with some changed by environment name. SettingsError: a sentence for each wrong setting."""
    file = ROOT / ".env"
    known = names()
    given = {**(dotenv_values(file) if file.is_file() else {}), **os.environ, **changes}
    unknown = sorted(name for name in given if name.startswith("ASKFOLDER_") and name not in known)
    if unknown:
        valid = ", ".join(sorted(name for name in known if name.startswith("ASKFOLDER_")))
        raise SettingsError(
            f"{', '.join(unknown)}: there is no such setting. Remove or correct it. Valid names: {valid}."
        )
    try:
        settings = Settings(_env_file=file if file.is_file() else None, **changes)  # type: ignore[arg-type, call-arg]
    except ValidationError as error:
        lines = (
            f"{e['loc'][0]}: {e['msg'][0].lower()}{e['msg'][1:]}; it is {e['input']!r}."
            for e in error.errors(include_url=False)
        )
        raise SettingsError("\n".join(lines)) from None
    for setting, choice, needed in NEEDS:
        if getattr(settings, known[setting]) == choice and not getattr(settings, known[needed]):
            raise SettingsError(f"{setting}={choice} needs {needed}; set it in .env or the environment.")
    return settings
