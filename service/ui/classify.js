// Classify: labels or a label set, several pictures, and teaching labels with pictures.
// @ts-check

import { html, useEffect, useMemo, useState } from "./vendor/htm-preact-3.1.1.js";
import { ApiError, asCurl, asPython, bodyOf, call, idPath, python } from "./api.js";
import { CopyAs, FileButton, Footnote, Picture, Trouble, address, setAddress, shown, useAnswer, useKey, usePictures } from "./parts.js";
import { labelsOf } from "./terms.js";

const TYPING_MS = 400;
const MOST = 32;
const TOP = 8;
const OWN = "own";
const MOST_CHANCES = 500;

/** What stays when another view is looked at. @type {{pictures: File[], labels: string, set: string}} */
const kept = { pictures: [], labels: "", set: "" };

export function Classify() {
  const begun = useMemo(() => address(), []);
  const [pictures, setPictures] = useState(kept.pictures);
  const [said, setSaid] = useState(begun.get("labels") ?? kept.labels);
  const [set, setSet] = useState(begun.get("set") ?? (begun.has("labels") ? "" : kept.set));
  [kept.pictures, kept.labels, kept.set] = [pictures, said, set];
  const [templates, setTemplates] = useState(begun.has("template") ? OWN : begun.get("templates") ?? "");
  const [wordings, setWordings] = useState(begun.getAll("template").join("\n"));
  const [activation, setActivation] = useState(begun.get("activation") ?? "");
  useEffect(() => {
    const query = new URLSearchParams({ view: "classify" });
    const named = templates === OWN ? "" : templates;
    for (const [name, value] of Object.entries({ labels: set ? "" : said, set, templates: named, activation })) if (value) query.set(name, value);
    if (templates === OWN) for (const each of linesOf(wordings)) query.append("template", each);
    setAddress(query);
  }, [said, set, templates, wordings, activation]);
  const [note, setNote] = useState("");
  const take = (/** @type {File[]} */ files) => {
    const room = Math.max(0, MOST - pictures.length);
    setPictures([...pictures, ...files.slice(0, room)]);
    setNote(files.length > room ? `${MOST} pictures at a time: ${files.length - room} were left out.` : "");
  };
  const over = usePictures(take);
  const key = useKey();
  const sets = useAnswer((signal) => call("/label-sets", { signal }), [key]);
  const known = /** @type {any[]} */ (sets.found?.body.data ?? []);
  const labels = labelsOf(said);
  const request = {
    ...(set ? { label_set: set } : { labels }),
    ...(templates && !set && { templates: templates === OWN ? linesOf(wordings) : templates }),
    ...(activation && { activation }),
    on_error: "item",
  };
  const isWorded = templates !== OWN || set || (linesOf(wordings).length > 0 && linesOf(wordings).every(isTemplate));
  const asks = pictures.length > 0 && isWorded && (set || labels.length > 1 || (labels.length === 1 && ["none", "sigmoid"].includes(activation)));
  const answer = useAnswer(asks ? async (signal) => ({ ...(await call("/classify", { ...bodyOf({ ...request, top_k: TOP }, pictures), signal })), pictures }) : null, [pictures, JSON.stringify(request), key], TYPING_MS);
  const chances = useAnswer(asks && answer.found && !activation ? (signal) => chancesOf(request, answer.found, signal) : null, [answer.found]);
  const ofThese = chances.found?.of === answer.found ? chances.found?.byPicture : null; // not of the answer before
  const names = pictures.map((each) => each.name);
  const info = known.find((each) => each.name === set);
  return html`
    <div class="two">
      <section>
        <div class=${`drop ${over ? "over" : ""}`}>
          <span>${pictures.length ? `${pictures.length} ${pictures.length === 1 ? "picture" : "pictures"}` : "Drop or paste pictures here"}</span>
          <${FileButton} take=${take} label="Choose pictures" />
          ${pictures.length > 0 && html`<button type="button" class="quiet" onClick=${() => (setPictures([]), setNote(""))}>Clear</button>`}
        </div>
        ${note && html`<p class="warning" role="status">${note}</p>`}
        <label class="block">Label set
          <select value=${set} onChange=${(/** @type {any} */ event) => setSet(event.target.value)}>
            <option value="">labels of your own, below</option>
            ${known.map((each) => html`<option value=${each.name}>${each.name} (${each.labels} labels${each.examples ? ", taught" : each.built_in ? ", of the model" : ""})</option>`)}
          </select>
        </label>
        ${!set &&
        html`<label class="block">Labels, one a line or separated by commas
            <textarea rows="6" value=${said} placeholder="cat, dog, neither" onInput=${(/** @type {any} */ event) => setSaid(event.target.value)}></textarea>
          </label>
          <label class="block">Wording
            <select value=${templates} onChange=${(/** @type {any} */ event) => setTemplates(event.target.value)}>
              <option value="">the model's own</option><option value="none">the label alone</option><option value="simple">7 templates</option><option value="imagenet">80 templates</option><option value=${OWN}>templates of your own</option>
            </select>
          </label>
          ${templates === OWN &&
          html`<label class="block">Templates, one a line; {} stands for the label
            <textarea rows="3" value=${wordings} placeholder="a photograph of a {}" aria-describedby="wording" onInput=${(/** @type {any} */ event) => setWordings(event.target.value)}></textarea>
            <span class="hint" id="wording">${isWorded ? "" : "Each line takes {} once."}</span>
          </label>`}`}
        <label class="block">Scores
          <select value=${activation} onChange=${(/** @type {any} */ event) => setActivation(event.target.value)}>
            <option value="">the model's own</option><option value="softmax">softmax: which of these</option><option value="sigmoid">sigmoid: each by itself, may be none</option><option value="none">cosines, not calibrated</option>
          </select>
        </label>
        <${Teach} set=${set} info=${info} known=${known} labels=${labels} changed=${sets.again} refitted=${answer.again} choose=${setSet} />
      </section>
      <section>
        <${Trouble} error=${sets.error ?? answer.error} again=${() => (sets.again(), answer.again())} />
        ${!asks && html`<p class="hint">${pictures.length ? "Two labels or more; a single one needs sigmoid or cosines." : "Choose pictures, and say what they may show."}</p>`}
        ${answer.busy && html`<p role="status">Looking…</p>`}
        ${answer.found?.body.warnings?.map((/** @type {string} */ each) => html`<p class="warning">${each}</p>`)}
        ${ofThese && html`<p class="hint">Bar and first number: which of these labels. Second number: the chance that the label is in the picture at all, calibrated.</p>`}
        <ul class="results">
          ${asks &&
          answer.found?.body.data.map(
            (/** @type {any} */ each, /** @type {number} */ at) =>
              html`<${Result} picture=${answer.found.pictures[at]} found=${each} chances=${ofThese?.get(each.index)} remove=${() => setPictures(pictures.filter((other) => other !== answer.found.pictures[at]))} />`,
          )}
        </ul>
        ${answer.found && html`<${CopyAs} curl=${() => asCurl("/classify", request, names)} python=${() => pythonClassify(request, names)} />`}
        ${answer.found && html`<${Footnote} headers=${answer.found.headers} model=${answer.found.body.model} ms=${answer.found.ms} />`}
      </section>
    </div>
  `;
}

