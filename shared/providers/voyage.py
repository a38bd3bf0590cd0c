"""Embeddings of Voyage."""

from collections.abc import Mapping, Sequence
from typing import Literal

import httpx2

from shared.providers.meter import UNMETERED, Meter
from shared.providers.remote import RemoteEmbedder
from shared.text.tokens import ESTIMATE_FACTOR


class VoyageEmbedder(RemoteEmbedder):
    """Voyage AI, over plain HTTP: its own SDK brings half a machine-learning stack."""

    name = "voyage"
    label = "Voyage"
    key_setting = "VOYAGE_API_KEY"
    default_url = "https://api.voyageai.com/v1"
    known_dimensions: Mapping[str, int] = dict.fromkeys(("voyage-4-large", "voyage-4", "voyage-4-lite"), 1024)
    max_tokens = 32_000 // ESTIMATE_FACTOR
    batch_tokens = 100_000 // ESTIMATE_FACTOR

    def __init__(
        self,
        api_key: str | None,
        model: str = "voyage-4",
        dimensions: int | None = None,
        base_url: str | None = None,
        timeout: float = 30.0,
        meter: Meter = UNMETERED,
        redis_url: str = "",
    ) -> None:
        super().__init__(api_key, model, dimensions, base_url, timeout, meter, redis_url)
        self._client = self._connections()

    def close(self) -> None:
        self._client.close()
        self._pace.close()

    def _post(self, texts: Sequence[str], kind: Literal["document", "query"], timeout: float) -> httpx2.Response:
        # Without truncation=false a text that is too long would be cut off in silence.
        body = {"input": list(texts), "model": self.model, "input_type": kind, "truncation": False}
        if self._asked_dimensions is not None:
            body["output_dimension"] = self._asked_dimensions
        try:
            return self._client.post(f"{self._url}/embeddings", json=body, timeout=timeout)
        except httpx2.HTTPError as error:
            raise self._silence(error) from None
