"""The Celery app. The queue is a hint (PostgreSQL is the record), so a lost task only costs time; a repeated one finds nothing to do."""

import hashlib
import logging
import warnings

from celery import Celery
from celery.platforms import SecurityWarning

from shared.broker import broker_url
from shared.settings import load

settings = load()
VISIBILITY_SECONDS = 7200  # above the longest task; kombu takes the shortest of the three places where it is set

logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line per embedding request is noise
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # … and so are its attempts while the database is away
warnings.simplefilter(
    "ignore", SecurityWarning
)  # running as root is harmless here: messages are JSON, from a private queue

app = Celery("askfolder", broker=broker_url(settings.redis_url), include=["worker.tasks"])


def queue_of(kind: str, root: str) -> str:
    """One queue per source, so that only workers that can read a source take its work."""
    return f"{kind}-{hashlib.sha256(root.encode('utf-8', 'surrogateescape')).hexdigest()[:10]}"


app.conf.update(
    task_default_queue=queue_of("folder", str(settings.inbox)),
    task_serializer="json",
    accept_content=["json"],
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=False,  # the ledger sends it again, and counts how often: worker/leases.py
    task_soft_time_limit=VISIBILITY_SECONDS // 2,
    task_time_limit=VISIBILITY_SECONDS // 2 + 300,
    worker_lost_wait=0.5,  # seconds before a process that ended counts as lost: its result stands in PostgreSQL, if there is one
    worker_prefetch_multiplier=1,
    worker_concurrency=settings.workers(),
    worker_max_memory_per_child=480_000,  # KiB
    worker_send_task_events=True,
    task_send_sent_event=True,
    worker_soft_shutdown_timeout=3.0,
    worker_enable_soft_shutdown_on_idle=False,
    # A document is finished without Redis: its end stands in PostgreSQL, and a task that comes again finds nothing to do.
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_enable_prefetch_count_reduction=False,
    worker_hijack_root_logger=True,
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
