"""Embedders from the settings: the wanted one, and that of a generation, which may be an older choice that still answers."""

from pathlib import Path

from shared.errors import SettingsError
from shared.providers.embedder import Embedder
from shared.providers.local import LocalEmbedder
from shared.providers.meter import UNMETERED, Meter
from shared.providers.minilm import prepare
from shared.providers.openai import OpenAIEmbedder
from shared.providers.voyage import VoyageEmbedder
from shared.settings import Settings

LOCAL_MODEL = "models/all-MiniLM-L6-v2"  # below the data folder


def wanted_embedder(settings: Settings) -> Embedder:
    return embedder_for(
        settings, settings.embedder, settings.embedding_model, settings.embedding_model, settings.embedding_dimensions
    )


def embedder_for(
    settings: Settings,
    name: str,
    model: str,
    model_path: str,
    dimensions: int | None,
    threads: int = 1,
    meter: Meter = UNMETERED,
) -> Embedder:
    """`model_path`: for local, the directory of a model of the user's; empty: the built-in one. Raises SettingsError."""
    openai, voyage = settings.openai_api_key, settings.voyage_api_key
    return open_embedder(
        name,
        model=(model_path if name == "local" else model) or None,
        dimensions=dimensions,
        openai_api_key=openai.get_secret_value() if openai else None,
        openai_base_url=settings.openai_base_url or None,
        voyage_api_key=voyage.get_secret_value() if voyage else None,
        voyage_base_url=settings.voyage_base_url or None,
        local_directory=settings.data / LOCAL_MODEL,
        threads=threads,
        meter=meter,
        redis_url=settings.redis_url,
    )


def open_embedder(
    name: str,
    *,
    model: str | None = None,
    dimensions: int | None = None,
    openai_api_key: str | None = None,
    openai_base_url: str | None = None,
    voyage_api_key: str | None = None,
    voyage_base_url: str | None = None,
    local_directory: Path,
    threads: int = 1,
    meter: Meter = UNMETERED,
    redis_url: str = "",
) -> Embedder:
    """The embedder that the settings ask for. `model`: None for the default; for "local" a directory.

    `local_directory`: where our own local model is kept, and built when it is not there. `redis_url`: where all processes
    learn that a provider asks to slow down; empty: each for itself. SettingsError: it cannot work.
    """
    if name == "local":
        local = LocalEmbedder(Path(model).expanduser() if model else prepare(local_directory), threads)
        if dimensions not in (None, local.dimensions):
            raise SettingsError(
                f"ASKFOLDER_EMBEDDING_DIMENSIONS is {dimensions}, but the local model has {local.dimensions}: unset it."
            )
        return local
    if name == "openai":
        return OpenAIEmbedder(
            openai_api_key,
            model or "text-embedding-3-small",
            dimensions,
            openai_base_url,
            meter=meter,
            redis_url=redis_url,
        )
    if name == "voyage":
        return VoyageEmbedder(
            voyage_api_key, model or "voyage-4", dimensions, voyage_base_url, meter=meter, redis_url=redis_url
        )
    raise SettingsError(f"ASKFOLDER_EMBEDDER is {name!r}; it must be local, openai or voyage.")
