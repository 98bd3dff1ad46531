"""Marshmallow schemas: what requests may contain, and what responses contain.

`base` has the base classes of schemas and fields, parses a body, loads it and reports its errors. `order` describes
bodies and the path of a hold, `parameters` all other paths, and queries; `webhook` describes all of webhooks, and
`documents` responses, for the API description alone.
"""
