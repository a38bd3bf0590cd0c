"""Embeddings of OpenAI, or of a server that speaks its wire format."""

from collections.abc import Mapping, Sequence
from typing import Literal

import httpx2

from shared.providers.meter import UNMETERED, Meter
from shared.providers.remote import RemoteEmbedder, is_loopback
from shared.text.tokens import ESTIMATE_FACTOR


class OpenAIEmbedder(RemoteEmbedder):
    """OpenAI, or any server that speaks its embeddings API."""

    name = "openai"
    label = "OpenAI"
    key_setting = "OPENAI_API_KEY"
    default_url = "https://api.openai.com/v1"
    known_dimensions: Mapping[str, int] = {
        "text-embedding-3-small": 1536,
        "text-embedding-3-large": 3072,
        "text-embedding-ada-002": 1536,
    }
    max_tokens = 8_191 // ESTIMATE_FACTOR
    batch_tokens = 300_000 // ESTIMATE_FACTOR

    def __init__(
        self,
        api_key: str | None,
        model: str = "text-embedding-3-small",
        dimensions: int | None = None,
        base_url: str | None = None,
        timeout: float = 30.0,
        meter: Meter = UNMETERED,
        redis_url: str = "",
    ) -> None:
        super().__init__(api_key, model, dimensions, base_url, timeout, meter, redis_url)
        import openai  # .8 s that only those who use it pay

        self._errors = (openai.APIConnectionError, httpx2.HTTPError)
        self._status_error = openai.APIStatusError
        self._omit = openai.omit
        self._client = openai.OpenAI(
            api_key=self._key,
            base_url=self._url,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(trust_env=not is_loopback(self._url)),
        )

    def close(self) -> None:
        self._client.close()
        self._pace.close()

    def _post(self, texts: Sequence[str], kind: Literal["document", "query"], timeout: float) -> httpx2.Response:
        try:
            answer = self._client.embeddings.with_raw_response.create(
                input=list(texts),
                model=self.model,
                encoding_format="base64",
                dimensions=self._omit if self._asked_dimensions is None else self._asked_dimensions,
                timeout=timeout,
            )
        except self._status_error as error:
            return error.response
        except self._errors as error:
            raise self._silence(error) from None
        return answer.http_response