/** @param {string} said */
const linesOf = (said) => said.split("\n").map((each) => each.trim()).filter(Boolean);

/** @param {string} said */
const isTemplate = (said) => said.split("{}").length === 2;

/**
 * The calibrated chance of each label by itself, by picture; null where the model, or the set's examples, have none.
 * Not for long label sets: the answer has every label of every picture.
 * @param {any} request @param {any} found the answer of /classify @param {AbortSignal} signal
 * @returns {Promise<{of: any, byPicture: Map<number, Map<string, number>>} | null>}
 */
async function chancesOf(request, found, signal) {
  const taught = request.label_set ? (await call(`/label-sets/${request.label_set}`, { signal })).body : {};
  if (taught.built_in || taught.calibrated === false || (taught.labels ?? request.labels.length) > MOST_CHANCES) return null;
  if (!taught.calibrated) {
    const { body: model } = await call(`/models/${found.body.model}`, { signal });
    const presence = model.presence;
    const isSeen = presence && (presence.aggregation === "pooled" || model.roles.includes("dense_encoder"));
    if (!isSeen || model.activation !== "softmax") return null;
  }
  const { body } = await call("/classify", { ...bodyOf({ ...request, activation: "sigmoid" }, found.pictures), signal });
  const byLabel = (/** @type {any[]} */ all) => new Map(all.map((each) => [each.label, each.score]));
  return { of: found, byPicture: new Map(body.data.map((/** @type {any} */ each) => [each.index, byLabel(each.predictions ?? [])])) };
}

