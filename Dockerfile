# The image of the service, with the settings of the README in a file `environment`; compose.yaml has all of this:
#
#   docker build --tag order-service .
#   docker run --rm --env-file environment order-service flask --app wsgi db upgrade
#   docker run --env-file environment --publish 127.0.0.1:8000:8000 order-service
#   docker run --env-file environment order-service flask --app wsgi worker
#
# BASE is any image with Python 3.11 or newer and its venv module.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /opt/order-service
# Further packages: requirements-broker.txt to publish events to a message broker, requirements-tracing.txt for traces.
ARG REQUIREMENTS=""
COPY requirements*.txt ./
RUN python3 -m venv .venv \
 && for file in requirements.txt ${REQUIREMENTS}; do \
      .venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes -r ${file} || exit; \
    done
COPY . .
# A container's root may be read-only, so nothing can be compiled when it starts.
RUN .venv/bin/python -m compileall -q app migrations *.py

FROM ${BASE}
LABEL org.opencontainers.image.title="Order Service" org.opencontainers.image.licenses="MIT"
# Mount points of volumes: for gunicorn's socket, which nginx connects to, and for a SQLite database.
RUN useradd --system --uid 10001 --no-create-home --home-dir / --shell /usr/sbin/nologin order-service \
 && install -d -o 10001 -g 10001 /run/order-service /var/lib/order-service
WORKDIR /opt/order-service
COPY --from=build /opt/order-service .
USER 10001
ENV HOST=0.0.0.0 PORT=8000 DATABASE_URL=sqlite:////var/lib/order-service/orders.db PYTHONDONTWRITEBYTECODE=1
VOLUME /var/lib/order-service
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
  CMD [".venv/bin/python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/healthz')"]
ENTRYPOINT [".venv/bin/python", "-m"]
CMD ["gunicorn", "-c", "gunicorn.conf.py", "wsgi:app"]
