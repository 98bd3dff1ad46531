"""How the service talks to the database, independent of what is stored there.

`engine` opens connections, has the types of columns and classifies database errors, `statements` runs compiled
statements and transactions, repeats them after transient errors, and notifies the workers, `batching` lets concurrent
requests share a statement, `migrations` checks the schema.
"""
