"""Marshmallow schemas: what requests may contain, and what responses contain.

`fields` has the base classes of schemas and fields; `strict_json` parses a body, loads it and reports its errors.
`order`, `order_actions` and `order_import` describe requests, queries and lines to import; `documents` describes
responses, for the API description alone.
"""
