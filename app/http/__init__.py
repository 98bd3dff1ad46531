"""What all endpoints share.

`application` has the Flask application and the decorator that declares a route, `auth` authenticates and authorizes
requests, `rate_limit` counts them, and limits how many run at once. `requests` reads bodies, queries, cursors and
conditional headers, `responses` builds documents and problems, also for errors of the database, `streams` responses
that last. `openapi` builds the API description.
"""
