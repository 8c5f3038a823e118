// Calls to this server: JSON and forms, the API key of this session, and errors in words.
// @ts-check

const KEY = "clipworks.api-key";
const PROBLEMS = {
  401: "This server wants an API key.",
  403: "This key may not do that.",
  429: "The server is busy.",
  503: "The server cannot answer just now.",
  504: "That took longer than the server allows.",
  507: "The server's disk is full. Nothing was changed.",
};

/** What a request came to when it was not 2xx. */
export class ApiError extends Error {
  /** @param {number} status @param {string} message @param {{code?: string, param?: string, retryAfterS?: number}} more */
  constructor(status, message, more = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = more.code ?? "";
    this.param = more.param ?? "";
    this.retryAfterS = more.retryAfterS ?? 0;
  }
}

/** The key is kept by this tab alone, and goes when it is closed. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (/** @type {string} */ value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/**
 * @typedef {{method?: string, json?: unknown, form?: FormData, signal?: AbortSignal, as?: "json" | "blob" | "text"}} Call
 * @param {string} path
 * @param {Call} call
 * @returns {Promise<{body: any, headers: Headers, ms: number}>}
 */
export async function call(path, { method, json, form, signal, as = "json" } = {}) {
  /** @type {Record<string, string>} */
  const headers = {};
  if (apiKey.get()) headers.Authorization = `Bearer ${apiKey.get()}`;
  if (json !== undefined) headers["Content-Type"] = "application/json";
  const body = json !== undefined ? JSON.stringify(json) : form;
  const began = performance.now();
  let answer;
  try {
    answer = await fetch(path, { method: method ?? (body ? "POST" : "GET"), headers, body, signal, cache: "no-cache" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer. Is it still running?");
  }
  if (!answer.ok) throw await problem(answer);
  const found = answer.status === 204 ? null : await (as === "blob" ? answer.blob() : as === "text" ? answer.text() : answer.json());
  return { body: found, headers: answer.headers, ms: performance.now() - began };
}

/** @param {Response} answer */
async function problem(answer) {
  let said = { message: "", code: "", param: "" };
  try {
    said = (await answer.json()).error;
  } catch {
    // A proxy's page, or nothing: the status has to do.
  }
  const words = PROBLEMS[/** @type {keyof typeof PROBLEMS} */ (answer.status)];
  const message = [words, said.message].filter(Boolean).join(" ") || `The server answered ${answer.status}.`;
  return new ApiError(answer.status, message, { ...said, retryAfterS: Number(answer.headers.get("Retry-After")) || 0 });
}

/** An id in a path: its slashes as %2F, so that ".." in it is no step and "a/thumbnail" no other address. @param {string} id */
export const idPath = (id) => encodeURIComponent(id);

/**
 * A body with pictures in it: `request` as JSON and the files behind it, or plain JSON without files.
 * @param {object} request @param {Blob[]} files @returns {Call}
 */
export function bodyOf(request, files) {
  if (!files.length) return { json: request };
  const form = new FormData();
  form.append("request", JSON.stringify(request));
  for (const file of files) form.append("image", file, /** @type {File} */ (file).name ?? "picture");
  return { form };
}

// "copy as"

/** @param {string} text */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Where a file's base64 belongs in a request that is copied. @param {string} name */
export const contentOf = (name) => `\u0000${name}\u0000`;

/**
 * The same request as a curl command for a POSIX shell. @param {string} path
 * @param {object | null} request may hold `contentOf`; null: a GET @param {string[]} files names, sent beside the request
 */
export function asCurl(path, request, files) {
  const key = apiKey.get() ? ` -H "Authorization: Bearer $CLIPWORKS_API_KEY"` : "";
  if (!request) return `curl${key} ${location.origin}${path}`;
  const parts = JSON.stringify(request).split(/\\u0000(.*?)\\u0000/);
  const said = parts.map((part, at) => (at % 2 ? `"$(base64 -w0 ${quoted(JSON.parse(`"${part}"`))})"` : quoted(part))).join("");
  const url = `${location.origin}${path}`;
  const json = ` -H 'Content-Type: application/json'`;
  // A picture is too long for an argument, so it goes in by standard input.
  if (parts.length > 1) return `curl${key}${json} -d @- ${url} <<<${said}`;
  const body = files.length ? ` -F request=${said}` + files.map((name) => ` \\\n     -F image=@${quoted(name)}`).join("") : `${json} -d ${said}`;
  return `curl${key}${body} \\\n     ${url}`;
}

/** A value as Python writes it. @param {unknown} value @returns {string} */
export function python(value) {
  if (value === null || value === undefined) return "None";
  const file = typeof value === "string" && /^\u0000(.*)\u0000$/.exec(value);
  if (file) return `Path(${JSON.stringify(file[1])})`;
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${python(each)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

/** @param {string} lines what is done with `client` */
export function asPython(lines) {
  const key = apiKey.get() ? `, api_key=os.environ["CLIPWORKS_API_KEY"]` : "";
  const head = (apiKey.get() ? "import os\n" : "") + (lines.includes("Path(") ? "from pathlib import Path\n" : "");
  return `${head}${head && "\n"}from clipworks import Client\n\nwith Client(${JSON.stringify(location.origin)}${key}) as client:\n${lines
    .split("\n")
    .map((line) => `    ${line}`)
    .join("\n")}\n`;
}
