"""Each principal's share of the requests, told in the headers of draft-ietf-httpapi-ratelimit-headers; 429 beyond."""

import math
import os

from flask import Flask, Response, current_app, g

from app.errors import TooManyRequests
from app.http.rate_limiter import RateLimiter
from app.models.principal import Principal


def init_app(app: Flask) -> None:
    """Prepare to count the requests of customers and of services, where they have a limit."""
    if app.config["AUTH"] == "required" and (app.config["RATE_LIMIT_CUSTOMERS"] or app.config["RATE_LIMIT_SERVICES"]):
        app.extensions["rate_limiter"] = RateLimiter(os.environ.get("RATE_LIMIT_FILE"))
        app.after_request(_tell)


def count(principal: Principal) -> None:
    """Count one request of the principal. Raises TooManyRequests beyond its share."""
    limiter: RateLimiter | None = current_app.extensions.get("rate_limiter")
    if limiter is None:
        return
    policy = "services" if principal.customer_id is None else "customers"
    limit = current_app.config[f"RATE_LIMIT_{policy.upper()}"]
    if limit == 0:
        return
    left, wait = limiter.take(principal.id, per_minute=limit)
    seconds = math.ceil(wait)
    g.rate_limit = {
        "RateLimit-Policy": f'"{policy}";q={limit};w=60',
        "RateLimit": f'"{policy}";r={left};t={seconds or math.ceil(60 / limit)}',
    }
    if wait:
        raise TooManyRequests(f"More than {limit} requests in a minute.").with_headers(Retry_After=str(seconds))


def _tell(response: Response) -> Response:
    if "rate_limit" in g:
        response.headers.update(g.rate_limit)
    return response
