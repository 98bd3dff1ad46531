"""How the service talks to the database; knows no orders.

`engine` and `connection` open connections, `statement` runs compiled statements and contains the one retry,
`transactions` runs several statements as one, `batching` lets concurrent requests share a statement, `errors`
classifies database errors, `types` are column types, `migrations` checks the schema.
"""
