"""How the service talks to its database; nothing here knows an order.

`engine` and `connection` open connections, `statement` runs compiled SQL, `transactions` runs several statements as one
and holds the one retry, `group_commit` lets concurrent requests share a statement, `errors` tells what a database error
means, `types` are column types, `revision` compares the schema with the migrations, and `sqlite_rewrite` frees a file.
"""
