"""The Celery app is created from settings; an import of the module alone reads no settings."""

import os
import subprocess
import sys
from pathlib import Path

from shared.settings import ROOT, Settings
from worker.app import celery_app, queue_of


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False
    )


def test_only_the_app_needs_settings() -> None:
    wrong = {"ASKFOLDER_PORT": "none"}
    assert run("import worker.tasks, worker.app; worker.app.queue_of('folder', '/')", **wrong).returncode == 0
    app = run("from worker.app import app", **wrong)
    assert app.returncode != 0
    assert "ASKFOLDER_PORT" in app.stderr


def test_the_app_is_created_once() -> None:
    code = (
        "import worker.app as w; from worker.app import app; assert app is w.app; print(app.tasks['ingest'].app is app)"
    )
    assert run(f"import worker.tasks; {code}").stdout == "True\n"


def test_each_source_has_a_queue(tmp_path: Path) -> None:
    settings = Settings(inbox=tmp_path)
    app = celery_app(settings)
    assert app.settings is settings
    assert app.conf.task_default_queue == queue_of("folder", str(tmp_path)) != queue_of("folder", "/another")
