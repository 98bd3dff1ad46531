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


def count(principal: Principal, *, cost: int = 1, counted: int = 0) -> None:
    """Count a request of the principal, or one that is worth `cost` of them, `counted` of which have been counted.

    Raises TooManyRequests beyond its share. A batch larger than the whole share is let in while all of it is left.
    """
    limiter: RateLimiter | None = current_app.extensions.get("rate_limiter")
    if limiter is None:
        return
    policy = "services" if principal.customer_id is None else "customers"
    limit = current_app.config[f"RATE_LIMIT_{policy.upper()}"]
    if limit == 0:
        return
    share = limiter.take(principal.id, per_minute=limit, cost=cost, counted=counted)
    g.rate_limit = {
        "RateLimit-Policy": f'"{policy}";q={limit};w=60',
        "RateLimit": f'"{policy}";r={share.left};t={math.ceil(share.next_one)}',
    }
    if share.wait:
        detail = f"More than {limit} requests in a minute."
        if cost > 1:
            detail = f"The batch counts as {cost} requests, and {share.left} of {limit} a minute are left."
        raise TooManyRequests(detail).with_headers(Retry_After=str(math.ceil(share.wait)))


def _tell(response: Response) -> Response:
    if "rate_limit" in g:
        response.headers.update(g.rate_limit)
    return response