/** @param {{picture: File, found: any, chances?: Map<string, number>, remove: () => void}} props */
function Result({ picture, found, chances, remove }) {
  const top = found.predictions?.[0];
  return html`<li>
    <div><${Picture} blob=${picture} alt=${picture.name} /><button type="button" class="quiet" onClick=${remove} aria-label=${`Remove ${picture.name}`}>Remove</button></div>
    ${found.error
      ? html`<p class="trouble">${picture.name}: ${found.error.message}</p>`
      : html`<ul class=${chances ? "bars both" : "bars"} aria-label=${`${picture.name}: ${top?.label ?? "nothing"}`}>
          ${found.predictions.map(
            (/** @type {any} */ each) => html`<li title=${each.similarity === null ? "" : `cosine ${each.similarity.toFixed(4)}`}>
              <span class="said">${each.label}${each.weak ? " (unknown to the model)" : ""}</span>
              <span class="bar"><span style=${{ width: `${100 * Math.min(1, Math.max(0, each.score))}%` }}></span></span>
              <span class="number">${shown(each.score)}</span>
              ${chances && html`<span class="chance" title="the chance that it is in the picture at all">${chances.has(each.label) ? shown(/** @type {number} */ (chances.get(each.label))) : ""}</span>`}
            </li>`,
          )}
        </ul>`}
  </li>`;
}

/** @param {any} request @param {string[]} names */
function pythonClassify(request, names) {
  const { on_error: _, ...options } = request;
  const given = Object.entries(options).map(([option, value]) => `, ${option}=${python(value)}`).join("");
  const files = names.map((name) => `Path(${JSON.stringify(name)})`).join(", ");
  return asPython(`for predictions in client.classify([${files}]${given}):\n    print(predictions[0].label, predictions[0].score)`);
}

// Teaching

const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/;

/** Pictures that were taught in this tab, by the ids of their examples: the server keeps only vectors. @type {Map<string, File>} */
const taughtHere = new Map();

/** @param {{set: string, info: any, known: any[], labels: string[], changed: () => void, refitted: () => void, choose: (name: string) => void}} props */
function Teach({ set, info, known, labels, changed, refitted, choose }) {
  const [name, setName] = useState("");
  const [error, setError] = useState(/** @type {ApiError | null} */ (null));
  const key = useKey();
  const own = set && info && !info.built_in;
  const state = useAnswer(own ? (signal) => fitted(set, signal) : null, [set, info, key]);
  const detail = state.found?.detail;
  useEffect(() => {
    if (detail) refitted(); // by the head that is served now
  }, [detail?.version]);
  const [sending, setSending] = useState(false);
  const store = async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (known.some((each) => each.name === name)) {
      setError(new ApiError(409, `There is a label set ${name}: choose it above, or take another name.`));
      return;
    }
    try {
      // A set that is to be taught begins with no example, and is known by its words until the first.
      await call(`/label-sets/${name}`, { method: "PUT", json: { labels, examples: [] } });
      setError(null);
      changed();
      choose(name);
    } catch (problem) {
      setError(/** @type {ApiError} */ (problem));
    }
  };
  const teach = async (/** @type {string} */ label, /** @type {File[]} */ files) => {
    const form = new FormData();
    for (const file of files) {
      form.append("label", label);
      form.append("image", file, file.name);
    }
    setSending(true);
    try {
      const answer = await call(`/label-sets/${set}/examples`, { form });
      for (const each of answer.body.data ?? []) if (each.id) taughtHere.set(each.id, files[each.index]);
      const bad = answer.body.data?.filter((/** @type {any} */ each) => each.error) ?? [];
      setError(bad.length ? new ApiError(422, bad.map((/** @type {any} */ each) => `${files[each.index]?.name ?? ""}: ${each.error.message}`).join(" ")) : null);
      changed();
      state.again();
    } catch (problem) {
      setError(/** @type {ApiError} */ (problem));
    } finally {
      setSending(false);
    }
  };
  const forget = async (/** @type {string} */ id) => {
    setSending(true);
    try {
      await call(`/label-sets/${set}/examples?ids=${idPath(id)}`, { method: "DELETE" });
      setError(null);
      changed();
      state.again();
    } catch (problem) {
      setError(/** @type {ApiError} */ (problem));
    } finally {
      setSending(false);
    }
  };
  if (!set) {
    if (labels.length < 2) return null;
    return html`<form class="teach" onSubmit=${store}>
      <h2>Teach these labels</h2>
      <p class="hint">Store them as a set; then drop pictures onto each label.</p>
      <label>Name of the set <input value=${name} onInput=${(/** @type {any} */ event) => setName(event.target.value)} placeholder="my-labels" /></label>
      <button type="submit" disabled=${!NAME.test(name)}>Store</button>
      ${name && !NAME.test(name) && html`<p class="hint">Small letters, digits and . _ -</p>`}
      <${Trouble} error=${error} waits=${false} />
    </form>`;
  }
  if (!own) return html`<p class="hint">This set is a part of its model; it cannot be taught here.</p>`;
  if (state.error) return html`<${Trouble} error=${state.error} again=${state.again} />`;
  if (!detail) return html`<p class="hint" role="status">Reading the set…</p>`;
  const examples = state.found.examples;
  return html`<section class="teach">
    <h2>Teach ${set}</h2>
    <p role="status">${sending ? "Sending…" : state.busy ? "Fitting…" : said(detail)}</p>
    ${detail.warnings?.map((/** @type {string} */ each) => html`<p class="warning">${each}</p>`)}
    <ul>
      ${detail.label_names.map((/** @type {string} */ label) => html`<${TaughtLabel} key=${label} label=${label} examples=${examples.get(label) ?? []} forget=${forget} take=${(/** @type {File[]} */ files) => teach(label, files)} />`)}
    </ul>
    <${Trouble} error=${error} waits=${false} />
    <${CopyAs}
      curl=${() => `curl -F label=LABEL -F image=@PICTURE \\\n     ${location.origin}/label-sets/${set}/examples`}
      python=${() => asPython(`client.add_examples(${JSON.stringify(set)}, {"LABEL": [Path("PICTURE")]})`)}
    />
  </section>`;
}

