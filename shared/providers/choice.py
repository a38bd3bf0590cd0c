"""Open the embedder of the settings, or of a generation that may be older than the settings."""

from pathlib import Path

from shared.errors import SettingsError
from shared.models import EmbeddingModel
from shared.providers import voyage
from shared.providers.embedder import Embedder
from shared.providers.local import LocalEmbedder
from shared.providers.meter import UNMETERED, Meter
from shared.providers.minilm import DESCRIPTION, prepare
from shared.settings import Settings

LOCAL_MODEL = "models/all-MiniLM-L6-v2"  # below the data folder
BUILT_IN = EmbeddingModel("local", str(DESCRIPTION["model"]), "", 384)


def embedder_of(
    settings: Settings, meter: Meter = UNMETERED, model: EmbeddingModel | None = None, threads: int = 1
) -> Embedder:
    """Open the embedder of a generation's model, or by default of the settings. `threads`: for a local model.

    SettingsError: the embedder cannot work.
    """
    if model is None:
        path = settings.embedding_model if settings.embedder == "local" else ""
        model = EmbeddingModel(settings.embedder, settings.embedding_model, path, settings.embedding_dimensions)
    if model.embedder == "local":
        directory = Path(model.path).expanduser() if model.path else prepare(settings.data / LOCAL_MODEL)
        local = LocalEmbedder(directory, threads)
        if model.dimensions not in (None, local.dimensions):
            raise SettingsError(
                f"ASKFOLDER_EMBEDDING_DIMENSIONS is {model.dimensions}, but the local model has {local.dimensions}; "
                "remove the setting."
            )
        return local
    if model.embedder == "openai":
        from shared.providers import openai  # the SDK takes 0.8 s to import, only where it is used

        return openai.OpenAIEmbedder(openai.endpoint(settings), model.model, model.dimensions, meter)
    if model.embedder == "voyage":
        return voyage.VoyageEmbedder(voyage.endpoint(settings), model.model, model.dimensions, meter)
    raise SettingsError(f"ASKFOLDER_EMBEDDER is {model.embedder!r}; it must be local, openai or voyage.")
