"""Use cases of the service, free of HTTP: one module a topic, with the domain's verbs.

Creating: order_service, order_inserts. Changing: order_actions, order_updates.
Reading: order_queries (one order), order_listing (lists), order_export (all). The order document: order_document.
Operations: order_import, erasure, verification (with event_, change_ and document_checks).
Credentials: api_key_service, token_service.
"""