/** @param {any} detail */
function said(detail) {
  if (detail.failed) return `Not fitted yet: ${detail.failed}`;
  if (!detail.ready) return "Fitting…";
  const judged = detail.leave_one_out;
  if (!judged?.tested) return "Known by its words. With two pictures a label, leaving one out says how good it is.";
  const [low, high] = judged.interval;
  return `Leaving one out, ${shown(judged.accuracy)} are right (${shown(low)} to ${shown(high)})${judged.zero_shot === null ? "" : `; by words alone ${shown(judged.zero_shot)}`}.`;
}

/** @param {{label: string, examples: any[], forget: (id: string) => void, take: (files: File[]) => void}} props */
function TaughtLabel({ label, examples, forget, take }) {
  const [over, setOver] = useState(false);
  const [open, setOpen] = useState(false);
  const count = examples.length;
  const drop = (/** @type {DragEvent} */ event) => {
    event.preventDefault(); // not a picture to classify
    setOver(false);
    const files = [...(event.dataTransfer?.files ?? [])];
    if (files.length) take(files);
  };
  return html`<li class=${over ? "over" : ""} data-label=${label} onDragOver=${() => setOver(true)} onDragLeave=${() => setOver(false)} onDrop=${drop}>
    <span class="said">${label}</span>
    <span>${count} ${count === 1 ? "picture" : "pictures"}</span>
    ${count > 0 && html`<button type="button" class="quiet" aria-expanded=${open} aria-label=${`Pictures of ${label}`} onClick=${() => setOpen(!open)}>${open ? "Hide" : "Show"}</button>`}
    <${FileButton} take=${take} label=${`Teach ${label} with pictures`}>Add<//>
    ${open && count > 0 && html`<ul class="examples" aria-label=${`Pictures of ${label}`}>${examples.map((each) => html`<${Example} key=${each.id} example=${each} forget=${forget} />`)}</ul>`}
  </li>`;
}

/** @param {{example: {id: string, label: string, predicted: string | null}, forget: (id: string) => void}} props */
function Example({ example, forget }) {
  const picture = taughtHere.get(example.id);
  const name = picture?.name ?? (example.id.includes("/") ? example.id : `${example.id.slice(0, 12)}…`);
  const taken = example.predicted !== null && example.predicted !== example.label;
  return html`<li class=${taken ? "taken" : ""}>
    ${picture && html`<${Picture} blob=${picture} alt="" class="tiny" />`}
    <span class="said" title=${example.id}>${name}${taken ? `, left out it is taken for ${example.predicted}` : ""}</span>
    <button type="button" class="quiet" aria-label=${`Take ${name} away from ${example.label}`} onClick=${() => forget(example.id)}>Take away</button>
  </li>`;
}

/** The set when it is fitted, and the examples of each label. @param {string} set @param {AbortSignal} signal */
async function fitted(set, signal) {
  for (;;) {
    const { body: detail } = await call(`/label-sets/${set}`, { signal });
    if (detail.ready || detail.failed) {
      const examples = new Map();
      if (detail.version !== null) {
        const { body } = await call(`/label-sets/${set}/examples`, { signal });
        for (const each of body.data) examples.set(each.label, [...(examples.get(each.label) ?? []), each]);
      }
      return { detail, examples };
    }
    await new Promise((done) => setTimeout(done, 400));
  }
}
