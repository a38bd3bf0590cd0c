"""The one task: ingest a document by its id. Celery's signals open and close what its processes need."""

import atexit
import os
import sys
from typing import Any

from celery import current_app, shared_task, signals

from shared import broker
from shared.errors import SettingsError, TransientError
from shared.text import languages
from worker.ingest import Work, ingest
from worker.leases import Housekeeping, IngestRequest, Leases, is_readable, name_of


@shared_task(name="ingest", bind=True, Request=IngestRequest)
def ingest_document(self: Any, document_id: int) -> str:
    work: Work = self.app.work
    if not is_readable(work.inbox):
        return "its source is away"  # the worker stops consuming its queue, and the producer publishes the task again
    return ingest(work, document_id)


@signals.celeryd_init.connect
def _prepare(instance: Any, **_: object) -> None:
    """Refuse a Redis that may evict the queue; wait for one that is unavailable."""
    app = instance.app
    try:
        broker.check(app.settings.redis_url)
    except SettingsError as error:
        sys.exit(str(error))
    except TransientError:
        pass
    languages.language("Load the model before the fork: the first document does not wait for it.")
    app.leases = Leases(app.settings)
    app.steps["consumer"].add(Housekeeping)


@signals.worker_process_init.connect
def _open(**_: object) -> None:
    # The parent is asked for right after the fork, while it is surely the worker.
    current_app.work = Work.open(current_app.settings, name_of(os.getpid(), os.getppid()))


@signals.worker_process_shutdown.connect
def _close(**_: object) -> None:
    current_app.work.close()


@signals.worker_ready.connect
def _ready(sender: Any, **_: object) -> None:
    atexit.register(sender.app.leases.end)  # Celery's own signal for the end is not sent if it had to end tasks
