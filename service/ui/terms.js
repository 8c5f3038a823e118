// What is asked for: terms, filters and labels, as the address says them and as the API takes them. Nothing here touches the page.
// @ts-check

/**
 * text: words; item: the id of a stored item; picture: the key of a picture of this tab.
 * @typedef {{kind: "text" | "item" | "picture", value: string, weight: number}} Term
 * @typedef {{field: string, operator: string, value: string}} Condition
 * @typedef {{collection: string, terms: Term[], text: string, conditions: Condition[], min: number | null, fold: boolean}} Asked
 */

const KINDS = ["text", "item", "picture"];
export const OPERATORS = /** @type {const} */ ({
  number: ["=", "≥", "≤"],
  date: ["=", "≥", "≤"],
  string: ["=", "begins with"],
  boolean: ["="],
  "string[]": ["="],
  "number[]": ["=", "≥", "≤"],
});
/** @type {Record<string, string>} */
const NAMES = { "=": "$eq", "≥": "$gte", "≤": "$lte", "begins with": "$prefix" };

/** Pictures that were dropped, pasted or chosen, by key; they live as long as the tab. @type {Map<string, File>} */
export const pictures = new Map();

/** @param {File} file @returns {Term} */
export function pictureTerm(file) {
  const key = `picture-${Date.now()}-${pictures.size + 1}`; // never that of a picture before a reload
  pictures.set(key, file);
  return { kind: "picture", value: key, weight: 1 };
}

/** @param {URLSearchParams} query @returns {Asked} */
export function readAsked(query) {
  const terms = query.getAll("term").flatMap((said) => {
    const [, weight, kind, value] = /^(-?[\d.]+)\|(\w+)\|(.*)$/s.exec(said) ?? [];
    const number = Number(weight);
    const known = KINDS.includes(kind) && value && number && Number.isFinite(number) && (kind !== "picture" || pictures.has(value));
    return known ? [/** @type {Term} */ ({ kind, value, weight: number })] : [];
  });
  const conditions = query.getAll("filter").flatMap((said) => {
    const [field, operator, value] = said.split("|");
    return field && operator in NAMES && value !== undefined ? [{ field, operator, value: said.split("|").slice(2).join("|") }] : [];
  });
  const min = query.get("min");
  return {
    collection: query.get("collection") ?? "",
    terms,
    text: query.get("q") ?? "",
    conditions,
    min: min !== null && Number.isFinite(Number(min)) ? Number(min) : null,
    fold: query.get("fold") === "1",
  };
}

/** @param {Asked} asked */
export function writeAsked(asked) {
  const query = new URLSearchParams({ view: "search" });
  if (asked.collection) query.set("collection", asked.collection);
  if (asked.text) query.set("q", asked.text);
  for (const each of asked.terms) query.append("term", `${each.weight}|${each.kind}|${each.value}`);
  for (const each of asked.conditions) query.append("filter", `${each.field}|${each.operator}|${each.value}`);
  if (asked.min !== null) query.set("min", String(asked.min));
  if (asked.fold) query.set("fold", "1");
  return query;
}

export const AWAY = 0.3; // of words taken from words; in full they would find less than nothing taken away (docs/composed.md)

/** The other way round, as strong as is usual there. @param {number} weight */
export const turned = (weight) => (weight === 1 ? -AWAY : weight === -AWAY ? 1 : -weight);

/** Typed words: "-night" pushes away. @param {string} text @returns {Term | null} */
export function typed(text) {
  const words = text.trim();
  const isAway = words.length > 1 && words.startsWith("-");
  const value = isAway ? words.slice(1).trim() : words;
  return value.length > 1 || /[^\x00-\x7f]/.test(value) ? { kind: "text", value, weight: isAway ? -AWAY : 1 } : null;
}

/**
 * The query of the API. `image`: a picture term's content.
 * @param {Term[]} terms @param {(key: string) => string} image @returns {object}
 */
export function queryOf(terms, image) {
  const parts = terms.map((term) => {
    const part = term.kind === "text" ? { text: term.value } : term.kind === "item" ? { id: term.value } : { image: image(term.value) };
    return { term, part };
  });
  if (parts.length === 1 && parts[0].term.weight > 0) return parts[0].part;
  return { combine: parts.map(({ term, part }) => ({ ...part, weight: term.weight })) };
}

/**
 * The filter of the API, or undefined. types: `metadata_schema` of the collection.
 * @param {Condition[]} conditions @param {Record<string, string>} types
 */
export function filterOf(conditions, types) {
  const all = conditions.map(({ field, operator, value }) => {
    const type = (types[field] ?? "string").replace("[]", "");
    const typedValue = type === "number" ? Number(value) : type === "boolean" ? value === "true" : value;
    return { [field]: operator === "=" ? typedValue : { [NAMES[operator]]: typedValue } };
  });
  return all.length > 1 ? { $and: all } : all[0];
}

/**
 * The condition that a value of a facet stands for, or null where none does: a filter has no way to ask for it.
 * @param {string} field @param {string} type @param {unknown} value @returns {Condition | null}
 */
export const conditionOf = (field, type, value) =>
  value === null || typeof value !== type.replace("[]", "").replace("date", "string") ? null : { field, operator: "=", value: String(value) };

/**
 * How many of the scores fall into each of `bins` equal parts of their range.
 * @param {number[]} scores @param {number} bins @returns {{low: number, high: number, counts: number[]}}
 */
export function histogram(scores, bins) {
  const low = Math.min(...scores);
  const high = Math.max(...scores);
  const counts = new Array(bins).fill(0);
  for (const score of scores) counts[high > low ? Math.min(bins - 1, Math.floor(((score - low) / (high - low)) * bins)) : 0]++;
  return { low, high, counts };
}

/** One label a line, or separated by commas where there is one line; each once. @param {string} said @returns {string[]} */
export const labelsOf = (said) => [...new Set(said.split(said.includes("\n") ? "\n" : ",").map((each) => each.trim()).filter(Boolean))];
