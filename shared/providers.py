"""Embedders from the settings: the wanted one, and that of a generation, which may be an older choice that still answers."""

from shared.embedding import UNMETERED, Embedder, open_embedder
from shared.settings import Settings
from shared.usage import Meter

LOCAL_MODEL = "models/all-MiniLM-L6-v2"  # below the data folder


def wanted_embedder(settings: Settings) -> Embedder:
    return embedder_for(
        settings, settings.embedder, settings.embedding_model, settings.embedding_model, settings.embedding_dimensions
    )


def embedder_for(
    settings: Settings, name: str, model: str, model_path: str, dimensions: int | None, threads: int = 1, meter: Meter = UNMETERED
) -> Embedder:  # fmt: skip
    """`model_path`: for local, the directory of a model of the user's; empty: the built-in one. Raises SettingsError."""
    openai, voyage = settings.openai_api_key, settings.voyage_api_key
    return open_embedder(
        name, model=(model_path if name == "local" else model) or None, dimensions=dimensions,
        openai_api_key=openai.get_secret_value() if openai else None, openai_base_url=settings.openai_base_url or None,
        voyage_api_key=voyage.get_secret_value() if voyage else None, voyage_base_url=settings.voyage_base_url or None,
        local_directory=settings.data / LOCAL_MODEL, threads=threads, meter=meter, redis_url=settings.redis_url,
    )  # fmt: skip
