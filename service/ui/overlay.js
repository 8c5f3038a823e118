// A picture with what /localize found on it: boxes, masks and heat.
// @ts-check

import { html, useEffect, useRef, useState } from "./vendor/htm-preact-3.1.1.js";
import { bodyOf, call } from "./api.js";
import { maskOf } from "./masks.js";
import { shown, useBlobUrl } from "./parts.js";

const COLOURS = ["#ff6b6b", "#4dabf7", "#ffd43b", "#51cf66", "#cc5de8", "#ff922b", "#22b8cf", "#f783ac"];

/** A label's colour: the same in the list and in the picture. @param {number} at */
export const colourOf = (at) => COLOURS[Math.max(at, 0) % COLOURS.length];

/**
 * @param {Blob} blob @param {string[]} labels
 * @param {{signal?: AbortSignal, model?: string, shortPx?: number, masks?: boolean, heat?: boolean}} more
 */
export function localised(blob, labels, { signal, model, shortPx, masks = false, heat = true } = {}) {
  return call("/localize", { ...bodyOf(localiseRequest(labels, { model, shortPx, masks, heat }), [blob]), signal });
}

/** @param {string[]} labels @param {{model?: string, shortPx?: number, masks?: boolean, heat?: boolean}} more */
export function localiseRequest(labels, { model, shortPx, masks, heat }) {
  const include = [masks ? "mask" : "boxes", ...(heat ? ["heatmap"] : [])];
  return { labels, include, ...(heat && { heatmap_format: "png" }), ...(model && { model }), ...(shortPx && { short_px: shortPx }) };
}

/**
 * @param {{blob: Blob, answer: any, threshold?: number | null, opacity?: number, chosen?: string | null, order?: string[]}} props
 * threshold: labels of a lower score are not drawn; null: the server decides. chosen: the label whose heat is drawn, by default the
 * best one. order: all labels, for their colours.
 */
export function Overlay({ blob, answer, threshold = null, opacity = 0.5, chosen = null, order }) {
  const url = useBlobUrl(blob);
  const labels = /** @type {any[]} */ (answer.labels);
  const names = order ?? labels.map((each) => each.label);
  const drawn = labels.filter((each) => (threshold === null ? each.present : each.score >= threshold));
  const hot = labels.find((each) => each.label === chosen) ?? labels[0];
  const { width, height } = answer;
  const line = Math.max(width, height) / 250;
  return html`<div class="overlay" style=${{ aspectRatio: `${width} / ${height}` }}>
    <img src=${url} alt="" />
    ${hot?.heatmap && html`<${Heat} heatmap=${hot.heatmap} colour=${colourOf(names.indexOf(hot.label))} opacity=${opacity} />`}
    ${drawn.map((each) => each.boxes.filter((/** @type {any} */ box) => box.mask).map((/** @type {any} */ box) => html`<${Mask} mask=${box.mask} colour=${colourOf(names.indexOf(each.label))} opacity=${opacity} />`))}
    <svg viewBox=${`0 0 ${width} ${height}`} role="img" aria-label=${drawn.length ? `Found: ${drawn.map((each) => each.label).join(", ")}` : "Nothing found"}>
      ${drawn.map((each) =>
        each.boxes.map(
          (/** @type {any} */ box) => html`<g style=${{ color: colourOf(names.indexOf(each.label)) }}>
            <rect x=${box.x0} y=${box.y0} width=${box.x1 - box.x0} height=${box.y1 - box.y0} stroke-width=${line} />
            <text x=${box.x0 > width / 2 ? box.x1 : box.x0 + line} text-anchor=${box.x0 > width / 2 ? "end" : "start"} y=${Math.max(box.y0 - line * 2, line * 7)} font-size=${line * 6}>${each.label} ${shown(box.score)}</text>
          </g>`,
        ),
      )}
    </svg>
  </div>`;
}

/** Red, green and blue of "#rrggbb". @param {string} colour */
const parts = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

/** The map's part over 0, where the label fits better than the others. @param {{heatmap: any, colour: string, opacity: number}} props */
function Heat({ heatmap, colour, opacity }) {
  const canvas = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  const [failed, setFailed] = useState(false);
  useEffect(() => {
    let gone = false;
    setFailed(false);
    const image = new Image();
    image.src = `data:image/png;base64,${heatmap.png}`;
    image
      .decode()
      .then(() => {
        const onto = canvas.current;
        const context = onto?.getContext("2d", { willReadFrequently: true });
        if (gone || !onto || !context) return;
        [onto.width, onto.height] = [image.width, image.height];
        context.drawImage(image, 0, 0);
        const pixels = context.getImageData(0, 0, onto.width, onto.height);
        const [red, green, blue] = parts(colour);
        const { low, high } = heatmap;
        for (let at = 0; at < pixels.data.length; at += 4) {
          const value = low + (pixels.data[at] / 255) * (high - low);
          pixels.data.set([red, green, blue, high > 0 ? Math.max(0, value / high) * 255 : 0], at);
        }
        context.putImageData(pixels, 0, 0);
      })
      .catch(() => setFailed(true));
    return () => {
      gone = true;
    };
  }, [heatmap, colour]);
  return failed ? null : html`<canvas ref=${canvas} style=${{ opacity }} aria-hidden="true"></canvas>`;
}

/** @param {{mask: any, colour: string, opacity: number}} props */
function Mask({ mask, colour, opacity }) {
  const canvas = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  useEffect(() => {
    const onto = canvas.current;
    const context = onto?.getContext("2d", { willReadFrequently: true });
    if (!onto || !context) return;
    const [height, width] = mask.size;
    [onto.width, onto.height] = [width, height];
    const pixels = context.createImageData(width, height);
    const inside = maskOf(mask);
    const [red, green, blue] = parts(colour);
    for (let at = 0; at < inside.length; at++) if (inside[at]) pixels.data.set([red, green, blue, 255], 4 * at);
    context.putImageData(pixels, 0, 0);
  }, [mask, colour]);
  return html`<canvas ref=${canvas} style=${{ opacity }} aria-hidden="true"></canvas>`;
}
