// Localise: labels, and where they are in a picture.
// @ts-check

import { html, useEffect, useMemo, useState } from "./vendor/htm-preact-3.1.1.js";
import { asCurl, asPython, call, python } from "./api.js";
import { Overlay, colourOf, localised, localiseRequest } from "./overlay.js";
import { CopyAs, FileButton, Footnote, Trouble, address, setAddress, shown, useAnswer, useKey, usePictures } from "./parts.js";
import { labelsOf } from "./terms.js";

const TYPING_MS = 400;
const SIDES = [224, 320, 448, 640];

/** What stays when another view is looked at. @type {{picture: File | null, labels: string}} */
const kept = { picture: null, labels: "" };

export function Localise() {
  const begun = useMemo(() => address(), []);
  const [picture, setPicture] = useState(kept.picture);
  const [said, setSaid] = useState(begun.get("labels") ?? kept.labels);
  [kept.picture, kept.labels] = [picture, said];
  const [model, setModel] = useState(begun.get("model") ?? "");
  const [masks, setMasks] = useState(begun.get("masks") === "1");
  const [side, setSide] = useState(Number(begun.get("short_px")) || 0);
  const [threshold, setThreshold] = useState(/** @type {number | null} */ (null));
  const [opacity, setOpacity] = useState(0.5);
  const [chosen, setChosen] = useState(/** @type {string | null} */ (null));
  useEffect(() => {
    const query = new URLSearchParams({ view: "localise" });
    if (said) query.set("labels", said);
    if (model) query.set("model", model);
    if (masks) query.set("masks", "1");
    if (side) query.set("short_px", String(side));
    setAddress(query);
  }, [said, model, masks, side]);
  const over = usePictures((files) => setPicture(files[0]));
  const labels = labelsOf(said);
  const key = useKey();
  const models = useAnswer((signal) => call("/models", { signal }), [key]);
  const able = /** @type {any[]} */ (models.found?.body.data ?? []).filter((each) => each.roles.includes("dense_encoder"));
  const more = { model, shortPx: side, masks };
  const asks = picture && labels.length > 0;
  const answer = useAnswer(asks ? async (signal) => ({ ...(await localised(picture, labels, { ...more, signal })), picture, labels }) : null, [picture, said, model, side, masks, key], TYPING_MS);
  // Of the picture that is shown; its labels may have been changed since.
  const shownAnswer = answer.found?.picture === picture ? answer.found : null;
  const found = shownAnswer?.body;
  const at = threshold ?? found?.threshold ?? 0.5;
  const files = [picture?.name ?? "picture.jpg"];
  const request = localiseRequest(labels, { ...more, heat: true });
  if (models.error) return html`<${Trouble} error=${models.error} again=${models.again} />`;
  if (models.found && !able.length) {
    return html`<section class="empty"><h2>No model can localise</h2><p>Localising takes a model with a <code>dense_encoder</code>; the embedded one has it: <code>clipworks serve --extra-models everyday-small</code></p></section>`;
  }
  return html`
    <div class="two">
      <section>
        <div class=${`drop ${over ? "over" : ""}`}>
          ${picture ? html`<span>${picture.name}</span>` : html`<span>Drop or paste a picture here</span>`}
          <${FileButton} take=${(/** @type {File[]} */ files) => setPicture(files[0])} label="Choose a picture" many=${false} />
        </div>
        <label class="block">Labels, one a line or separated by commas
          <textarea rows="5" value=${said} placeholder="dog, ball, tree" onInput=${(/** @type {any} */ event) => setSaid(event.target.value)}></textarea>
        </label>
        <div class="line">
          <label>Model
            <select value=${model} onChange=${(/** @type {any} */ event) => setModel(event.target.value)}>
              <option value="">default</option>
              ${able.map((each) => html`<option value=${`${each.name}@${each.version}`}>${each.name}@${each.version}</option>`)}
            </select>
          </label>
          <label>Looks at
            <select value=${side} onChange=${(/** @type {any} */ event) => setSide(Number(event.target.value))}>
              <option value="0">the model's own size</option>
              ${SIDES.map((each) => html`<option value=${each}>${each} px: ${each < 400 ? "faster" : "smaller things"}</option>`)}
            </select>
          </label>
          <label><input type="checkbox" checked=${masks} onChange=${(/** @type {any} */ event) => setMasks(event.target.checked)} /> masks</label>
        </div>
        <label class="block">Present from a score of <strong>${shown(at)}</strong>
          <input type="range" min="0" max="1" step="0.01" value=${at} onInput=${(/** @type {any} */ event) => setThreshold(Number(event.target.value))} />
        </label>
        <label class="block">Opacity of heat and masks
          <input type="range" min="0" max="1" step="0.05" value=${opacity} onInput=${(/** @type {any} */ event) => setOpacity(Number(event.target.value))} />
        </label>
        <${Trouble} error=${answer.error} again=${answer.again} />
        ${found &&
        html`<ul class="bars" aria-label="Labels">
          ${found.data[0].labels.map(
            (/** @type {any} */ each) => html`<li class=${each.score >= at ? "" : "absent"}>
              <button type="button" aria-pressed=${chosen === each.label} onClick=${() => setChosen(each.label)} onMouseEnter=${() => setChosen(each.label)}>
                <span class="swatch" style=${{ background: colourOf(shownAnswer.labels.indexOf(each.label)) }}></span>
                <span class="said">${each.label}</span>
                <span class="bar"><span style=${{ width: `${100 * each.score}%` }}></span></span>
                <span class="number">${shown(each.score)}</span>
              </button>
            </li>`,
          )}
        </ul>`}
      </section>
      <section>
        ${!asks && html`<p class="hint">Choose a picture and at least one label to see where each label is. A score is the chance that the label is in the picture, where the model is calibrated.</p>`}
        ${answer.busy && html`<p role="status">Looking…</p>`}
        ${picture && found && html`<${Overlay} blob=${picture} answer=${found.data[0]} threshold=${at} opacity=${opacity} chosen=${chosen} order=${shownAnswer.labels} />`}
        ${found && html`<${CopyAs} curl=${() => asCurl("/localize", request, files)} python=${() => pythonLocalise(request, files[0])} />`}
        ${found && html`<${Footnote} headers=${shownAnswer.headers} model=${found.model} ms=${shownAnswer.ms} />`}
      </section>
    </div>
  `;
}

/** @param {any} request @param {string} file */
function pythonLocalise(request, file) {
  const given = Object.entries(request).map(([option, value]) => `, ${option}=${python(value)}`).join("");
  return asPython(`found = client.localize([Path(${JSON.stringify(file)})]${given})[0]\nfor label in found.labels:\n    print(label.label, label.score, label.present, label.boxes)`);
}
