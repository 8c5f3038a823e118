// Search: words and pictures with weights, filters, scores, and what to do with a hit.
// @ts-check

import { html, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/htm-preact-3.1.1.js";
import { ApiError, asCurl, asPython, call, contentOf, python } from "./api.js";
import { Overlay, localised } from "./overlay.js";
import {
  CopyAs,
  FileButton,
  Footnote,
  Picture,
  Trouble,
  address,
  base64,
  setAddress,
  shown,
  useAddress,
  useAnswer,
  useKey,
  usePictures,
  useThumbnail,
} from "./parts.js";
import { OPERATORS, conditionOf, filterOf, histogram, pictureTerm, pictures, queryOf, readAsked, turned, typed, writeAsked } from "./terms.js";

/** @typedef {import("./terms.js").Asked} Asked */
/** @typedef {import("./terms.js").Term} Term */
/** @typedef {import("./terms.js").Condition} Condition */
/** @typedef {{id: string, score: number, presence?: number | null, metadata?: Record<string, unknown>, near?: {id: string, score: number, similarity: number}[]}} Hit */

const PAGE = 200;
const DRAWN = 60;
const BINS = 32;
const NEAR = 0.95; // cosine from which two pictures are shown as one
const MORE = 0.5; // weights of a hit that is added, and of one that is taken away (docs/composed.md)
const LESS = 0.1;
const COUNTED = 12; // values of a field that are offered as filters
const TYPING_MS = 200;

export function Search() {
  const place = useAddress();
  const [asked, setAsked] = useState(/** @type {Asked} */ (readAsked(address())));
  useEffect(() => setAsked(readAsked(address())), [place]);
  const latest = useRef(asked);
  latest.current = asked;
  const change = useCallback((/** @type {Partial<Asked>} */ part, push = true) => {
    // Words that become a chip are no step of their own to go back to.
    if (push && part.terms && part.text === "") setAddress(writeAsked({ ...latest.current, text: "" }));
    latest.current = { ...latest.current, ...part };
    setAsked(latest.current);
    setAddress(writeAsked(latest.current), push);
  }, []);
  const key = useKey();
  const collections = useAnswer((signal) => call("/collections", { signal }), [key]);
  if (collections.error) return html`<${Trouble} error=${collections.error} again=${collections.again} />`;
  if (!collections.found) return html`<p class="hint" role="status">Looking for collections…</p>`;
  const { data, media_root: media } = collections.found.body;
  const known = data.map((/** @type {any} */ each) => ({ ...each, pictures: each.thumbnails !== null || media }));
  if (!known.length) return html`<${NoCollections} />`;
  const named = known.find((/** @type {any} */ each) => each.name === asked.collection || each.aliases.includes(asked.collection));
  if (asked.collection && !named) return html`<${NoSuchCollection} name=${asked.collection} known=${known} choose=${(/** @type {string} */ name) => change({ collection: name })} again=${collections.again} />`;
  const collection = named ?? known[0];
  return html`<${Searching} key=${collection.name} asked=${asked} change=${change} known=${known} collection=${collection} />`;
}

/** @param {{name: string, known: any[], choose: (name: string) => void, again: () => void}} props */
function NoSuchCollection({ name, known, choose, again }) {
  return html`<section class="empty">
    <h2>There is no collection ${name}</h2>
    <p>It was deleted or renamed, or the address is of another server. There are:</p>
    <div class="line">${known.map((each) => html`<button type="button" onClick=${() => choose(each.name)}>${each.name} (${each.count.toLocaleString()})</button>`)}</div>
    <p><button type="button" class="quiet" onClick=${again}>Look again</button></p>
  </section>`;
}

function NoCollections() {
  return html`<section class="empty">
    <h2>Nothing to search yet</h2>
    <p>A collection holds the vectors of your pictures. Make one from a folder:</p>
    <pre>clipworks index FOLDER --collection photos --url ${location.origin}</pre>
    <p>Then come back to this page. Classify and Localise work without a collection.</p>
  </section>`;
}

/** @param {{asked: Asked, change: (part: Partial<Asked>, push?: boolean) => void, known: any[], collection: any}} props */
function Searching({ asked, change, known, collection }) {
  const field = useRef(/** @type {HTMLInputElement | null} */ (null));
  const [opened, setOpened] = useState(/** @type {Hit | null} */ (null));
  const terms = useMemo(() => {
    const live = typed(asked.text);
    return live ? [...asked.terms, live] : asked.terms;
  }, [asked.terms, asked.text]);
  const add = useCallback((/** @type {Term[]} */ more) => change({ terms: [...asked.terms, ...more] }), [asked.terms, change]);
  const over = usePictures((files) => add(files.map(pictureTerm)));
  const filter = filterOf(asked.conditions, collection.metadata_schema);
  const folding = asked.fold ? { group_near: NEAR } : {};
  const key = useKey();
  const model = useAnswer((signal) => call(`/models/${encodeURIComponent(collection.model)}`, { signal }), [collection.model, key]);
  const words = terms.length === 1 && terms[0].kind === "text" && terms[0].weight > 0 ? terms[0].value : "";
  const judged = words && model.found?.body.search && !collection.views ? { presence: {} } : {};

  const request = useCallback(
    async (/** @type {number} */ offset) => {
      const keys = terms.filter((each) => each.kind === "picture").map((each) => each.value);
      const images = new Map(await Promise.all(keys.map(async (each) => /** @type {const} */ ([each, await base64(/** @type {File} */ (pictures.get(each)))]))));
      const query = queryOf(terms, (each) => images.get(each) ?? "");
      return { queries: [query], top_k: PAGE, ...(offset && { offset }), ...(filter && { filter }), ...folding, ...judged };
    },
    [JSON.stringify(terms), JSON.stringify(filter), asked.fold, JSON.stringify(judged)],
  );
  const path = `/collections/${collection.name}/search`;
  const wanted = JSON.stringify([path, terms, filter, asked.fold, judged]);
  const ask = async (/** @type {AbortSignal} */ signal) => ({ ...(await call(path, { json: await request(0), signal })), wanted });
  const first = useAnswer(terms.length ? ask : null, [wanted, key], asked.text ? TYPING_MS : 0);
  const [more, setMore] = useState(/** @type {{wanted: string, hits: Hit[], ended: boolean, limit?: boolean}} */ ({ wanted: "", hits: [], ended: false }));
  const result = first.found?.body.results[0];
  const head = /** @type {Hit[]} */ (result?.hits ?? []);
  const tail = first.found && more.wanted === first.found.wanted ? more : { hits: [], ended: head.length < PAGE };
  const hits = useMemo(() => [...head, ...tail.hits], [head, tail.hits]);
  const min = asked.min ?? -Infinity;
  const kept = useMemo(() => hits.filter((hit) => hit.score >= min), [hits, min]);

  const busy = useRef(false);
  const [paging, setPaging] = useState(/** @type {ApiError | null} */ (null));
  useEffect(() => setPaging(null), [wanted]);
  const next = async (again = false) => {
    const isBelow = hits.length > 0 && hits[hits.length - 1].score < min; // what follows is hidden by the cut
    if (tail.ended || busy.current || isBelow || (paging && !again) || !first.found || first.found.wanted !== wanted) return;
    busy.current = true;
    try {
      const answer = await call(path, { json: await request(hits.length) });
      const found = /** @type {Hit[]} */ (answer.body.results[0].hits);
      setMore({ wanted, hits: [...tail.hits, ...found], ended: found.length < PAGE });
      setPaging(null);
    } catch (error) {
      const said = /** @type {ApiError} */ (error);
      if ([413, 422].includes(said.status)) setMore({ wanted, hits: tail.hits, ended: true, limit: true });
      else setPaging(said);
    } finally {
      busy.current = false;
    }
  };

  const similar = (/** @type {string} */ id) => {
    change({ terms: [{ kind: "item", value: id, weight: 1 }], text: "", min: null });
    field.current?.focus();
  };
  const like = (/** @type {string} */ id, /** @type {number} */ weight) => {
    change({ terms: [...terms.filter((each) => each.kind !== "item" || each.value !== id), { kind: "item", value: id, weight }], text: "", min: null });
    field.current?.focus();
  };

  useLayoutEffect(() => {
    const press = (/** @type {KeyboardEvent} */ event) => {
      const target = /** @type {HTMLElement} */ (event.target);
      if (event.key === "/" && !/^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName) && !document.querySelector("dialog[open]")) {
        event.preventDefault();
        field.current?.focus();
      }
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);

  const commit = (/** @type {Event} */ event) => {
    event.preventDefault();
    const term = typed(asked.text);
    if (term) change({ terms: [...asked.terms, term], text: "", min: null });
  };
  const copied = (/** @type {(name: string) => string} */ content) => {
    const query = queryOf(terms, (each) => content(pictures.get(each)?.name ?? ""));
    return { queries: [query], top_k: 10, ...(filter && { filter }), ...(asked.min !== null && { min_score: asked.min }), ...folding, ...judged };
  };
  const counted = async (/** @type {string} */ field, /** @type {AbortSignal} */ signal) =>
    call(path, { json: { ...(await request(0)), top_k: 1, offset: 0, include: [], group_near: null, presence: null, facets: [field], facet_values: COUNTED }, signal });

  return html`
    <form class=${`field ${over ? "over" : ""}`} role="search" onSubmit=${commit}>
      ${asked.terms.map(
        (term, at) => html`<${TermChip}
          key=${`${at} ${term.kind} ${term.value}`}
          term=${term}
          collection=${collection}
          change=${(/** @type {Term} */ other) => change({ terms: asked.terms.map((each, place) => (place === at ? other : each)), min: null })}
          remove=${() => {
            change({ terms: asked.terms.filter((_, place) => place !== at), min: null });
            field.current?.focus();
          }}
        />`,
      )}
      <input
        ref=${field}
        type="search"
        aria-label="What to search for"
        placeholder=${asked.terms.length ? "and…" : "words, or drop a picture here"}
        value=${asked.text}
        autocomplete="off"
        onInput=${(/** @type {any} */ event) => change({ text: event.target.value, min: null }, false)}
        onKeyDown=${(/** @type {KeyboardEvent} */ event) => {
          if (event.key === "Backspace" && !asked.text && asked.terms.length) change({ terms: asked.terms.slice(0, -1), min: null });
          if (event.key === "ArrowDown") {
            event.preventDefault();
            /** @type {HTMLElement | null} */ (document.querySelector(".hits button"))?.focus();
          }
        }}
      />
      <${FileButton} take=${(/** @type {File[]} */ files) => add(files.map(pictureTerm))} label="Search with a picture">Picture…<//>
      <button type="submit" title="Add these words; begin with - to push away" disabled=${!typed(asked.text)}>Add</button>
    </form>
    <div class="line">
      <label>in ${" "}
        <select value=${collection.name} onChange=${(/** @type {any} */ event) => change({ collection: event.target.value, conditions: [], min: null })}>
          ${known.map((each) => html`<option value=${each.name}>${each.name} (${each.count.toLocaleString()})</option>`)}
        </select>
      </label>
      <${Filters} conditions=${asked.conditions} types=${collection.metadata_schema} counted=${terms.length ? counted : null} asked=${wanted} change=${(/** @type {Condition[]} */ conditions) => (change({ conditions, min: null }), field.current?.focus())} />
      <label title="A picture that is nearly the same as a better hit is shown with it, not beside it"><input type="checkbox" checked=${asked.fold} onChange=${(/** @type {any} */ event) => change({ fold: event.target.checked, min: null })} /> near duplicates as one</label>
      ${(asked.terms.length > 0 || asked.text || asked.conditions.length > 0) &&
      html`<button type="button" class="quiet" onClick=${() => (change({ terms: [], text: "", conditions: [], min: null }), field.current?.focus())}>Clear</button>`}
    </div>
    <${Trouble} error=${first.error} again=${first.again} />
    ${result && html`<${CopyAs} curl=${() => asCurl(path, copied(contentOf), [])} python=${() => pythonSearch(collection.name, copied(contentOf))} />`}
    ${first.found?.body.warnings?.map((/** @type {string} */ said) => html`<p class="warning">${said}</p>`)}
    ${result?.match && !result.match.good && html`<p class="warning" role="status">No good match: probably nothing here shows “${words}” (probability ${result.match.probability.toFixed(2)}). What is nearest:</p>`}
    ${hits.length > 1 && html`<${ScoreCut} hits=${hits} min=${asked.min} change=${(/** @type {number | null} */ cut) => change({ min: cut }, false)} />`}
    <p class="count" role="status" aria-live="polite">
      ${!terms.length
        ? collection.count
          ? "Type words, or drop, paste or choose a picture. Enter adds a term; - in front pushes away."
          : html`${collection.name} is empty: <code>clipworks index FOLDER --collection ${collection.name} --url ${location.origin}</code>`
        : first.busy && !first.found
          ? "Searching…"
          : result
            ? `${kept.length.toLocaleString()}${tail.ended ? "" : "+"} ${kept.length === 1 ? "hit" : "hits"}${kept.length < hits.length ? ` of ${hits.length.toLocaleString()} above the cut` : ""}${tail.limit ? ", as many as the server pages through" : ""}${result.exact ? "" : ", approximate index"}`
            : ""}
    </p>
    ${result && html`<${Hits} hits=${kept} collection=${collection} open=${setOpened} similar=${similar} like=${like} next=${next} stale=${first.busy} />`}
    <${Trouble} error=${paging} waits=${false} again=${() => next(true)} />
    ${first.found && html`<${Footnote} headers=${first.found.headers} model=${first.found.body.model} ms=${first.found.ms} />`}
    ${opened &&
    html`<${HitDialog}
      hit=${opened}
      collection=${collection}
      labels=${terms.filter((each) => each.kind === "text" && each.weight > 0).map((each) => each.value)}
      close=${() => setOpened(null)}
      similar=${similar}
      like=${like}
    />`}
  `;
}

/** @param {string} name @param {any} request */
function pythonSearch(name, request) {
  const { queries, ...options } = request;
  const given = Object.entries(options).map(([option, value]) => `, ${option}=${python(value)}`).join("");
  return asPython(`for hit in client.collection(${JSON.stringify(name)}).search(${python(queries)}${given})[0].hits:\n    print(hit.id, hit.score)`);
}

// Terms

/** @param {{term: Term, collection: any, change: (term: Term) => void, remove: () => void}} props */
function TermChip({ term, collection, change, remove }) {
  const away = term.weight < 0;
  const name = term.kind === "picture" ? (pictures.get(term.value)?.name ?? "picture") : term.value;
  const size = Math.abs(term.weight);
  const file = pictures.get(term.value);
  return html`<span class=${`chip ${away ? "away" : ""}`} role="group" aria-label=${`${away ? "not " : ""}${name}`}>
    <button type="button" class="sign" aria-label=${away ? `${name}: pushes away; change to draw near` : `${name}: draws near; change to push away`} onClick=${() => change({ ...term, weight: turned(term.weight) })}>${away ? "−" : "+"}</button>
    ${term.kind === "picture" && file && html`<${Picture} blob=${file} alt="" class="tiny" />`}
    ${term.kind === "item" && html`<${TinyThumbnail} collection=${collection} id=${term.value} />`}
    <span class="said" title=${term.kind === "picture" ? `${name}: of this tab alone, it is not in the address` : name}>${name}</span>
    <input
      type="range" min="0.1" max="2" step="0.1" value=${size} aria-label=${`Weight of ${name}`} title=${`weight ${size}`}
      onChange=${(/** @type {any} */ event) => change({ ...term, weight: (away ? -1 : 1) * Number(event.target.value) })}
    />
    <span class="weight" aria-hidden="true">${size}</span>
    <button type="button" class="remove" aria-label=${`Remove ${name}`} onClick=${remove}>×</button>
  </span>`;
}

/** @param {{collection: any, id: string}} props */
function TinyThumbnail({ collection, id }) {
  const { blob, place } = useThumbnail(collection.name, id, collection.pictures);
  return html`<span ref=${place} class="tiny">${blob && html`<${Picture} blob=${blob} alt="" class="tiny" />`}</span>`;
}

// Filters

/** @param {{conditions: Condition[], types: Record<string, string>, counted: null | ((field: string, signal: AbortSignal) => Promise<any>), asked: string, change: (conditions: Condition[]) => void}} props */
function Filters({ conditions, types, counted, asked, change }) {
  const fields = Object.keys(types);
  const [field, setField] = useState(fields[0] ?? "");
  const type = types[field] ?? "string";
  const [operator, setOperator] = useState("=");
  const [value, setValue] = useState("");
  const [open, setOpen] = useState(false);
  const operators = OPERATORS[/** @type {keyof typeof OPERATORS} */ (type)] ?? ["="];
  const chosen = operators.includes(/** @type {never} */ (operator)) ? operator : "=";
  const given = type === "boolean" && !value ? "true" : value;
  const key = useKey();
  const counts = useAnswer(open && counted ? (signal) => counted(field, signal) : null, [open, field, asked, key]);
  const found = /** @type {{values: {value: unknown, count: number}[], others: number} | undefined} */ (counts.found?.body.results[0].facets?.[field]);
  const offered = (found?.values ?? []).flatMap(({ value: said, count }) => {
    const condition = conditionOf(field, type, said);
    return condition ? [{ condition, count }] : [];
  });
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    if (!given) return;
    change([...conditions, { field, operator: chosen, value: given }]);
    setValue("");
    setOpen(false);
  };
  const input = { number: "number", date: "date" }[type.replace("[]", "")] ?? "text";
  return html`
    ${conditions.map(
      (each, at) => html`<span class="chip filter">
        <span class="said">${each.field} ${each.operator} ${each.value}</span>
        <button type="button" class="remove" aria-label=${`Remove the filter on ${each.field}`} onClick=${() => change(conditions.filter((_, place) => place !== at))}>×</button>
      </span>`,
    )}
    ${fields.length > 0 && html`<button type="button" class="quiet" aria-expanded=${open} onClick=${() => setOpen(!open)}>Filter</button>`}
    ${open &&
    html`<form class="filter-form" onSubmit=${submit}>
      <select aria-label="Field" value=${field} onChange=${(/** @type {any} */ event) => (setField(event.target.value), setValue(""))}>
        ${fields.map((each) => html`<option value=${each}>${each}</option>`)}
      </select>
      <select aria-label="Comparison" value=${chosen} onChange=${(/** @type {any} */ event) => setOperator(event.target.value)}>
        ${operators.map((each) => html`<option value=${each}>${each}</option>`)}
      </select>
      ${type === "boolean"
        ? html`<select aria-label="Value" value=${given} onChange=${(/** @type {any} */ event) => setValue(event.target.value)}><option value="true">true</option><option value="false">false</option></select>`
        : html`<input aria-label="Value" type=${input} step="any" value=${value} onInput=${(/** @type {any} */ event) => setValue(event.target.value)} />`}
      <button type="submit" disabled=${!given}>Add the filter</button>
      ${offered.length > 0 &&
      html`<div class="line values" role="group" aria-label=${`Items by ${field}`}>
        ${offered.map(
          ({ condition, count }) => html`<button type="button" class="quiet" onClick=${() => (change([...conditions, condition]), setOpen(false))}>${condition.value} <span class="many">${count.toLocaleString()}</span></button>`,
        )}
        ${found && found.others > 0 && html`<span class="hint">and ${found.others.toLocaleString()} more values</span>`}
      </div>`}
    </form>`}
  `;
}

// Scores

/** @param {{hits: Hit[], min: number | null, change: (min: number | null) => void}} props */
function ScoreCut({ hits, min, change }) {
  const { low, high, counts } = useMemo(() => histogram(hits.map((hit) => hit.score), BINS), [hits]);
  const most = Math.max(...counts);
  const at = min ?? low;
  const width = 100 / BINS;
  return html`<div class="cut">
    <svg viewBox="0 0 100 20" preserveAspectRatio="none" role="img" aria-label=${`Scores of this query's best ${hits.length} items, from ${shown(low)} to ${shown(high)}`}>
      ${counts.map((count, bin) => {
        const tall = (Math.sqrt(count / most) || 0) * 19;
        const right = low + ((bin + 1) / BINS) * (high - low);
        return html`<rect x=${bin * width + 0.2} y=${20 - tall} width=${width - 0.4} height=${tall} class=${right < at ? "below" : ""} />`;
      })}
    </svg>
    <input
      type="range" min=${low} max=${high} step=${(high - low) / 200 || 0.001} value=${at} aria-label="Minimum score"
      aria-valuetext=${shown(at)}
      onInput=${(/** @type {any} */ event) => change(Number(event.target.value) <= low ? null : Number(event.target.value))}
    />
    <span>score from <strong>${shown(at)}</strong> to ${shown(high)}</span>
  </div>`;
}

// Hits

/** @param {{hits: Hit[], collection: any, open: (hit: Hit) => void, similar: (id: string) => void, like: (id: string, weight: number) => void, next: () => void, stale: boolean}} props */
function Hits({ hits, collection, open, similar, like, next, stale }) {
  const [drawn, setDrawn] = useState(DRAWN);
  const end = useRef(/** @type {HTMLElement | null} */ (null));
  const list = useRef(/** @type {HTMLElement | null} */ (null));
  const [active, setActive] = useState(""); // the one hit that Tab stops at
  const stop = hits.slice(0, drawn).some((hit) => hit.id === active) ? active : hits[0]?.id;
  useEffect(() => setDrawn(DRAWN), [hits[0]?.id, collection.name]);
  useEffect(() => {
    if (!end.current) return;
    const seen = new IntersectionObserver(
      (entries) => {
        if (!entries.some((each) => each.isIntersecting)) return;
        if (drawn < hits.length) setDrawn((count) => count + DRAWN);
        else next();
      },
      { rootMargin: "600px" },
    );
    seen.observe(end.current);
    return () => seen.disconnect();
  }, [drawn, hits.length, next]);

  const press = (/** @type {KeyboardEvent} */ event) => {
    const buttons = /** @type {HTMLElement[]} */ ([...(list.current?.querySelectorAll("button.open") ?? [])]);
    const at = buttons.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    if (at < 0) return;
    const top = buttons[0].offsetTop;
    const columns = Math.max(1, buttons.findIndex((each) => each.offsetTop > top) === -1 ? buttons.length : buttons.findIndex((each) => each.offsetTop > top));
    /** @type {Record<string, number>} */
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -at, End: buttons.length - 1 - at };
    if (event.key in moves) {
      event.preventDefault();
      const to = at + moves[event.key];
      if (to < 0) /** @type {HTMLElement | null} */ (document.querySelector(".field input[type=search]"))?.focus();
      else buttons[Math.min(to, buttons.length - 1)].focus();
    }
    const id = hits[at]?.id;
    if (event.ctrlKey || event.metaKey || event.altKey || id === undefined) return;
    if (event.key === "s") similar(id);
    if (event.key === "+") like(id, MORE);
    if (event.key === "-") like(id, -LESS);
  };
  return html`<ol class=${`hits ${stale ? "stale" : ""}`} ref=${list} onKeyDown=${press}>
      ${hits.slice(0, drawn).map((hit) => html`<${HitCard} key=${hit.id} hit=${hit} collection=${collection} open=${open} similar=${similar} stops=${hit.id === stop} reached=${setActive} />`)}
    </ol>
    <div ref=${end} class="end"></div>`;
}

/** @param {{hit: Hit, collection: any, open: (hit: Hit) => void, similar: (id: string) => void, stops: boolean, reached: (id: string) => void}} props */
function HitCard({ hit, collection, open, similar, stops, reached }) {
  const { blob, place } = useThumbnail(collection.name, hit.id, collection.pictures);
  return html`<li ref=${place}>
    <button type="button" class="open" tabindex=${stops ? 0 : -1} onFocus=${() => reached(hit.id)} onClick=${() => open(hit)} aria-label=${`${hit.id}, score ${shown(hit.score)}${hit.near?.length ? `, and ${hit.near.length} like it` : ""}`} aria-keyshortcuts="s + -">
      ${blob ? html`<${Picture} blob=${blob} alt="" />` : html`<span class="nameless">${hit.id}</span>`}
      ${hit.near && hit.near.length > 0 && html`<span class="near" aria-hidden="true">+${hit.near.length}</span>`}
      <span class="score">${shown(hit.score)}</span>
    </button>
    <span class="caption"><span title=${hit.id}>${hit.id}</span><button type="button" class="quiet" tabindex="-1" onClick=${() => similar(hit.id)} aria-label=${`Find what is like ${hit.id}`} title="Find similar (s)">≈</button></span>
  </li>`;
}

/** @param {{hit: Hit, collection: any, labels: string[], close: () => void, similar: (id: string) => void, like: (id: string, weight: number) => void}} props */
function HitDialog({ hit, collection, labels, close, similar, like }) {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const { blob, place } = useThumbnail(collection.name, hit.id, collection.pictures);
  const [where, setWhere] = useState(false);
  useEffect(() => dialog.current?.showModal(), []);
  const found = useAnswer(where && blob && labels.length ? (signal) => localised(blob, labels, { signal, model: collection.model }) : null, [where, blob, hit.id]);
  const then = (/** @type {() => void} */ work) => () => {
    close();
    work();
  };
  return html`<dialog ref=${dialog} onClose=${close} aria-label=${hit.id}>
    <div class="sheet">
      <div ref=${place} class="large">
        ${!blob
          ? html`<span class="nameless">${hit.id}</span>`
          : found.found
            ? html`<${Overlay} blob=${blob} answer=${found.found.body.data[0]} />`
            : html`<${Picture} blob=${blob} alt=${hit.id} />`}
      </div>
      <div>
        <h2>${hit.id}</h2>
        <p>score ${hit.score.toFixed(4)} in <strong>${collection.name}</strong>${typeof hit.presence === "number" && html`, shows it with probability ${hit.presence.toFixed(2)}`}</p>
        <div class="line">
          <button type="button" onClick=${then(() => similar(hit.id))}>Find similar</button>
          <button type="button" onClick=${then(() => like(hit.id, MORE))}>More like this</button>
          <button type="button" onClick=${then(() => like(hit.id, -LESS))}>Less like this</button>
          ${blob && labels.length > 0 && html`<button type="button" aria-pressed=${where} onClick=${() => setWhere(!where)}>Where is it?</button>`}
        </div>
        ${where && found.busy && html`<p role="status">Looking…</p>`}
        <${Trouble} error=${found.error} />
        <${Metadata} of=${hit.metadata ?? {}} />
        ${hit.near && hit.near.length > 0 &&
        html`<h3>Nearly the same</h3>
          <ul class="same">
            ${hit.near.map((each) => html`<li><${TinyThumbnail} collection=${collection} id=${each.id} /> ${each.id} <span class="hint">${shown(each.similarity)}</span></li>`)}
          </ul>`}
        <button type="button" class="quiet" onClick=${() => dialog.current?.close()}>Close</button>
      </div>
    </div>
  </dialog>`;
}

/** @param {{of: Record<string, unknown>}} props */
function Metadata({ of }) {
  const rows = Object.entries(of);
  if (!rows.length) return null;
  return html`<table><tbody>${rows.map(([name, value]) => html`<tr><th scope="row">${name}</th><td>${typeof value === "string" ? value : JSON.stringify(value)}</td></tr>`)}</tbody></table>`;
}
