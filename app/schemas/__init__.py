"""Marshmallow schemas: what requests may contain, and what responses contain.

`fields` has the base classes of schemas and fields; `strict_json` parses a body, loads it and reports its errors.
`order` and `order_actions` describe bodies, `parameters` the query and the path, `order_import` lines to import;
`webhook` describes all of webhooks, and `documents` responses, for the API description alone.
"""
