// Status: models, collections, health, and the live rate and latency.
// @ts-check

import { html, useEffect, useRef, useState } from "./vendor/htm-preact-3.1.1.js";
import { ApiError, asCurl, asPython, call } from "./api.js";
import { CopyAs, Trouble, useAnswer, useKey } from "./parts.js";

const EVERY_MS = 2000;
const KEPT = 60;

export function Status() {
  const key = useKey();
  const [looks, setLooks] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => document.visibilityState === "visible" && setLooks((count) => count + 1), EVERY_MS);
    return () => clearInterval(timer);
  }, []);
  const health = useAnswer((signal) => healthOf(signal), [key, looks]);
  const models = useAnswer((signal) => call("/models", { signal }), [key]);
  const collections = useAnswer((signal) => call("/collections", { signal }), [key]);
  const state = health.found;
  return html`
    <section class="tiles">
      <div class=${`tile ${state?.status === "ok" ? "good" : "bad"}`} role="status"><h2>Server</h2><p><strong>${state ? (state.status === "ok" ? "ready" : state.status) : "…"}</strong></p><p>${state?.detail ?? ""}</p></div>
      <${Live} turn=${key} />
    </section>
    <section>
      <h2>Models</h2>
      <${Trouble} error=${models.error} again=${models.again} />
      ${models.found?.body.data.map((/** @type {any} */ each) => html`<${Model} key=${`${each.name}@${each.version}`} model=${each} />`)}
      <p class="hint">More: <code>clipworks models pull ORG/REPO</code>, then <code>clipworks serve --extra-models NAME</code>.</p>
    </section>
    <section>
      <h2>Collections</h2>
      ${collections.error && collections.error.status !== 401 && html`<${Trouble} error=${collections.error} again=${collections.again} />`}
      ${collections.found &&
      (collections.found.body.data.length
        ? html`<div class="scrolls" tabindex="0" role="region" aria-label="Collections"><table>
            <thead><tr><th>name</th><th>items</th><th>model</th><th>index</th><th>disk</th><th>durability</th></tr></thead>
            <tbody>
              ${collections.found.body.data.map(
                (/** @type {any} */ each) => html`<tr>
                  <th scope="row"><a href=${`/ui?view=search&collection=${encodeURIComponent(each.name)}`}>${each.name}</a>${each.aliases.length ? ` (${each.aliases.join(", ")})` : ""}</th>
                  <td>${each.count.toLocaleString()}</td><td>${each.model}</td><td>${each.kind}${each.exact ? ", exact" : ", approximate"}</td>
                  <td>${bytes(each.disk_bytes)}</td><td>${DURABLE[each.durability] ?? each.durability}</td>
                </tr>`,
              )}
            </tbody>
          </table></div>`
        : html`<p class="hint">None yet: <code>clipworks index FOLDER --collection photos --url ${location.origin}</code></p>`)}
      ${collections.found?.body.data.flatMap((/** @type {any} */ each) => each.warnings.map((/** @type {string} */ said) => html`<p class="warning">${each.name}: ${said}</p>`))}
      <${CopyAs}
        curl=${() => ["/models", "/collections", "/metrics"].map((path) => asCurl(path, null, [])).join("\n")}
        python=${() => asPython("for model in client.models():\n    print(model.name, model.version, model.loaded, model.space)\nfor collection in client.collections():\n    print(collection.name, collection.count, collection.model)")}
      />
    </section>
  `;
}

/** @type {Record<string, string>} */
const DURABLE = { full: "on disk before the answer", process: "on disk soon after the answer", remote: "as Milvus has it", none: "in memory only" };

/** @param {AbortSignal} signal */
async function healthOf(signal) {
  const answer = await fetch("/livez", { signal }).catch(() => null);
  if (!answer) return { status: "does not answer", detail: "Is it still running?" };
  const ready = await fetch("/readyz", { signal }).catch(() => null);
  if (!ready) return { status: "does not answer", detail: "Is it still running?" };
  const body = await ready.json();
  return ready.ok ? body : { status: body.error.code, detail: body.error.message };
}

