"""How the service talks to the database, independent of what is stored there.

`engine` and `connection` open connections, `statement` runs compiled statements and repeats them after transient
errors, `transactions` runs several statements as one, `batching` lets concurrent requests share a statement, `errors`
classifies database errors, `types` are column types, `migrations` checks the schema.
"""
