"""Use cases of the service, free of Flask: one module a topic, with the domain's verbs.

Creating: order_service. Changing: order_actions. Both store through order_storage. Many at once: batches, order_import.
Reading: order_queries (one order, lists, exports), order_search over the rows of search_projection.
Events: event_feed, broker, webhook_queue, webhook_delivery; webhook_service manages endpoints.
In the background: worker runs these, the search, changes that are due and erasures.
Personal data: personal_data. Credentials: credentials. Checks: verification, document_checks, diagnosis.
"""
