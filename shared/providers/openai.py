"""Embeddings of OpenAI, or of a server with the same API."""

from collections.abc import Mapping, Sequence

import httpx2
import openai

from shared.providers.embedder import Kind
from shared.providers.remote import Endpoint, RemoteEmbedder, is_loopback
from shared.settings import Settings
from shared.text.tokens import ESTIMATE_FACTOR


def endpoint(settings: Settings) -> Endpoint:
    key, url = settings.openai_api_key, settings.openai_base_url
    return Endpoint.of("OpenAI", "OPENAI_API_KEY", key, url, "https://api.openai.com/v1")


class OpenAIEmbedder(RemoteEmbedder):
    name = "openai"
    default_model = "text-embedding-3-small"
    known_dimensions: Mapping[str, int] = {
        "text-embedding-3-small": 1536,
        "text-embedding-3-large": 3072,
        "text-embedding-ada-002": 1536,
    }
    max_tokens = 8_191 // ESTIMATE_FACTOR
    batch_tokens = 300_000 // ESTIMATE_FACTOR
    _client: openai.OpenAI

    def _connect(self) -> openai.OpenAI:
        key, url = self._endpoint.key, self._endpoint.url
        http = openai.DefaultHttpxClient(trust_env=not is_loopback(url))
        return openai.OpenAI(api_key=key, base_url=url, max_retries=0, http_client=http)

    def _post(self, texts: Sequence[str], kind: Kind, timeout: float) -> httpx2.Response:
        try:
            answer = self._client.embeddings.with_raw_response.create(
                input=list(texts),
                model=self.model,
                encoding_format="base64",
                dimensions=openai.omit if self._shortened is None else self._shortened,
                timeout=timeout,
            )
        except openai.APIStatusError as error:
            return error.response
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            raise self._endpoint.no_answer(error) from None
        return answer.http_response
