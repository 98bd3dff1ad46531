"""What all endpoints share.

`application` has the Flask application and the decorator that declares a route, `auth` authenticates and authorizes
requests, `rate_limit` counts them, `requests` reads bodies, queries and conditional headers, `responses`, `exports` and
`problems` build responses, `content_negotiation` selects media types and compresses, `cursors` are the positions in
lists, `openapi` builds the API description.
"""
