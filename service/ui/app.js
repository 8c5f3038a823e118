// The page of a clipworks server: four views over its HTTP API.
// @ts-check

import { html, render, useEffect, useRef } from "./vendor/htm-preact-3.1.1.js";
import { address, setAddress, useAddress } from "./parts.js";
import { Search } from "./search.js";
import { Classify } from "./classify.js";
import { Localise } from "./localise.js";
import { Status } from "./status.js";

/** @type {Record<string, {title: string, view: any}>} */
const VIEWS = {
  search: { title: "Search", view: Search },
  classify: { title: "Classify", view: Classify },
  localise: { title: "Localise", view: Localise },
  status: { title: "Status", view: Status },
};

function App() {
  useAddress();
  const chosen = address().get("view") ?? "";
  const name = Object.hasOwn(VIEWS, chosen) ? chosen : "search";
  const { title, view: View } = VIEWS[name];
  const main = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => {
    document.title = `${title} · clipworks`;
  }, [title]);
  const go = (/** @type {MouseEvent} */ event, /** @type {string} */ to) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a tab of its own
    event.preventDefault();
    setAddress(new URLSearchParams({ view: to }), true);
    main.current?.focus();
  };
  return html`
    <a class="skip" href="#main" onClick=${(/** @type {Event} */ event) => (event.preventDefault(), main.current?.focus())}>Skip to the content</a>
    <header>
      <span class="name">clipworks</span>
      <nav aria-label="Views">
        ${Object.entries(VIEWS).map(
          ([each, { title: said }]) =>
            html`<a href=${`/ui?view=${each}`} aria-current=${each === name ? "page" : undefined} onClick=${(/** @type {MouseEvent} */ event) => go(event, each)}>${said}</a>`,
        )}
      </nav>
      <a class="reference" href="/docs">API</a>
    </header>
    <main id="main" ref=${main} tabindex="-1"><h1 class="unseen">${title}</h1><${View} key=${name} /></main>
  `;
}

const root = /** @type {HTMLElement} */ (document.getElementById("app"));
root.replaceChildren();
render(html`<${App} />`, root);
