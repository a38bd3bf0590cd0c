"""The Celery app. PostgreSQL records all work, so a lost task only costs time, and a repeated task does nothing."""

import hashlib
import logging
import warnings

from celery import Celery
from celery.platforms import SecurityWarning

from shared.broker import broker_url
from shared.settings import Settings, load

VISIBILITY_SECONDS = 7200  # above the longest task; kombu takes the shortest of the three places where it is set


def __getattr__(name: str) -> Celery:
    """Make `app`, for `celery --app worker.app`, on first use: importing any other name needs no settings."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = app = celery_app(load())
    return app


def queue_of(kind: str, root: str) -> str:
    """Return the queue of a source. Each source has its own: only workers that can read it consume it."""
    return f"{kind}-{hashlib.sha256(root.encode('utf-8', 'surrogateescape')).hexdigest()[:10]}"


def celery_app(settings: Settings) -> Celery:
    """Make the app, with the settings in its attribute `settings`, and make it the one that tasks belong to."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line per embedding request is noise
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # so are connection attempts during a database outage
    # Running as root is harmless here: messages are JSON, from a private queue.
    warnings.simplefilter("ignore", SecurityWarning)
    app = Celery("askfolder", broker=broker_url(settings.redis_url), include=["worker.tasks"])
    app.set_default()
    app.settings = settings
    app.conf.update(
        task_default_queue=queue_of("folder", str(settings.inbox)),
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=False,  # the producer publishes it again, and the ledger counts: worker/leases.py
        task_soft_time_limit=VISIBILITY_SECONDS // 2,
        task_time_limit=VISIBILITY_SECONDS // 2 + 300,
        worker_proc_alive_timeout=60.0,  # seconds until a new process is ready; a busy machine may take longer than 4
        worker_lost_wait=0.5,  # seconds before an ended process counts as lost: results are in PostgreSQL by then
        worker_prefetch_multiplier=1,
        worker_concurrency=settings.workers(),
        worker_max_memory_per_child=480_000,  # KiB
        worker_send_task_events=True,
        task_send_sent_event=True,
        worker_soft_shutdown_timeout=3.0,
        # A document is finished without Redis: its result is in PostgreSQL, and a repeated task does nothing.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_prefetch_count_reduction=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_SECONDS,
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 5,
        },
        visibility_timeout=VISIBILITY_SECONDS,
        result_backend_transport_options={"visibility_timeout": VISIBILITY_SECONDS},
    )
    return app
