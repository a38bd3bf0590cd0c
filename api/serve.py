"""Settings of gunicorn: one process, so that models are in memory once, and threads, since requests mostly wait."""

import sys

from shared.errors import SettingsError
from shared.settings import load

try:
    settings = load()
    if settings.reranker != "off":  # here, since a failure in gunicorn's worker prints a traceback
        from api.retrieval.reranking import open_reranking

        open_reranking(settings)
except SettingsError as error:
    sys.exit(str(error))
bind = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
worker_class = "gthread"
workers = 1
threads = 160  # one for each answer that is being streamed; they start when needed
timeout = 120
graceful_timeout = 4
control_socket_disable = True
