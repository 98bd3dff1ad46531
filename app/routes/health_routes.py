"""Liveness, readiness and metrics, for load balancers and monitoring."""

from flask import Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.db.migrations import SchemaMismatch, database_state, require_compatible
from app.errors import ServiceUnavailable
from app.http.application import PUBLIC, Blueprint, Content
from app.http.requests import JSON
from app.http.responses import compress
from app.telemetry import render_metrics

NO_STORE = {"Cache-Control": "no-store"}
STATUS = {"type": "object", "properties": {"status": {"type": "string"}}}

blueprint = Blueprint("health", __name__, description="Probes and metrics for load balancers and monitoring.")


@blueprint.operation("GET", "/healthz", scope=PUBLIC, responses={200: Content((JSON,), STATUS)})
def read_health() -> Response:
    """Liveness probe: responds without using the database.

    A process that does not respond should be restarted.
    """
    return Response('{"status":"ok"}', headers=NO_STORE, mimetype=JSON)


@blueprint.operation(
    "GET",
    "/readyz",
    scope=PUBLIC,
    responses={200: Content((JSON,), STATUS)},
    problems=(ServiceUnavailable,),
)
def read_readiness() -> Response:
    """Readiness probe: checks that the database answers, has the right schema and accepts writes.

    A process that is not ready should receive no requests. The detail of the problem says why.
    """
    state = database_state()
    try:
        require_compatible(state)
    except SchemaMismatch as error:
        raise ServiceUnavailable(str(error)) from None
    if state.read_only:
        raise ServiceUnavailable("Only a read-only database is reachable.")
    return Response('{"status":"ready"}', headers=NO_STORE, mimetype=JSON)


@blueprint.operation(
    "GET",
    "/metrics",
    scope=PUBLIC,
    responses={200: Content(("text/plain",), {"type": "string"})},
)
def read_metrics() -> Response:
    """Read the Prometheus metrics of all workers on this machine.

    They are in the text format of Prometheus. Allow only your monitoring to read them.
    """
    return compress(Response(render_metrics(), headers=NO_STORE, content_type=CONTENT_TYPE_LATEST))
