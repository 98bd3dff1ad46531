export {
  type ChangeOptions,
  type ClientOptions,
  newIdempotencyKey,
  OrderServiceClient,
  type RequestOptions,
} from "./client.js";
export { Paged } from "./paged.js";
export * from "./problems.js";
export type { components, operations, paths } from "./schema.js";
export { RETRY_POLICY, type RetryPolicy, type Token } from "./transport.js";
export type * from "./types.js";
export { type RequestHeaders, type VerificationOptions, verifyWebhook, WebhookVerificationError } from "./webhooks.js";
