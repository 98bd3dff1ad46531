/** WebCrypto of browsers, and of every runtime that has it as a global. */
export const webCrypto: Crypto = globalThis.crypto;
