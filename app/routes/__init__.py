"""HTTP endpoints: a view reads its input, calls one service and returns its response.

`order_routes` creates, reads, lists, searches and exports orders, and has their history; `order_action_routes` changes
them. `event_routes` has the feed and the streams of events, `webhook_routes` manages webhooks, `customer_routes`
exports and erases personal data. `service_routes` serves probes and metrics, the API description, guides, problem
types and the console.
"""
