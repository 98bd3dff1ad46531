// Node.js 18 has WebCrypto as a module only. The package has no Node.js types, so that it compiles for browsers.
// @ts-expect-error: a module of Node.js
import { webcrypto } from "node:crypto";

/** WebCrypto of Node.js. */
export const webCrypto: Crypto = webcrypto;
