// COCO's compressed run lengths, as /localize gives masks. No part of this touches the page.
// @ts-check

/**
 * Which pixels are inside, row by row.
 * @param {{size: [number, number], counts: string}} rle height and width
 * @returns {Uint8Array} height * width of 0 and 1
 */
export function maskOf({ size: [height, width], counts }) {
  /** @type {number[]} */
  const runs = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0;
    let shift = 0;
    for (;;) {
      const five = counts.charCodeAt(at++) - 48;
      value |= (five & 0x1f) << shift;
      shift += 5;
      if (five & 0x20) continue;
      if (five & 0x10 && shift < 32) value |= -1 << shift;
      break;
    }
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  const mask = new Uint8Array(height * width);
  let inside = 0;
  let at = 0; // column by column
  for (const run of runs) {
    if (inside) for (let end = Math.min(at + run, mask.length), each = at; each < end; each++) mask[(each % height) * width + Math.floor(each / height)] = 1;
    at += run;
    inside ^= 1;
  }
  return mask;
}