/** @param {number | null} count */
function bytes(count) {
  if (count === null) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const step = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(count, 1)) / 10));
  return `${(count / 2 ** (10 * step)).toFixed(step ? 1 : 0)} ${units[step]}`;
}

// Models

/** @param {{model: any}} props */
function Model({ model }) {
  const name = `${model.name}@${model.version}`;
  const [open, setOpen] = useState(false);
  const detail = useAnswer(open ? (signal) => call(`/models/${name}`, { signal }) : null, [open, name]);
  const found = detail.found?.body;
  return html`<details class="model" onToggle=${(/** @type {any} */ event) => setOpen(event.target.open)}>
    <summary>
      <strong>${name}</strong>
      <span>${model.loaded ? "loaded" : "not loaded"}, ${model.dim}-dimensional vectors, ${[...new Set(Object.values(model.precision))].join(" and ")}</span>
      <span class="badge">${model.verified === "torch" ? "verified against torch" : "checked against its own export only"}</span>
    </summary>
    <${Trouble} error=${detail.error} again=${detail.again} />
    ${found &&
    html`<table><tbody>
      ${rowsOf(found).map(([what, value]) => html`<tr><th scope="row">${what}</th><td>${value}</td></tr>`)}
    </tbody></table>`}
  </details>`;
}

/** @param {any} found @returns {[string, any][]} */
function rowsOf(found) {
  const rows = /** @type {[string, any][]} */ ([
    ["can", found.roles.join(", ")],
    ["precision", Object.entries(found.precision).map(([role, each]) => `${role}: ${each}`).join(", ")],
    ["runs on", found.providers.active.join(", ")],
    ["space", html`<code>${found.space}</code>`],
    ["fingerprints", html`<code>image ${found.fingerprint.image ?? "none"}</code><br /><code>text ${found.fingerprint.text ?? "none"}</code>`],
    ["licence", found.licence || "not stated"],
    ["from", found.source || found.provenance?.source || "not stated"],
    ["limits", html`<ul>${limitsOf(found).map((each) => html`<li>${each}</li>`)}</ul>`],
  ]);
  return found.base ? [...rows, ["derives from", found.base]] : rows;
}

/** What it cannot do, in words. @param {any} found @returns {string[]} */
function limitsOf(found) {
  const roles = new Set(found.roles);
  const picture = found.image_spec;
  return [
    picture && `sees a picture at ${picture.width_px} x ${picture.height_px} pixels${picture.resize === "crop" || picture.crop ? ", its middle" : ""}: small things are lost`,
    found.text_spec && `reads the first ${found.text_spec.context_length} tokens of a text`,
    !roles.has("dense_encoder") && "cannot localise: it has no dense encoder",
    roles.has("dense_encoder") && !found.presence && "scores of /localize are not calibrated",
    found.logit_scale === null && "came without a logit scale: scores of /classify are cosines",
    !found.batch_invariant && "vectors may differ in the last bits with what else is in the batch",
    found.verified !== "torch" && "its vectors were compared with its own graphs only, not with the torch model",
  ].filter(Boolean);
}

// Live

/** @typedef {{at: number, requests: number, buckets: Map<number, number>, flight: number, queued: number}} Sample */

