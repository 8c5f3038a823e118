// What several views share: pictures that come in, errors, "copy as", the key, and state in the address.
// @ts-check

import { html, useCallback, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact-3.1.1.js";
import { ApiError, apiKey, call, idPath } from "./api.js";

// State in the address

/** The query part of the address as the views read it. */
export const address = () => new URLSearchParams(location.search);

const MOVED = "clipworks:moved";

/**
 * Write the view's state into the address. push: a step that the back button undoes.
 * @param {URLSearchParams} next @param {boolean} [push]
 */
export function setAddress(next, push = false) {
  const url = `${location.pathname}?${next}`;
  if (url === location.pathname + location.search) return;
  history[push ? "pushState" : "replaceState"](null, "", url);
  if (push) dispatchEvent(new Event(MOVED));
}

/** The address, followed through the back button too. */
export function useAddress() {
  const [query, setQuery] = useState(location.search);
  useEffect(() => {
    const follow = () => setQuery(location.search);
    addEventListener("popstate", follow);
    addEventListener(MOVED, follow);
    return () => {
      removeEventListener("popstate", follow);
      removeEventListener(MOVED, follow);
    };
  }, []);
  return query;
}

// Pictures that come in

const TYPES = "image/jpeg,image/png,image/webp,image/avif,image/heic,image/heif";

/** The pictures of a drop or of the clipboard. @param {DataTransfer | null} carried @returns {File[]} */
const picturesOf = (carried) => [...(carried?.files ?? [])].filter((file) => file.type.startsWith("image/") || !file.type);

/**
 * Pictures dropped anywhere on the page or pasted: one way in for both.
 * @param {(files: File[]) => void} take
 */
export function usePictures(take) {
  const [over, setOver] = useState(false);
  const latest = useRef(take);
  latest.current = take;
  useEffect(() => {
    const hasFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
    const drag = (/** @type {DragEvent} */ event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      setOver(event.type !== "dragleave" || event.relatedTarget !== null);
    };
    const drop = (/** @type {DragEvent} */ event) => {
      setOver(false);
      if (event.defaultPrevented || !hasFiles(event)) return;
      event.preventDefault();
      const files = picturesOf(event.dataTransfer);
      if (files.length) latest.current(files);
    };
    const paste = (/** @type {ClipboardEvent} */ event) => {
      const files = picturesOf(event.clipboardData);
      if (!files.length) return;
      event.preventDefault();
      latest.current(files);
    };
    const names = /** @type {const} */ (["dragenter", "dragover", "dragleave"]);
    for (const name of names) addEventListener(name, drag);
    addEventListener("drop", drop);
    document.addEventListener("paste", paste);
    return () => {
      for (const name of names) removeEventListener(name, drag);
      removeEventListener("drop", drop);
      document.removeEventListener("paste", paste);
    };
  }, []);
  return over;
}

/** A button that opens the file dialog. @param {{take: (files: File[]) => void, label: string, many?: boolean, children?: any}} props */
export function FileButton({ take, label, many = true, children }) {
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  return html`<button type="button" class="quiet" onClick=${() => input.current?.click()} title=${label}>
      ${children ?? label}
    </button>
    <input
      ref=${input}
      type="file"
      accept=${TYPES}
      multiple=${many}
      hidden
      aria-label=${label}
      onChange=${(/** @type {any} */ event) => {
        const files = [...event.target.files];
        event.target.value = "";
        if (files.length) take(files);
      }}
    />`;
}

/** An address for a picture of this tab; it is let go with the component. @param {Blob | null} blob */
export function useBlobUrl(blob) {
  const url = useMemo(() => (blob ? URL.createObjectURL(blob) : ""), [blob]);
  useEffect(() => () => url && URL.revokeObjectURL(url), [url]);
  return url;
}

/** @param {{blob: Blob, alt: string, class?: string}} props */
export function Picture({ blob, alt, class: name }) {
  return html`<img src=${useBlobUrl(blob)} alt=${alt} class=${name} />`;
}

/** Base64 of a file's bytes. @param {Blob} blob @returns {Promise<string>} */
export async function base64(blob) {
  const reader = new FileReader();
  await new Promise((done, failed) => {
    reader.onload = done;
    reader.onerror = () => failed(new ApiError(0, "This picture cannot be read any more: choose it again."));
    reader.readAsDataURL(blob);
  });
  return /** @type {string} */ (reader.result).replace(/^[^,]*,/, "");
}

// Thumbnails

let loading = 0;
/** @type {(() => void)[]} */
const waiting = [];
const AT_ONCE = 6;

/** One of few at a time: the server has other things to do. @template T @param {() => Promise<T>} work @returns {Promise<T>} */
async function inTurn(work) {
  while (loading >= AT_ONCE) await new Promise((go) => waiting.push(() => go(null)));
  loading++;
  try {
    return await work();
  } finally {
    loading--;
    waiting.shift()?.();
  }
}

/**
 * The picture of a stored item, asked for when it is first seen; null: it has none.
 * @param {string} collection @param {string} id @param {boolean} wanted
 */
export function useThumbnail(collection, id, wanted) {
  const [blob, setBlob] = useState(/** @type {Blob | null} */ (null));
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => {
    setBlob(null);
    if (!wanted || !place.current) return;
    const stop = new AbortController();
    const seen = new IntersectionObserver((entries) => {
      if (!entries.some((each) => each.isIntersecting)) return;
      seen.disconnect();
      const path = `/collections/${collection}/items/${idPath(id)}/thumbnail`;
      inTurn(() => (stop.signal.aborted ? Promise.reject() : call(path, { as: "blob", signal: stop.signal })))
        .then(({ body }) => body.type.startsWith("image/") && setBlob(body))
        .catch(() => {}); // a text, or a picture that was not kept: the card says its name
    });
    seen.observe(place.current);
    return () => {
      seen.disconnect();
      stop.abort();
    };
  }, [collection, id, wanted]);
  return { blob, place };
}

