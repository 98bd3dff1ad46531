// The documents in responses: types of the TypeScript client, which are generated from /openapi.json.
import type { components } from "../../clients/typescript/src/schema";

export type Schemas = components["schemas"];

export type Address = Schemas["Address"];
export type Cancellation = Schemas["Cancellation"];
export type Delivery = Schemas["Delivery"];
export type DeliveryEvent = Schemas["DeliveryEvent"];
export type Fulfillment = Schemas["Fulfillment"];
export type Hold = Schemas["Hold"];
export type Item = Schemas["Item"];
export type LineQuantity = Schemas["LineQuantity"];
export type Order = Schemas["Order"];
export type OrderEvent = Schemas["Event"];
export type Payment = Schemas["Payment"];
export type Return = Schemas["Return"];
export type Webhook = Schemas["Webhook"];
