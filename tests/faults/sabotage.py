"""A worker without one guard, to show that the campaigns find the damage: `celery --app tests.faults.sabotage worker`.

fence: a worker that lost its lease continues and overwrites the stored text.
"""

import contextlib
import os
from typing import Any

from shared.db import Connection
from shared.ledger import claims
from worker.app import app


def _hold(connection: Connection, claim: claims.Claim) -> None:
    """Lock the document without checking the lease."""
    connection.execute("SELECT 1 FROM document WHERE id = %s FOR UPDATE", [claim.id])


def _unfenced(function: Any) -> Any:
    def call(*arguments: Any, **named: Any) -> Any:
        with contextlib.suppress(claims.LostClaim):
            return function(*arguments, **named)

    return call


if os.environ.get("FAULTS_SABOTAGE") == "fence":
    claims.lock = _hold
    claims.progress = _unfenced(claims.progress)

__all__ = ["app"]
