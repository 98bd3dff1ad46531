"""What all endpoints share.

`application` is the Flask application, `blueprint` declares routes, `auth` authenticates and authorizes requests,
`rate_limit` counts them, `request_input` reads bodies, queries and conditional headers, `responses`, `exports` and
`problems` build responses, `content_negotiation` selects media types and compresses, `cursors` are the positions in
lists, `openapi` builds the API description.
"""
