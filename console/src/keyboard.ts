// Single-key shortcuts, which can be switched off (WCAG 2.2, 2.1.4).

const SETTING = "shortcuts";
const handlers: ((key: string) => boolean)[] = [];

export function shortcutsEnabled(): boolean {
  return localStorage.getItem(SETTING) !== "off";
}

export function enableShortcuts(enabled: boolean): void {
  localStorage.setItem(SETTING, enabled ? "on" : "off");
}

/**
 * Call the handler with each key that is not typed into a field; it returns true if it has handled the key.
 *
 * Returns a function that removes the handler.
 */
export function shortcut(handler: (key: string) => boolean): () => void {
  handlers.push(handler);
  return () => {
    handlers.splice(handlers.indexOf(handler), 1);
  };
}

addEventListener("keydown", (event) => {
  const target = event.target instanceof Element ? event.target : null;
  const typing = target?.closest("input, textarea, select") !== null && target !== null;
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
  if (event.key !== "Escape" && !event.key.startsWith("Arrow") && (typing || !shortcutsEnabled())) return;
  if (handlers.toReversed().some((handler) => handler(event.key))) event.preventDefault();
});
