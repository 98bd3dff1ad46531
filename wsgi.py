"""The application for any WSGI server: gunicorn, `flask run`, `uvicorn --interface wsgi`."""

import gc
import sys

# All that loads now stays: to look through it for garbage again and again takes a third of the start.
gc.disable()

from app import create_app
from app.cli import is_serving
from app.config import StartupError
from app.http.readiness import check_before_serving

try:
    app = create_app()
    if is_serving():
        with app.app_context():
            check_before_serving(app)
except StartupError as error:
    print(f"order service: {error}", file=sys.stderr)
    sys.exit(3)  # by which a gunicorn worker says: do not start me again

gc.enable()