// Requests

/**
 * Run `work` when `inputs` change, `waitMs` after the last change. An older answer never replaces a newer one; a 429 or
 * 503 is tried again after the time that the server names.
 * @template T
 * @param {((signal: AbortSignal) => Promise<T>) | null} work null: there is nothing to ask
 * @param {unknown[]} inputs
 * @param {number} [waitMs]
 * @returns {{found: T | null, error: ApiError | null, busy: boolean, again: () => void}}
 */
export function useAnswer(work, inputs, waitMs = 0) {
  const [state, setState] = useState(/** @type {any} */ ({ found: null, error: null, busy: false }));
  const [turn, setTurn] = useState(0);
  const again = useCallback(() => setTurn((count) => count + 1), []);
  useEffect(() => {
    if (!work) {
      setState({ found: null, error: null, busy: false });
      return;
    }
    const stop = new AbortController();
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    setState((/** @type {any} */ old) => ({ ...old, busy: true }));
    const ask = async () => {
      try {
        const found = await work(stop.signal);
        if (!stop.signal.aborted) setState({ found, error: null, busy: false });
      } catch (error) {
        if (stop.signal.aborted) return;
        const said = error instanceof ApiError ? error : new ApiError(0, String(error));
        setState((/** @type {any} */ old) => ({ found: said.retryAfterS ? old.found : null, error: said, busy: false }));
        if (said.retryAfterS && [429, 503].includes(said.status)) timer = setTimeout(ask, said.retryAfterS * 1000);
      }
    };
    timer = setTimeout(ask, waitMs);
    return () => {
      clearTimeout(timer);
      stop.abort();
    };
  }, [...inputs, turn]);
  return { ...state, again };
}

/** Seconds left, counted down to 0. @param {number} seconds @param {unknown} of what they belong to */
function useCountdown(seconds, of) {
  const [left, setLeft] = useState(seconds);
  useEffect(() => {
    setLeft(seconds);
    if (!seconds) return;
    const timer = setInterval(() => setLeft((now) => Math.max(0, now - 1)), 1000);
    return () => clearInterval(timer);
  }, [seconds, of]);
  return left;
}

