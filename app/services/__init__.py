"""Use cases of the service, free of HTTP: one module a topic, with the domain's verbs.

Creating: order_service, order_inserts. Changing: order_actions, order_updates, order_schedule.
Many at once: batches, order_import.
Reading: order_queries (one order), order_listing, order_search (lists), order_export (all).
Events: sequencer, event_feed, broker, webhook_queue, webhook_claims, webhook_delivery; worker runs them.
Personal data: personal_data. Checks: verification and the modules *_checks, diagnosis.
Credentials: api_key_service, token_service.
"""
