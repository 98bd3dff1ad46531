"""The application for any WSGI server: gunicorn, `flask run`, `uvicorn --interface wsgi`."""

import gc
import sys

# Everything loaded now stays in memory: garbage collection would free nothing, and takes a third of the start-up time.
gc.disable()

from shared_files import reserve_metrics

METRICS_SHARED = reserve_metrics()

import structlog

from app import create_app
from app.cli import is_serving
from app.config import StartupError
from app.http.auth import check_before_serving
from app.telemetry import standard_error

# Commands and tracebacks print to it, too: none may fail because the disk is full.
sys.stderr = standard_error()

try:
    app = create_app()
    if not METRICS_SHARED:
        structlog.get_logger().warning("metrics not shared", reason="PROMETHEUS_MULTIPROC_DIR cannot be written to")
    if is_serving():
        with app.app_context():
            check_before_serving(app)
except StartupError as error:
    print(f"order service: {error}", file=sys.stderr)
    sys.exit(3)  # tells gunicorn not to start the worker again

gc.enable()
