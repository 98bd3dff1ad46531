/** The documents of the API, derived from the operations of its description. */

import type { operations, webhooks } from "./schema.js";

export type Operation = keyof operations;

/** The body of a request. */
export type Body<Op extends Operation> = operations[Op] extends { requestBody?: { content: infer Content } }
  ? Content[keyof Content]
  : never;

/** The query of a request. */
export type Query<Op extends Operation> = NonNullable<operations[Op]["parameters"]["query"]>;

/** The document of a successful response. */
export type Result<Op extends Operation> = Extract<
  operations[Op]["responses"][keyof operations[Op]["responses"] & (200 | 201 | 202)],
  { content: { "application/json": unknown } }
>["content"]["application/json"];

export type Order = Result<"getOrder">;
export type OrderStatus = Order["status"];
export type Action = Order["allowed_actions"][number];
export type OrderList = Result<"listOrders">;
export type OrderEvent = Result<"listOrderHistory">["events"][number];
export type FeedPage = Result<"listFeedEvents">;
export type FeedEvent = FeedPage["events"][number];
export type Webhook = Result<"getWebhook">;
export type Delivery = Result<"listDeliveries">["deliveries"][number];
export type Erasure = Result<"readErasure">;

/** An order to create: the body of `POST /orders`. */
export type NewOrder = Body<"createOrder">;

/** The body of a webhook. */
export type WebhookEvent = webhooks[keyof webhooks]["post"]["requestBody"]["content"]["application/json"];

/** An order, or its id. With an order, a change is refused (VersionMismatchError) if the order has changed since. */
export type OrderRef = string | { id: string; version: number };
