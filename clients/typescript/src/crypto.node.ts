// In Node.js 18, WebCrypto is only available as a module. The package has no Node.js types, so that it compiles for
// browsers.
// @ts-expect-error: a module of Node.js
import { webcrypto } from "node:crypto";

/** WebCrypto of Node.js. */
export const webCrypto: Crypto = webcrypto;
