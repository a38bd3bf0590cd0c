"""Embeddings of Voyage, over plain HTTP: its SDK brings half a machine-learning stack."""

from collections.abc import Mapping, Sequence

import httpx2

from shared.providers.embedder import Kind
from shared.providers.remote import Endpoint, RemoteEmbedder
from shared.settings import Settings
from shared.text.tokens import ESTIMATE_FACTOR


def endpoint(settings: Settings) -> Endpoint:
    key, url = settings.voyage_api_key, settings.voyage_base_url
    return Endpoint.of("Voyage", "VOYAGE_API_KEY", key, url, "https://api.voyageai.com/v1")


class VoyageEmbedder(RemoteEmbedder):
    name = "voyage"
    default_model = "voyage-4"
    known_dimensions: Mapping[str, int] = {"voyage-4-large": 1024, "voyage-4": 1024, "voyage-4-lite": 1024}
    max_tokens = 32_000 // ESTIMATE_FACTOR
    batch_tokens = 100_000 // ESTIMATE_FACTOR

    def _post(self, texts: Sequence[str], kind: Kind, timeout: float) -> httpx2.Response:
        # With truncation, a text that is too long would be cut off without an error.
        body = {"input": list(texts), "model": self.model, "input_type": kind, "truncation": False}
        if self._shortened is not None:
            body["output_dimension"] = self._shortened
        try:
            response: httpx2.Response = self._client.post(
                f"{self._endpoint.url}/embeddings", json=body, timeout=timeout
            )
        except httpx2.HTTPError as error:
            raise self._endpoint.no_answer(error) from None
        return response
