"""Is the process alive, can it serve, how does it do: for the load balancer and the monitoring."""

from flask import Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.errors import ServiceUnavailable
from app.http.arguments import JSON
from app.http.blueprint import PUBLIC, Blueprint
from app.models.schema_state import expected_revision, stored_revision
from app.telemetry import render_metrics

STATUS = {"type": "object", "properties": {"status": {"type": "string"}}}

blueprint = Blueprint("health", __name__, description="For the load balancer and the monitoring.")


@blueprint.route("/healthz")
@blueprint.requires(PUBLIC)
@blueprint.response(200, STATUS)
@blueprint.describe()
def read_health() -> Response:
    """Does the process answer? Nothing else is touched"""
    return Response('{"status":"ok"}', mimetype=JSON)


@blueprint.route("/readyz")
@blueprint.requires(PUBLIC)
@blueprint.response(200, STATUS)
@blueprint.describe(problems=(ServiceUnavailable,))
def read_readiness() -> Response:
    """Does the database answer, with the schema of this code?"""
    stored, expected = stored_revision(), expected_revision()
    if stored != expected:
        raise ServiceUnavailable(f"The database is at migration {stored}, the code at {expected}.")
    return Response('{"status":"ready"}', mimetype=JSON)


@blueprint.route("/metrics")
@blueprint.requires(PUBLIC)
@blueprint.response(200, {"type": "string"}, content_type="text/plain")
@blueprint.describe()
def read_metrics() -> Response:
    """The metrics of all workers on this machine, for Prometheus"""
    return Response(render_metrics(), content_type=CONTENT_TYPE_LATEST)
