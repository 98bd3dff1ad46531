"""What all endpoints share.

`application` has the Flask application and the decorator that declares a route, `auth` authenticates and authorizes
requests, `rate_limit` counts them. `requests` reads bodies, queries, cursors and conditional headers, `responses`
builds documents and problems, `streams` responses that last. `openapi` builds the API description.
"""
