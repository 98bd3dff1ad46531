"""Use cases of the service, free of HTTP: one module a topic, with the domain's verbs.

Creating: order_service. Changing: order_actions. Both store through order_storage. Many at once: batches, order_import.
Reading: order_queries (one order, lists, exports), order_search over the rows of search_projection.
Events: event_feed, broker, webhook_queue, webhook_delivery; worker runs them. Webhooks are managed in webhook_service.
Personal data: personal_data. Credentials: credentials. Checks: verification, document_checks, diagnosis.
"""