/**
 * An error in words. waits: whoever shows it asks again after the time that the server named.
 * @param {{error: ApiError | null, again?: () => void, waits?: boolean}} props
 */
export function Trouble({ error, again, waits = true }) {
  const forS = waits && error && [429, 503].includes(error.status) ? error.retryAfterS : 0;
  const left = useCountdown(forS, error);
  if (!error) return null;
  if (error.status === 401) return html`<${KeyForm} done=${again} said=${apiKey.get() ? "The server did not take the key of this tab." : error.message} />`;
  return html`<div class="trouble">
    <p role="alert">${error.message}${forS > 0 ? " Trying again soon." : ""}</p>
    ${forS > 0 && html`<p aria-hidden="true">Trying again ${left > 0 ? `in ${left} s` : "now"}.</p>`}
    ${!forS && again && html`<button type="button" onClick=${again}>Try again</button>`}
  </div>`;
}

/** Asks for the API key. @param {{done?: () => void, said: string}} props */
function KeyForm({ done, said }) {
  const [key, setKey] = useState("");
  const [wrong, setWrong] = useState("");
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    if (!/^[\x21-\x7e]+$/.test(key.trim())) {
      setWrong("A key has letters, digits and signs of ASCII only.");
      return;
    }
    apiKey.set(key.trim());
    dispatchEvent(new Event("clipworks:key"));
    done?.();
  };
  return html`<form class="trouble" onSubmit=${submit}>
    <p role="alert">${wrong || said}</p>
    <label>API key <input type="password" autocomplete="off" value=${key} onInput=${(/** @type {any} */ e) => setKey(e.target.value)} /></label>
    <button type="submit" disabled=${!key.trim()}>Use it</button>
    ${apiKey.get() && html`<button type="button" class="quiet" onClick=${() => (apiKey.set(""), dispatchEvent(new Event("clipworks:key")), done?.())}>Forget it</button>`}
    <p class="hint">It is kept in this tab until you close it.</p>
  </form>`;
}

/** Counts up when the key changed: what was refused is asked again. */
export function useKey() {
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const follow = () => setTurn((count) => count + 1);
    addEventListener("clipworks:key", follow);
    return () => removeEventListener("clipworks:key", follow);
  }, []);
  return turn;
}

/** Buttons that copy what the view does. @param {{curl: () => string, python: () => string}} props */
export function CopyAs({ curl, python }) {
  const [said, setSaid] = useState("");
  const [shown, setShown] = useState("");
  const now = curl();
  useEffect(() => (setSaid(""), setShown("")), [now]); // of another request
  const copy = async (/** @type {string} */ name, /** @type {string} */ text) => {
    setShown(text);
    try {
      await navigator.clipboard.writeText(text);
      setSaid(`Copied as ${name}.`);
    } catch {
      setSaid("This browser does not let a page copy: take the text below.");
    }
  };
  return html`<div class="copy">
    <button type="button" class="quiet" onClick=${() => copy("curl", curl())}>Copy as curl</button>
    <button type="button" class="quiet" onClick=${() => copy("Python", python())}>Copy as Python</button>
    <span role="status">${said}</span>
    ${shown && html`<pre tabindex="0" aria-label="The copied text">${shown}</pre>`}
  </div>`;
}

/** What answered, and how long it took. @param {{headers: Headers | null, model: string | null, ms: number}} props */
export function Footnote({ headers, model, ms }) {
  const timing = headers?.get("Server-Timing") ?? "";
  const total = /total;dur=([\d.]+)/.exec(timing)?.[1];
  return html`<p class="footnote" title=${timing.replaceAll(", ", "\n")}>
    ${model ? html`answered by <code>${model}</code>, ` : ""}${total ? `${Number(total).toFixed(0)} ms in the server, ` : ""}${ms.toFixed(0)} ms in all
  </p>`;
}

/** @param {number} score */
export const shown = (score) => (Math.abs(score) < 0.0995 ? score.toFixed(3) : score.toFixed(2));
