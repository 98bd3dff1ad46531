"""The order service: an application factory."""

from collections.abc import Mapping
from typing import Any

from flask import Flask

from app import cli, telemetry, tracing
from app.config import ROOT, load_config
from app.db import engine
from app.http import auth, rate_limit, responses, streams
from app.http.application import AnyCharacters, OrderService, serve_under_prefix
from app.routes import customer_routes, event_routes, order_action_routes, order_routes, service_routes, webhook_routes


def create_app(test_config: Mapping[str, Any] | None = None) -> Flask:
    """Create the application. The settings in `test_config` override those of the environment.

    Raises StartupError with one line that says what to do.
    """
    app = OrderService(__name__, instance_path=str(ROOT / "instance"), static_folder=None)
    app.config.from_mapping(load_config(test_config))
    app.url_map.merge_slashes = False  # //orders is not a resource, and no reason for a redirect
    app.url_map.converters["characters"] = AnyCharacters

    tracing.init_tracing()
    engine.init_app(app)
    telemetry.init_app(app)
    responses.init_app(app)
    for blueprint in (
        order_routes.blueprint,
        order_action_routes.blueprint,
        event_routes.blueprint,
        webhook_routes.blueprint,
        customer_routes.blueprint,
        service_routes.health_blueprint,
        service_routes.docs_blueprint,
    ):
        app.register_blueprint(blueprint)
    if app.config["CONSOLE"] == "on":
        app.register_blueprint(service_routes.console_blueprint)
    webhook_routes.init_app(app)
    serve_under_prefix(app)
    rate_limit.init_app(app)
    auth.init_app(app)
    streams.init_app(app)
    cli.init_app(app)
    return app
