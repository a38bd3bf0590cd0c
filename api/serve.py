"""gunicorn's settings: one process that holds the model once, threads for requests (they mostly wait)."""

from shared.settings import load

settings = load()
bind = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
worker_class = "gthread"
workers = 1
threads = 32
timeout = 120
graceful_timeout = 4
control_socket_disable = True
