// Calls the API: URLs, JSON, problems (RFC 9457), and the upload of a file with its progress.

export const DEFAULT_PLAN = "local/demo/plan";

const ID = /^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$/;

/** A refused or failed request: the problem's `type`, and a sentence. Status 0 means that no answer came. */
export class Problem extends Error {
  constructor(type, detail, status) {
    super(detail);
    this.type = type;
    this.status = status;
  }

  /** Whether the same request may succeed later. */
  get transient() {
    return this.status === 0 || this.status >= 500 || this.status === 408 || this.status === 429;
  }

  static from(status, text) {
    try {
      const problem = JSON.parse(text);
      return new Problem(String(problem.type), String(problem.detail ?? problem.title), status);
    } catch {
      return new Problem(`HTTP ${status}`, "The server gave an answer that this page does not understand.", status);
    }
  }

  static get noConnection() {
    return new Problem("NoConnection", "No answer came from the server.", 0);
  }
}

/** The ids in `org/project/plan` or `org/project/plan/upload`; null when their number or the form of one is wrong. */
export function parsePath(text, length) {
  const ids = text.split("/");
  return ids.length === length && ids.every((id) => ID.test(id)) ? ids : null;
}

export function uploadsUrl(plan) {
  const [organization, project, name] = parsePath(plan, 3);
  return `/v1/organizations/${organization}/projects/${project}/plans/${name}/uploads`;
}

export function uploadUrl(ref) {
  const [organization, project, plan, upload] = parsePath(ref, 4);
  return `${uploadsUrl(`${organization}/${project}/${plan}`)}/${upload}`;
}

export const thumbnailUrl = (ref, sheet) => `${uploadUrl(ref)}/sheets/sheet-${sheet}/thumbnail.jpeg`;
export const descriptorUrl = (ref, sheet) => `${uploadUrl(ref)}/sheets/sheet-${sheet}/tiles/sheet-${sheet}.dzi`;

export const getJson = (url) => request(url, { cache: "no-cache" });
export const post = (url) => request(url, { method: "POST" });
export const remove = (url) => request(url, { method: "DELETE" });

async function request(url, options) {
  let response;
  let text;
  try {
    response = await fetch(url, { ...options, signal: AbortSignal.timeout(30_000) });
    text = await response.text();
  } catch {
    throw Problem.noConnection;
  }
  if (!response.ok) throw Problem.from(response.status, text);
  return JSON.parse(text);
}

/**
 * Sends a file as the body of a POST, by XMLHttpRequest, because fetch does not report the bytes that are sent.
 * Returns `done`, a promise of the API's answer (null after `abort()`), and `abort`.
 */
export function sendFile(plan, file, onProgress) {
  const xhr = new XMLHttpRequest();
  const done = new Promise((resolve, reject) => {
    xhr.upload.onprogress = (event) => onProgress(event.loaded, event.total);
    xhr.onload = () => {
      if (xhr.status >= 200 && xhr.status < 300) resolve(JSON.parse(xhr.responseText));
      else reject(Problem.from(xhr.status, xhr.responseText));
    };
    xhr.onerror = () => reject(Problem.noConnection);
    xhr.onabort = () => resolve(null);
  });
  xhr.open("POST", `${uploadsUrl(plan)}?filename=${encodeURIComponent(file.name)}`);
  xhr.setRequestHeader("Content-Type", "application/pdf");
  xhr.send(file);
  return { done, abort: () => xhr.abort() };
}
