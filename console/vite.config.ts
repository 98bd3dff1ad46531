import { defineConfig } from "vite";

// The service reads the names of the built files from manifest.json, and serves them below /console/.
export default defineConfig({
  base: "./",
  logLevel: "warn",
  build: {
    outDir: "../app/static/console",
    assetsDir: "",
    emptyOutDir: true,
    manifest: "manifest.json",
    assetsInlineLimit: 0, // the content security policy allows no data: URLs
    modulePreload: false,
    target: "es2022",
    rollupOptions: { input: "src/main.tsx" },
  },
});