/** @param {{turn: number}} props */
function Live({ turn }) {
  const samples = useRef(/** @type {Sample[]} */ ([]));
  const [now, setNow] = useState(/** @type {{rate: number, p50: number | null, p95: number | null, flight: number, queued: number, rates: number[]} | null} */ (null));
  const [error, setError] = useState(/** @type {any} */ (null));
  useEffect(() => {
    const stop = new AbortController();
    let asking = false;
    const look = async () => {
      if (asking) return;
      asking = true;
      try {
        const { body } = await call("/metrics", { as: "text", signal: stop.signal });
        const sample = sampleOf(body);
        const before = samples.current.at(-1);
        const isAnother = before && (sample.requests < before.requests || sample.at - before.at > 5 * EVERY_MS);
        samples.current = isAnother ? [sample] : [...samples.current, sample].slice(-KEPT);
        setError(null);
        if (samples.current.length > 1) setNow(liveOf(samples.current));
      } catch (problem) {
        if (!stop.signal.aborted) setError(problem);
        if (problem instanceof ApiError && problem.status === 401) clearInterval(timer);
      } finally {
        asking = false;
      }
    };
    const timer = setInterval(() => document.visibilityState === "visible" && look(), EVERY_MS);
    look();
    return () => {
      clearInterval(timer);
      stop.abort();
    };
  }, [turn]);
  if (error) return html`<div class="tile"><h2>Load</h2><p>${error.status === 401 ? "Needs the API key." : error.message}</p></div>`;
  const most = Math.max(1, ...(now?.rates ?? []));
  const ms = (/** @type {number | null} */ value) => (value === null ? "–" : `${(1000 * value).toFixed(0)} ms`);
  return html`
    <div class="tile"><h2>Requests</h2><p><strong>${now ? now.rate.toFixed(1) : "…"}</strong> a second</p>
      <svg class="spark" viewBox="0 0 60 20" preserveAspectRatio="none" aria-hidden="true"><polyline points=${(now?.rates ?? []).map((rate, at) => `${at},${20 - (19 * rate) / most}`).join(" ")} /></svg>
    </div>
    <div class="tile"><h2>Latency</h2><p><strong>${now ? ms(now.p50) : "…"}</strong> median, <strong>${now ? ms(now.p95) : "…"}</strong> 95th percentile</p><p>while this page looks, ${(KEPT * EVERY_MS) / 60000} minutes at most</p></div>
    <div class="tile"><h2>In work</h2><p><strong>${now ? Math.max(0, now.flight - 1) : "…"}</strong> being answered, <strong>${now ? now.queued : "…"}</strong> inputs waiting for a model</p></div>
  `;
}

/** What of Prometheus' text this page shows. Its own questions about the server are left out. @param {string} text @returns {Sample} */
export function sampleOf(text) {
  /** @type {Sample} */
  const found = { at: performance.now(), requests: 0, buckets: new Map(), flight: 0, queued: 0 };
  for (const line of text.split("\n")) {
    const [, name, labels = "", value] = /^(\w+)(?:\{(.*)\})? (\S+)/.exec(line) ?? [];
    if (!name || /route="\/(metrics|livez|readyz|health|ui.*)?"/.test(labels)) continue;
    if (name === "clipworks_requests_total") found.requests += Number(value);
    if (name === "clipworks_requests_in_flight") found.flight += Number(value);
    if (name === "clipworks_queue_depth") found.queued += Number(value);
    if (name === "clipworks_request_seconds_bucket") {
      const upTo = Number(/le="([^"]+)"/.exec(labels)?.[1].replace("+Inf", "Infinity"));
      found.buckets.set(upTo, (found.buckets.get(upTo) ?? 0) + Number(value));
    }
  }
  return found;
}

/** @param {Sample[]} samples */
function liveOf(samples) {
  const [first, before, last] = [samples[0], samples[samples.length - 2], samples[samples.length - 1]];
  const rates = samples.slice(1).map((each, at) => Math.max(0, (1000 * (each.requests - samples[at].requests)) / (each.at - samples[at].at)));
  const counts = [...last.buckets].map(([upTo, count]) => /** @type {[number, number]} */ ([upTo, count - (first.buckets.get(upTo) ?? 0)])).sort(([a], [b]) => a - b);
  const rate = Math.max(0, (1000 * (last.requests - before.requests)) / (last.at - before.at));
  return { rate, rates, p50: quantile(counts, 0.5), p95: quantile(counts, 0.95), flight: last.flight, queued: last.queued };
}

/** Of cumulative counts, between the ends of a bucket. @param {[number, number][]} counts @param {number} share @returns {number | null} */
export function quantile(counts, share) {
  const total = counts.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  let [low, below] = [0, 0];
  for (const [upTo, count] of counts) {
    if (count >= share * total) return upTo === Infinity ? low : low + ((upTo - low) * (share * total - below)) / Math.max(1e-9, count - below);
    [low, below] = [upTo, count];
  }
  return null;
}
