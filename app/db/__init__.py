"""How the service talks to the database, independent of what is stored there.

`engine` opens connections and has the types of columns, `statements` runs compiled statements and transactions, repeats
them after transient errors, and notifies the workers, `batching` lets concurrent requests share a statement, `errors`
classifies database errors, `migrations` checks the schema.
"""
