"""Is the process alive, can it serve, how does it do: for the load balancer and the monitoring."""

from flask import Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.errors import ServiceUnavailable
from app.http.arguments import JSON
from app.http.blueprint import PUBLIC, Blueprint, Content
from app.models.schema_state import expected_revision, stored_revision
from app.telemetry import render_metrics

STATUS = {"type": "object", "properties": {"status": {"type": "string"}}}

blueprint = Blueprint("health", __name__, description="For the load balancer and the monitoring.")


@blueprint.operation("GET", "/healthz", scope=PUBLIC, responses={200: Content((JSON,), STATUS)})
def read_health() -> Response:
    """Does the process answer? Nothing else is touched"""
    return Response('{"status":"ok"}', mimetype=JSON)


@blueprint.operation(
    "GET",
    "/readyz",
    scope=PUBLIC,
    responses={200: Content((JSON,), STATUS)},
    problems=(ServiceUnavailable,),
)
def read_readiness() -> Response:
    """Does the database answer, with the schema of this code?"""
    stored, expected = stored_revision(), expected_revision()
    if stored != expected:
        raise ServiceUnavailable(f"The database is at migration {stored}, the code at {expected}.")
    return Response('{"status":"ready"}', mimetype=JSON)


@blueprint.operation(
    "GET",
    "/metrics",
    scope=PUBLIC,
    responses={200: Content(("text/plain",), {"type": "string"})},
)
def read_metrics() -> Response:
    """The metrics of all workers on this machine, for Prometheus"""
    return Response(render_metrics(), content_type=CONTENT_TYPE_LATEST)
