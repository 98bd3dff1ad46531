import { defineConfig } from "vitest/config";

export default defineConfig({
  // The tests use the built package as Node.js loads it.
  resolve: { alias: { "@order-service/client": new URL("dist/index.js", import.meta.url).pathname } },
  test: {
    include: ["test/*.test.ts"],
    server: { deps: { external: [/\/dist\//] } },
    testTimeout: 60_000,
  },
});
