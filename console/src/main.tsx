// The console: its views, the API key, the theme, and the help.

import { type JSX, render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { ProblemError } from "../../clients/typescript/src/problems";
import { UNAUTHENTICATED, apiKey, get, setApiKey } from "./api";
import { Dialog, ProblemBox } from "./components";
import { Finder } from "./finder";
import icon from "./icon.svg";
import { enableShortcuts, shortcut, shortcutsEnabled } from "./keyboard";
import { OrderPage } from "./order_page";
import { Overview } from "./overview";
import { Webhooks } from "./webhooks";
import "./style.css";

const VIEWS: [path: string, title: string][] = [
  ["/orders", "Orders"],
  ["/overview", "Overview"],
  ["/webhooks", "Webhooks"],
];
const SHORTCUTS: [keys: string[], meaning: string][] = [
  [["/"], "Search"],
  [["↑", "↓"], "Move through the list of orders"],
  [["Enter"], "Open the order"],
  [["a"], "Go to the actions of the order"],
  [["Esc"], "Close the action, go back to the orders, or clear the search"],
  [["?"], "Show this help"],
];

interface Route {
  path: string;
  parameters: Record<string, string>;
}

function currentRoute(): Route {
  const [path = "", parameters = ""] = location.hash.slice(1).split("?", 2);
  return { path: path || "/orders", parameters: Object.fromEntries(new URLSearchParams(parameters)) };
}

function App(): JSX.Element {
  const [route, setRoute] = useState(currentRoute);
  const [access, setAccess] = useState<"unknown" | "granted" | "needed" | "refused">("unknown");
  const [error, setError] = useState<unknown>(null);
  const [help, setHelp] = useState(false);

  useEffect(() => {
    const changed = () => setRoute(currentRoute());
    const refused = () => setAccess(apiKey() ? "refused" : "needed");
    addEventListener("hashchange", changed);
    addEventListener(UNAUTHENTICATED, refused);
    return () => {
      removeEventListener("hashchange", changed);
      removeEventListener(UNAUTHENTICATED, refused);
    };
  }, []);
  useEffect(() => void check(), []);
  useEffect(() => shortcut((key) => key === "?" && (setHelp(true), true)), []);

  async function check(): Promise<void> {
    setError(null);
    try {
      await get("/orders?limit=1");
      setAccess("granted");
    } catch (reason) {
      if (reason instanceof ProblemError && reason.status === 401) return;
      if (reason instanceof ProblemError && reason.status === 403) setAccess("granted"); // the views show which scope is missing
      else setError(reason);
    }
  }

  return (
    <>
      <a class="skip" href="#main" onClick={(event) => skip(event)}>
        Skip to content
      </a>
      <header class="top">
        <a class="brand" href="#/orders" aria-label="Order Service">
          <svg viewBox="0 0 24 24" aria-hidden="true">
            <path d="M4 7.5 12 3l8 4.5v9L12 21l-8-4.5z M4 7.5l8 4.5 8-4.5 M12 12v9" />
          </svg>
          <span>Order Service</span>
        </a>
        <nav aria-label="Views">
          {VIEWS.map(([path, title]) => (
            <a key={path} href={`#${path}`} aria-current={route.path.startsWith(path) ? "page" : undefined}>
              {title}
            </a>
          ))}
        </nav>
        <div class="tools">
          {apiKey() && access === "granted" && (
            <button
              type="button"
              class="quiet"
              onClick={() => {
                setApiKey("");
                setAccess("unknown");
                void check();
              }}
            >
              Forget key
            </button>
          )}
          <ThemeButton />
          <button type="button" class="quiet" aria-label="Help" title="Help (?)" onClick={() => setHelp(true)}>
            ?
          </button>
        </div>
      </header>
      <main id="main" tabIndex={-1}>
        {error !== null && <ProblemBox error={error} retry={() => void check()} />}
        {(access === "needed" || access === "refused") && <KeyForm refused={access === "refused"} check={check} />}
        {access === "granted" && <View route={route} />}
      </main>
      {help && <Help close={() => setHelp(false)} />}
    </>
  );
}

function skip(event: Event): void {
  event.preventDefault();
  document.getElementById("main")?.focus();
}

function View({ route }: { route: Route }): JSX.Element {
  const [, id] = /^\/orders\/([^/]+)$/.exec(route.path) ?? [];
  if (id) return <OrderPage key={id} id={id} />;
  if (route.path.startsWith("/webhooks")) return <Webhooks id={route.path.split("/")[2] ?? ""} />;
  if (route.path === "/overview") return <Overview />;
  return <Finder filters={route.parameters} />;
}

function KeyForm({ refused, check }: { refused: boolean; check: () => Promise<void> }): JSX.Element {
  const [key, setKey] = useState("");
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => input.current?.focus(), []);
  return (
    <form
      class="key-form card"
      onSubmit={(event) => {
        event.preventDefault();
        setApiKey(key.trim());
        void check();
      }}
    >
      <h1>API key</h1>
      <p>This service requires a key. Paste the key that its operators gave you.</p>
      {refused && (
        <p class="problem" role="alert">
          The key was not accepted. Check that it is complete; it may have been revoked.
        </p>
      )}
      <div class="field">
        <label for="key">Key</label>
        <input
          id="key"
          ref={input}
          type="password"
          autocomplete="off"
          spellcheck={false}
          required
          value={key}
          aria-describedby="key-hint"
          onInput={(event) => setKey(event.currentTarget.value)}
        />
        <p class="hint" id="key-hint">
          It is kept in this tab only (sessionStorage), sent to this service only, and forgotten when you close the tab.
        </p>
      </div>
      <button type="submit" class="primary">
        Continue
      </button>
    </form>
  );
}

function ThemeButton(): JSX.Element {
  const [theme, setTheme] = useState(() => localStorage.getItem("theme") ?? "");
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  useEffect(() => {
    if (theme) document.documentElement.dataset.theme = theme;
  }, [theme]);
  return (
    <button
      type="button"
      class="quiet"
      aria-label={dark ? "Light colours" : "Dark colours"}
      title={dark ? "Light colours" : "Dark colours"}
      onClick={() => {
        const next = dark ? "light" : "dark";
        localStorage.setItem("theme", next);
        setTheme(next);
      }}
    >
      <svg viewBox="0 0 24 24" aria-hidden="true" class="icon">
        <path d={dark ? SUN : MOON} />
      </svg>
    </button>
  );
}

const SUN =
  "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8 M12 2v2 M12 20v2 M2 12h2 M20 12h2 M5 5l1.5 1.5 M17.5 17.5 19 19 M19 5l-1.5 1.5 M6.5 17.5 5 19";
const MOON = "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z";

function Help({ close }: { close: () => void }): JSX.Element {
  const [enabled, setEnabled] = useState(shortcutsEnabled);
  return (
    <Dialog title="Keyboard shortcuts" close={close}>
      <dl class="keys">
        {SHORTCUTS.map(([keys, meaning]) => (
          <div key={meaning}>
            <dt>
              {keys.map((key) => (
                <kbd key={key}>{key}</kbd>
              ))}
            </dt>
            <dd>{meaning}</dd>
          </div>
        ))}
      </dl>
      <label class="choice">
        <input
          type="checkbox"
          checked={enabled}
          onChange={(event) => {
            enableShortcuts(event.currentTarget.checked);
            setEnabled(event.currentTarget.checked);
          }}
        />
        <span>Single-character shortcuts</span>
      </label>
    </Dialog>
  );
}

document.head.append(Object.assign(document.createElement("link"), { rel: "icon", href: icon }));
render(<App />, document.getElementById("console") as HTMLElement);
