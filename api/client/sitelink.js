// A client of SiteLink for browsers, Node.js and React Native, in one module without dependencies: sends a plan, follows its progress, and gives
// its sheets to OpenSeadragon. What each option means is written in sitelink.d.ts. packed.js is loaded when a packed sheet is to be read as one file.
//
// 1. Streams are read by fetch, not by EventSource: EventSource cannot send a ticket in a header, hides the status of a refused answer, and does
//    not show the server's heartbeat.
// 2. A browser has six connections to an HTTP/1.1 server, for all its tabs together, and a stream holds one for hours. So all tabs of an origin
//    share one stream. One visible tab holds it, and relays its events to the tabs that show the same upload. Every other tab polls the status,
//    a hidden tab seldom.
// 3. React Native has no streams in its fetch, no import.meta and no async generators: none of them is needed here.

const FIRST_BYTE_MS = 12_000; // the server sends something within 6 s
const SILENCE_MS = 40_000; // the server sends a heartbeat every 15 s
const WAIT_S = 25;
const REQUEST_MS = 30_000;
const POLL_MS = 2000;
const HIDDEN_POLL_MS = 15_000; // of a hidden tab a person sees the title only
const NEXT_POLL_MS = 1000; // after a change: there may be many a second
const RELAY_FRESH_MS = 5000;
const BACK_OFF_MS = [1000, 2000, 4000, 8000, 15_000, 30_000];
const RENEW_SHARE = 0.8; // of the life of a ticket or token
const RENEW_AGAIN_MS = 10_000;
const LARGE_BYTES = 64 * 1024 * 1024;
const PARTS_AT_ONCE = 4; // a browser has six connections to an HTTP/1.1 server
const PART_ROUNDS = 3;
const PART_FAILURES = 40; // one after the other, of all parts together: three minutes
const FIRST_TRIES = 4; // the first parts fail so often, before the bucket counts as not reached
const COMPLETE_MS = 300_000;
const KEPT_MS = 7 * 86_400_000; // then the server forgets an upload that was begun
const MEMORY = "sitelink upload";
const STREAM_LOCK = "sitelink stream";
const ID = /^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$/;

/** A refused or failed request: the problem's `type`, and a sentence. Status 0 means that no answer came. */
export class Problem extends Error {
  constructor(type, detail, status) {
    super(detail);
    this.name = "Problem";
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
      return new Problem(`HTTP ${status}`, "The server gave an answer that this client does not understand.", status);
    }
  }

  static get noConnection() {
    return new Problem("NoConnection", "No answer came from the server.", 0);
  }
}

export function isFinal(status) {
  return status !== "queued" && status !== "processing";
}

// Addresses

/** The ids in `organization/project/plan` or `organization/project/plan/upload`; null when their number or the form of one is wrong. */
export function parsePath(text, length) {
  const ids = String(text).split("/");
  return ids.length === length && ids.every((id) => ID.test(id)) ? ids : null;
}

function idsOf(text, form) {
  const ids = parsePath(text, form.split("/").length);
  if (!ids) throw new Problem("BadReference", `“${String(text).slice(0, 200)}” does not have the form ${form}.`, 400);
  return ids;
}

export function uploadsUrl(plan, { server = "" } = {}) {
  const [organization, project, name] = idsOf(plan, "organization/project/plan");
  return `${server.replace(/\/+$/, "")}/v1/organizations/${organization}/projects/${project}/plans/${name}/uploads`;
}

export function uploadUrl(ref, { server = "" } = {}) {
  const ids = idsOf(ref, "organization/project/plan/upload");
  return `${uploadsUrl(ids.slice(0, 3).join("/"), { server })}/${ids[3]}`;
}

export const thumbnailUrl = (ref, sheet, options) => `${uploadUrl(ref, options)}/sheets/sheet-${sheet}/thumbnail.jpeg`;
export const descriptorUrl = (ref, sheet, options) => `${uploadUrl(ref, options)}/sheets/sheet-${sheet}/tiles/sheet-${sheet}.dzi`;
export const packedUrl = (ref, sheet, options) => `${descriptorUrl(ref, sheet, options).slice(0, -4)}.pmtiles`;
export const tileUrlTemplate = (ref, sheet, options) => `${descriptorUrl(ref, sheet, options).slice(0, -4)}_files/{z}/{x}_{y}.jpeg`;

// Requests

// How each kind of credential is sent. The cookie of a session is sent by the browser itself, to the page's own server.
const HEADERS = {
  ticket: (value) => ({ "SiteLink-Ticket": value }),
  token: (value) => ({ Authorization: `Bearer ${value}` }),
  headers: (value) => value,
  address: () => ({}), // a signed URL: the request goes to it
  session: () => ({}),
};

/**
 * How long a ticket, token or signed URL lasts in milliseconds, by its own times, because this machine's clock may be wrong; NaN if it does not say.
 */
function lifetimeMs(value) {
  try {
    const seconds = /[?&]X-Amz-Expires=(\d+)/.exec(value)?.[1];
    if (seconds) return seconds * 1000;
    const { iat, exp } = JSON.parse(atob(value.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")));
    return exp > iat ? (exp - iat) * 1000 : NaN;
  } catch {
    return NaN;
  }
}

/**
 * A ticket or token, given once or by a function; or a session, whose function renews the browser's cookie. A pass is what it is at one time. A
 * function is asked again when the server refuses its last pass, and in good time before a ticket or token expires.
 */
class Credential {
  #kind;
  #ask;
  #pass;
  #asking = null;
  #renewAt = NaN;

  constructor(kind, source, ref) {
    this.#kind = kind;
    this.#ask = typeof source === "function" ? () => source(ref) : null;
    this.#pass = this.#ask && kind !== "session" ? null : this.#passOf(this.#ask ? null : source);
  }

  #passOf(value) {
    const isAbsent = value === null || value === undefined;
    return { value: isAbsent ? null : value, headers: isAbsent ? {} : HEADERS[this.#kind](value) };
  }

  /** The pass that is to be sent with a request. */
  async pass() {
    if (this.#pass && now() >= this.#renewAt) {
      this.#renewAt = now() + RENEW_AGAIN_MS; // if the function fails now
      this.#renew().catch(() => {}); // the pass at hand is still good
    }
    while (!this.#pass) await this.#renew();
    return this.#pass;
  }

  /** After the server has refused a pass, or said that it has expired: whether another one may be had. */
  discard(refused) {
    if (!this.#ask) return false;
    if (this.#pass === refused) this.#pass = null;
    return true;
  }

  #renew() {
    this.#asking ??= this.#fresh().finally(() => {
      this.#asking = null;
    });
    return this.#asking;
  }

  async #fresh() {
    try {
      const value = await this.#ask();
      this.#pass = this.#passOf(this.#kind === "session" ? null : value);
      this.#renewAt = now() + lifetimeMs(this.#pass.value) * RENEW_SHARE;
    } catch (error) {
      throw error instanceof Problem ? error : new Problem("NoTicket", `No ticket or token could be had: ${error?.message ?? error}`, 0);
    }
  }
}

const credentials = new WeakMap(); // a function's credential of each upload, so that watch() and every tileSource() share one ticket

function credentialOf(options, ref = "") {
  const kind = ["ticket", "token", "headers", "address"].find((name) => options[name] !== undefined) ?? "session";
  const source = options[kind];
  if (typeof source !== "function") return new Credential(kind, source, ref);
  if (!credentials.has(source)) credentials.set(source, new Map());
  const known = credentials.get(source);
  const key = kind === "session" ? "" : ref; // a browser has one session for all uploads
  if (!known.has(key)) known.set(key, new Credential(kind, source, key));
  return known.get(key);
}

/** The credential of a request that changes something, for which a ticket does not count. */
const writingCredentialOf = ({ token, session } = {}, ref = "") => credentialOf({ token, session }, ref);

/** Makes one controller's signal follow others; the returned function ends that. */
function follow(controller, ...signals) {
  const abort = () => controller.abort();
  const followed = signals.filter(Boolean);
  for (const signal of followed) {
    if (signal.aborted) abort();
    signal.addEventListener("abort", abort);
  }
  return () => followed.forEach((signal) => signal.removeEventListener("abort", abort));
}

/**
 * Sends a request; with a new pass again when the first is refused. Returns the response and its pass. `timing(true)` is called when the server's
 * time begins, `timing(false)` when it ends: a person may take minutes to sign in. Without a URL, the pass is a signed URL: S3 refuses an expired one
 * by 403, https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html.
 */
async function send(credential, url, { headers = {}, timing = () => {}, ...options } = {}) {
  const refusal = url === undefined ? 403 : 401;
  for (let attempt = 1; ; attempt++) {
    const pass = await credential.pass();
    timing(true);
    let response;
    try {
      response = await fetch(url ?? pass.value, { ...options, headers: { ...headers, ...pass.headers } });
    } catch (error) {
      throw options.signal?.aborted ? error : Problem.noConnection;
    }
    if (response.status !== refusal || attempt === 2 || !credential.discard(pass)) return { response, pass };
    await response.text().catch(() => ""); // gives the connection back
    timing(false);
  }
}

/** Sends requests with the credential that the options have, for packed.js. Without one, `address` may give a signed URL. */
export function sender({ url, ...options }, ref) {
  const credential = credentialOf(options, ref);
  return async (request) => (await send(credential, url, request)).response;
}

/** The answer's status, ETag and text, within a time. */
async function read(credential, url, { signal, timeoutMs = REQUEST_MS, ...options } = {}) {
  const controller = new AbortController();
  const unfollow = follow(controller, signal);
  let timer;
  const timing = (runs) => {
    clearTimeout(timer);
    if (runs) timer = setTimeout(() => controller.abort(), timeoutMs);
  };
  try {
    const { response } = await send(credential, url, { ...options, timing, signal: controller.signal });
    const text = await response.text();
    if (!response.ok && response.status !== 304) throw Problem.from(response.status, text);
    return { status: response.status, etag: response.headers.get("ETag"), text };
  } catch (error) {
    if (signal?.aborted) throw signal.reason ?? error;
    throw error instanceof Problem ? error : Problem.noConnection;
  } finally {
    clearTimeout(timer);
    unfollow();
  }
}

const passwordHeader = ({ password } = {}) => (password ? { "Document-Password": encodeURIComponent(password) } : {});

async function act(method, url, options, ref) {
  const { text } = await read(writingCredentialOf(options, ref), url, { method, headers: passwordHeader(options) });
  return JSON.parse(text);
}

export const cancel = (ref, options) => act("POST", `${uploadUrl(ref, options)}/cancel`, options, ref);
export const remove = (ref, options) => act("DELETE", uploadUrl(ref, options), options, ref);
export const prioritize = (ref, sheet, options) => act("POST", `${uploadUrl(ref, options)}/sheets/${sheet}/prioritize`, options, ref);
export const retry = (ref, sheet, options) => act("POST", `${uploadUrl(ref, options)}/sheets/${sheet}/retry`, options, ref);

export async function status(ref, options = {}) {
  const { text } = await read(credentialOf(options, ref), uploadUrl(ref, options), { signal: options.signal, cache: "no-cache" });
  return JSON.parse(text);
}

/** The newest uploads of a plan. */
export async function uploads(plan, { limit, cursor, ...options } = {}) {
  const query = Object.entries({ limit, cursor }).filter(([, value]) => value !== undefined && value !== null);
  const url = `${uploadsUrl(plan, options)}?${query.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&")}`;
  const { text } = await read(credentialOf(options, plan), url, { signal: options.signal, cache: "no-cache" });
  return JSON.parse(text);
}

// Upload

export async function upload(file, { inParts, ...options } = {}) {
  if (typeof file.slice === "function" && (inParts ?? file.size >= LARGE_BYTES)) {
    const transfer = new PartsTransfer(file, options);
    try {
      return await transfer.send();
    } catch (error) {
      if (!(error instanceof NotInParts)) throw error;
    }
  }
  return sendWhole(file, options);
}

/** Forgets an upload that was begun and not accepted, and its parts. */
export async function abortUpload(ref, options = {}) {
  await read(writingCredentialOf(options, ref), `${uploadUrl(ref, options)}/parts`, { method: "DELETE" });
}

const fileQuery = (name, options) =>
  Object.entries({ filename: name, ...options })
    .map(([key, value]) => `${key}=${encodeURIComponent(value)}`)
    .join("&");

async function sendWhole(
  file,
  { server, to, name = file.name ?? "plan.pdf", options = {}, password, idempotencyKey, token, session, onProgress, signal } = {},
) {
  const url = `${uploadsUrl(to, { server })}?${fileQuery(name, options)}`;
  const credential = writingCredentialOf({ token, session });
  const key = idempotencyKey ? { "Idempotency-Key": idempotencyKey } : {};
  const headers = { "Content-Type": "application/pdf", ...passwordHeader({ password }), ...key };
  for (let attempt = 1; ; attempt++) {
    const pass = await credential.pass();
    const answer = await sendFile("POST", url, file, { ...headers, ...pass.headers }, onProgress ?? (() => {}), signal);
    if (answer.status >= 200 && answer.status < 300) return JSON.parse(answer.text);
    if (answer.status !== 401 || attempt === 2 || !credential.discard(pass)) throw Problem.from(answer.status, answer.text);
  }
}

function abortError(signal) {
  return signal.reason ?? Object.assign(new Error("The upload was stopped."), { name: "AbortError" });
}

/** By XMLHttpRequest where there is one, because fetch does not report the bytes that are sent. */
async function sendFile(method, url, file, headers, onProgress, signal, silenceMs = 0) {
  if (signal?.aborted) throw abortError(signal);
  if (typeof XMLHttpRequest === "undefined") {
    try {
      onProgress(0, file.size);
      const response = await fetch(url, { method, headers, body: file, signal });
      const text = await response.text();
      onProgress(file.size, file.size);
      return { status: response.status, text };
    } catch {
      throw signal?.aborted ? abortError(signal) : Problem.noConnection;
    }
  }
  const xhr = new XMLHttpRequest();
  const abort = () => xhr.abort();
  signal?.addEventListener("abort", abort);
  let timer;
  const alive = () => {
    clearTimeout(timer);
    if (silenceMs) timer = setTimeout(abort, silenceMs);
  };
  try {
    return await new Promise((resolve, reject) => {
      xhr.upload.onprogress = (event) => {
        alive();
        onProgress(event.loaded, event.total);
      };
      xhr.onload = () => resolve({ status: xhr.status, text: xhr.responseText });
      xhr.onerror = () => reject(Problem.noConnection);
      xhr.onabort = () => reject(!signal || signal.aborted ? abortError(signal) : Problem.noConnection);
      xhr.open(method, url);
      alive();
      for (const [name, value] of Object.entries(headers)) xhr.setRequestHeader(name, value);
      xhr.send(file);
    });
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
  }
}

// Upload in parts

/** Means that the file cannot be sent in parts: the server is of an earlier release, or the page does not reach the bucket. */
class NotInParts extends Error {}

/** The key of an upload that was begun. It outlasts the page if the browser can tell that it is the same file again. */
class UnfinishedUpload {
  #slot;
  #storage = null;

  constructor(file, { server = "", to, name, options = {}, idempotencyKey }) {
    this.key = idempotencyKey;
    this.isRemembered = false;
    if (idempotencyKey) return;
    if (file.name && file.lastModified) {
      try {
        this.#storage = globalThis.localStorage ?? null; // some browsers throw
      } catch {}
    }
    this.#slot = `${MEMORY} ${JSON.stringify([server, to, name, file.size, file.lastModified, options])}`;
    this.#forgetOld();
    this.key = this.#read(this.#slot)?.key;
    this.isRemembered = Boolean(this.key);
    if (!this.key) this.renew();
  }

  #read(slot) {
    try {
      return JSON.parse(this.#storage?.getItem(slot) ?? null);
    } catch {
      return null;
    }
  }

  #forgetOld() {
    const slots = Array.from({ length: this.#storage?.length ?? 0 }, (_, index) => this.#storage.key(index));
    for (const slot of slots) {
      if (slot.startsWith(MEMORY) && !(this.#read(slot)?.begunAt > now() - KEPT_MS)) this.#storage.removeItem(slot);
    }
  }

  renew() {
    const random = () => Math.random().toString(36).slice(2);
    this.key = globalThis.crypto?.randomUUID?.() ?? `${random()}-${random()}-${now()}`; // pages without TLS have no randomUUID
    this.isRemembered = false;
    try {
      this.#storage?.setItem(this.#slot, JSON.stringify({ key: this.key, begunAt: now() }));
    } catch {} // it is full: the key is good for this page only
  }

  forget() {
    this.#storage?.removeItem(this.#slot);
  }
}

/** Sends one file into the bucket itself. The server says which parts the bucket has, so nothing but the key is remembered here. */
class PartsTransfer {
  #file;
  #options;
  #credential;
  #unfinished;
  #sent = new Map(); // bytes by part
  #stopping = new AbortController();
  #failures = 0; // since the last part that got through
  #storedAny = false;

  constructor(file, options) {
    const { name = file.name ?? "plan.pdf", token, session } = options;
    this.#file = file;
    this.#options = { ...options, name };
    this.#credential = writingCredentialOf({ token, session });
    this.#unfinished = new UnfinishedUpload(file, this.#options);
  }

  async send() {
    const { signal } = this.#options;
    const unfollow = follow(this.#stopping, signal);
    try {
      return await this.#send();
    } catch (error) {
      throw signal?.aborted ? abortError(signal) : error;
    } finally {
      this.#stopping.abort();
      unfollow();
    }
  }

  async #send() {
    let begun = await this.#begin();
    if (begun.links.parts) {
      this.#options.onBegin?.(begun.ref);
      const url = uploadUrl(begun.ref, this.#options);
      for (let round = 1, missing; (missing = this.#missing(begun)).length && round <= PART_ROUNDS; round++) {
        await this.#sendParts(begun, missing, url);
        begun = await this.#ask("GET", `${url}/parts`);
      }
      const parts = begun.stored.map(({ number, etag }) => ({ number, etag }));
      const { ref } = begun;
      const headers = passwordHeader(this.#options);
      begun = await this.#ask("POST", `${url}/complete`, { body: { parts }, headers, timeoutMs: COMPLETE_MS }).catch(async (error) => {
        if (error.type === "NotAPdf") await this.#giveUp(ref);
        throw error;
      });
    }
    this.#unfinished.forget();
    return begun;
  }

  async #begin() {
    const { server, to, name, options = {} } = this.#options;
    const url = `${uploadsUrl(to, { server })}:begin?${fileQuery(name, options)}`;
    const begin = () => {
      const headers = { "Idempotency-Key": this.#unfinished.key, ...passwordHeader(this.#options) };
      return this.#read("POST", url, { body: { sizeBytes: this.#file.size }, headers });
    };
    try {
      return await begin();
    } catch (error) {
      if (error.type === "IdempotencyConflict" && this.#unfinished.isRemembered) {
        this.#unfinished.renew(); // the server has forgotten the upload meanwhile
        return await begin();
      }
      if (error.status) this.#unfinished.forget();
      throw error.type === "NotFound" || error.type === "MethodNotAllowed" ? new NotInParts() : error;
    }
  }

  #size(begun, number) {
    return Math.min(begun.partSizeBytes, this.#file.size - (number - 1) * begun.partSizeBytes);
  }

  #missing(begun) {
    const stored = begun.stored.filter((part) => part.sizeBytes === this.#size(begun, part.number));
    this.#storedAny ||= stored.length > 0;
    this.#sent = new Map(stored.map((part) => [part.number, part.sizeBytes]));
    this.#tell();
    return Array.from({ length: begun.partCount }, (_, index) => index + 1).filter((number) => !this.#sent.has(number));
  }

  #tell() {
    this.#options.onProgress?.([...this.#sent.values()].reduce((sum, bytes) => sum + bytes, 0), this.#file.size);
  }

  async #sendParts(begun, missing, url) {
    const left = missing[Symbol.iterator]();
    const work = async () => {
      for (const number of left) await this.#sendPart(begun, number, url);
    };
    try {
      await Promise.all(Array.from({ length: PARTS_AT_ONCE }, work));
    } catch (error) {
      this.#stopping.abort();
      if (error instanceof NotInParts) await this.#giveUp(begun.ref);
      throw error;
    }
  }

  async #giveUp(ref) {
    await abortUpload(ref, this.#options);
    this.#unfinished.forget();
  }

  async #sendPart(begun, number, url) {
    const first = (number - 1) * begun.partSizeBytes;
    const size = this.#size(begun, number);
    const onProgress = (bytes) => {
      this.#sent.set(number, Math.min(bytes, size));
      this.#tell();
    };
    for (;;) {
      const signed = await this.#ask("POST", `${url}/parts/sign`, { body: { numbers: [number] } });
      const problem = await this.#put(signed.parts[0].url, this.#file.slice(first, first + size), onProgress);
      if (!problem) {
        this.#storedAny = true;
        this.#failures = 0;
        return;
      }
      onProgress(0);
      await this.#pauseOrThrow(problem);
      if (!this.#storedAny && problem.status === 0 && this.#failures > FIRST_TRIES) throw new NotInParts();
    }
  }

  /** What went wrong with a part; null if it is stored. A URL may have expired (403), so then another one may be better. */
  async #put(url, part, onProgress) {
    try {
      const answer = await sendFile("PUT", url, part, {}, onProgress, this.#stopping.signal, SILENCE_MS);
      if (answer.status >= 200 && answer.status < 300) return null;
      const problem = Problem.from(answer.status, answer.text);
      if (!problem.transient && answer.status !== 403) throw problem;
      return problem;
    } catch (error) {
      if (!(error instanceof Problem) || !error.transient) throw error;
      return error;
    }
  }

  /** Asks the server, and again if it gives no answer. */
  async #ask(method, url, options) {
    for (;;) {
      try {
        return await this.#read(method, url, options);
      } catch (error) {
        if (!(error instanceof Problem) || !error.transient) throw error;
        await this.#pauseOrThrow(error);
      }
    }
  }

  async #pauseOrThrow(problem) {
    if (this.#failures === PART_FAILURES) throw problem;
    const round = Math.floor(this.#failures / PARTS_AT_ONCE);
    await pause(BACK_OFF_MS[Math.min(round, BACK_OFF_MS.length - 1)], this.#stopping.signal);
    this.#failures += 1;
    if (this.#stopping.signal.aborted) throw problem;
  }

  async #read(method, url, { body, headers, timeoutMs } = {}) {
    const sent = body ? { body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...headers } } : {};
    const { text } = await read(this.#credential, url, { method, ...sent, timeoutMs, signal: this.#stopping.signal });
    return JSON.parse(text);
  }
}

// Progress

export function watch(ref, options = {}) {
  return new Watching(ref, options);
}

const now = () => Date.now();
const hasDocument = () => typeof document !== "undefined" && typeof document.addEventListener === "function";
const isHidden = () => hasDocument() && document.hidden;

/** Resolves after a time, or as soon as the signal is aborted. */
function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener("abort", done);
  });
}

/** Splits a stream's text into events: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation. */
class EventParser {
  #rest = "";
  #name = "";
  #data = [];

  /** The events that this piece of text completes. */
  push(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    const events = [];
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) events.push({ name: this.#name || "message", data: this.#data.join("\n") });
        this.#name = "";
        this.#data = [];
        continue;
      }
      const [, field, value] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
      if (field === "event") this.#name = value ?? "";
      else if (field === "data") this.#data.push(value ?? "");
    }
    return events;
  }
}

/**
 * The states of one upload, as an async iterator. Its own loop works in turns. A turn ends when the connection is lost, when the tab is hidden or
 * shown, or when somebody calls wake(); the next one resumes at the version that is known.
 */
class Watching {
  #ref;
  #url;
  #credential;
  #options;
  #head = null;
  #sheets = new Map();
  #etag = null;
  #changed = new Set(); // numbers of the sheets that are new or different since the last state that was taken
  #warning;
  #fresh = false; // whether there is a state that was not taken
  #isOver = false; // whether the last state is known
  #isDone = false; // whether the iterator has ended
  #error = null;
  #takers = [];
  #started = false;
  #turn = null;
  #failures = 0;
  #streamsAreBlocked = false;
  #checkStatus = true;
  #relayedAt = -Infinity; // the time of the last event from another tab
  #channel = null;
  #connection = null;
  #onReturn = (event) => {
    if (this.#head && (event.type !== "pageshow" || event.persisted)) this.wake(); // a page that has just loaded needs no wake-up
  };
  #onStop = () => this.#stop();

  constructor(ref, options) {
    this.#ref = ref;
    this.#url = uploadUrl(ref, options);
    this.#options = options;
    this.#credential = credentialOf(options, ref);
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  next() {
    this.#start();
    return new Promise((resolve, reject) => {
      this.#takers.push({ resolve, reject });
      this.#give();
    });
  }

  return() {
    this.#stop();
    return Promise.resolve({ value: undefined, done: true });
  }

  wake() {
    this.#checkStatus = true;
    this.#streamsAreBlocked = false;
    this.#failures = 0;
    this.#turn?.abort();
  }

  #start() {
    if (this.#started || this.#isDone) return;
    this.#started = true;
    const { signal } = this.#options;
    if (signal?.aborted) return this.#stop();
    signal?.addEventListener("abort", this.#onStop);
    if (hasDocument()) {
      document.addEventListener("visibilitychange", this.#onReturn);
      for (const type of ["online", "pageshow"]) addEventListener(type, this.#onReturn);
      this.#channel = new BroadcastChannel(`sitelink ${this.#url}`);
      this.#channel.onmessage = ({ data }) => this.#receiveFromTab(data);
    }
    this.#run();
  }

  #stop() {
    if (this.#isDone) return;
    this.#isDone = true;
    this.#fresh = false;
    this.#release();
    this.#give();
  }

  #release() {
    this.#turn?.abort();
    this.#channel?.close();
    this.#channel = null;
    this.#options.signal?.removeEventListener("abort", this.#onStop);
    if (!hasDocument()) return;
    document.removeEventListener("visibilitychange", this.#onReturn);
    for (const type of ["online", "pageshow"]) removeEventListener(type, this.#onReturn);
  }

  /** Hands the newest state to whoever waits for it. */
  #give() {
    while (this.#takers.length) {
      if (this.#fresh) {
        this.#fresh = false;
        this.#takers.shift().resolve({ value: this.#state(), done: false });
        if (this.#isOver) this.#isDone = true;
      } else if (this.#error) {
        const error = this.#error;
        this.#error = null;
        this.#isDone = true;
        this.#takers.shift().reject(error);
      } else if (this.#isDone) {
        this.#takers.shift().resolve({ value: undefined, done: true });
      } else {
        return;
      }
    }
  }

  #state() {
    const changed = [...this.#changed].filter((number) => this.#sheets.has(number));
    this.#changed.clear();
    const sheets = [...this.#sheets.values()].sort((one, other) => one.number - other.number);
    return { ...this.#head, sheets, changed: changed.map((number) => this.#sheets.get(number)), ended: this.#isOver };
  }

  #publish() {
    this.#fresh = true;
    this.#give();
  }

  #tell(connection) {
    if (this.#isDone || connection === this.#connection || this.#connection === "ended") return;
    this.#connection = connection;
    this.#options.onConnection?.(connection);
  }

  #end() {
    if (this.#isOver || this.#isDone) return;
    this.#isOver = true;
    this.#tell("ended");
    this.#release();
    this.#publish();
  }

  async #run() {
    while (!this.#isOver && !this.#isDone) {
      const turn = new AbortController();
      this.#turn = turn;
      try {
        await this.#takeTurn(turn.signal);
      } catch (error) {
        if (turn.signal.aborted) continue;
        if (!(error instanceof Problem && error.transient)) {
          this.#release();
          this.#error = error;
          this.#give();
          return;
        }
        this.#tell(this.#failures || !this.#head ? "unreachable" : "reconnecting");
        const wait = BACK_OFF_MS[Math.min(this.#failures++, BACK_OFF_MS.length - 1)];
        await pause(wait * (0.75 + Math.random() / 2), turn.signal); // a server that comes back is not asked by everybody at once
      } finally {
        turn.abort();
      }
    }
  }

  async #takeTurn(signal) {
    if (this.#checkStatus) {
      await this.#fetchStatus(signal); // only the status has the file's name and size
      this.#checkStatus = false;
    }
    if (this.#isOver) return;
    if (isHidden()) await this.#poll(signal);
    else if (hasDocument() && navigator.locks) await this.#share(signal);
    // Browsers offer locks to secure origins only (https, and http on loopback). Elsewhere each visible tab has its own stream.
    else await this.#stream(signal);
  }

  /** Polls until no other tab holds the stream, then holds it until this turn ends. */
  async #share(signal) {
    const turn = new AbortController();
    const polling = new AbortController();
    const unfollow = [follow(turn, signal), follow(polling, signal)];
    try {
      const streaming = navigator.locks.request(STREAM_LOCK, { signal: turn.signal }, () => {
        polling.abort();
        return this.#stream(turn.signal);
      });
      streaming.catch(() => {}); // it is aborted when the polling ends first
      await Promise.race([streaming, this.#poll(polling.signal).then(() => (polling.signal.aborted ? streaming : undefined))]);
    } finally {
      turn.abort();
      for (const end of unfollow) end();
    }
  }

  /** Without a stream: fetches the status after a while, unless the tab that holds the stream has relayed an event lately. */
  async #poll(signal) {
    while (!this.#isOver) {
      await pause(isHidden() ? HIDDEN_POLL_MS : POLL_MS, signal);
      if (signal.aborted) return;
      if (now() - this.#relayedAt <= RELAY_FRESH_MS) continue;
      try {
        await this.#fetchStatus(signal);
      } catch (error) {
        if (signal.aborted) return;
        throw error;
      }
    }
  }

  /**
   * Where streams do not get through: the server holds each answer back until there is a change, and sends only the sheets that changed. A server
   * that answers at once is asked seldom.
   */
  async #longPoll(signal) {
    while (!this.#isOver && !signal.aborted) {
      const asked = now();
      const isNewer = await this.#fetchStatus(signal, WAIT_S);
      await pause((isNewer ? NEXT_POLL_MS : POLL_MS) - (now() - asked), signal);
    }
  }

  async #stream(signal) {
    if (this.#streamsAreBlocked || this.#options.transport === "poll") return this.#longPoll(signal);
    const reading = new AbortController();
    const unfollow = follow(reading, signal);
    let timer;
    let isSilent = false;
    let hasSpoken = false;
    const expectBytes = (milliseconds) => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        isSilent = true;
        reading.abort();
      }, milliseconds);
    };
    const timing = (runs) => (runs ? expectBytes(FIRST_BYTE_MS) : clearTimeout(timer));
    try {
      const url = `${this.#url}/events?after=${this.#head.version}`;
      const headers = { Accept: "text/event-stream" };
      const { response, pass } = await send(this.#credential, url, { signal: reading.signal, timing, cache: "no-store", headers });
      if (response.status === 204) {
        await this.#fetchStatus(signal);
        return undefined;
      }
      if (!response.ok) throw Problem.from(response.status, await response.text());
      if (!response.body?.getReader) {
        this.#streamsAreBlocked = true;
        return undefined;
      }
      const reader = response.body.getReader();
      const decoder = new TextDecoder();
      const parser = new EventParser();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        hasSpoken = true;
        this.#failures = 0;
        this.#tell("live");
        expectBytes(SILENCE_MS);
        for (const event of parser.push(decoder.decode(value, { stream: true }))) {
          if (event.name === "expired") {
            if (this.#credential.discard(pass)) return undefined; // the next turn has a new pass
            throw Problem.noConnection;
          }
          this.#receive(event);
          if (this.#isOver) return undefined;
        }
      }
    } catch (error) {
      if (signal.aborted) throw error;
      if (!isSilent) throw error instanceof Problem ? error : Problem.noConnection;
    } finally {
      clearTimeout(timer);
      reading.abort();
      unfollow();
    }
    if (!isSilent) throw Problem.noConnection; // the server ends a stream only after an event that says so, or when it stops
    this.#tell("checking");
    const isNewer = await this.#fetchStatus(signal);
    // The server answers. So something between keeps the stream's events back, if there was one to send.
    if (!hasSpoken || isNewer) this.#streamsAreBlocked = true;
    return undefined;
  }

  #receive({ name, data }) {
    if (name !== "snapshot" && name !== "change" && name !== "end") return;
    const document = JSON.parse(data);
    this.#channel?.postMessage({ name, document, since: this.#head.version });
    this.#take(name, document);
  }

  #take(name, document) {
    this.#merge(document, { isWhole: name !== "change", isLast: name === "end" });
  }

  /** Takes an event that another tab relays; `since` is the version to which the event's changes apply. */
  async #receiveFromTab({ name, document, since }) {
    if (!this.#head || this.#isOver || this.#isDone) return;
    this.#relayedAt = now();
    if (name !== "change" || this.#head.version >= since) this.#take(name, document);
    else await this.#fetchStatus(this.#turn.signal).catch(() => {}); // this tab lacks the version that the event changes
    this.#tell("live");
  }

  /** Fetches the status, or waits some seconds for a newer one; returns whether it is newer than the known one. */
  async #fetchStatus(signal, waitS = 0) {
    const isBrowser = hasDocument(); // its cache asks with the ETag by itself
    const answer = await read(this.#credential, waitS ? `${this.#url}?after=${this.#head.version}&wait=${waitS}&changes=true` : this.#url, {
      signal,
      timeoutMs: REQUEST_MS + waitS * 1000,
      cache: "no-cache",
      headers: !isBrowser && this.#etag ? { "If-None-Match": this.#etag } : {},
    });
    this.#failures = 0;
    let isNewer = false;
    if (answer.status === 200) {
      if (answer.etag) this.#etag = answer.etag;
      const document = JSON.parse(answer.text);
      isNewer = document.version !== this.#head?.version;
      this.#merge(document, { isWhole: waitS === 0, isLast: isFinal(document.status) });
    }
    this.#tell("live");
    return isNewer;
  }

  #merge(document, { isWhole, isLast }) {
    if (this.#isDone || this.#isOver || (this.#head && document.version < this.#head.version)) return; // an event was faster
    const { sheets, ...head } = document;
    const isKnown = document.version === this.#head?.version && (document.warning ?? null) === this.#warning;
    this.#head = { ...this.#head, ...head }; // events lack the file's name and size
    this.#warning = document.warning ?? null;
    if (isWhole) {
      const present = new Set(sheets.map((sheet) => sheet.number));
      for (const number of this.#sheets.keys()) if (!present.has(number)) this.#sheets.delete(number);
    }
    for (const sheet of sheets) {
      if (this.#sheets.get(sheet.number)?.version === sheet.version) continue;
      this.#sheets.set(sheet.number, sheet);
      this.#changed.add(sheet.number);
    }
    if (isLast) this.#end();
    else if (!isKnown) this.#publish();
  }
}

// Tiles

export async function tileSource(ref, sheet, options = {}) {
  const { packed } = options;
  if (packed) {
    const { packedTileSource } = await import("./packed.js");
    return packedTileSource(typeof packed === "function" ? () => packed(ref, sheet) : packedUrl(ref, sheet, options), { ...options, ref });
  }
  const credential = credentialOf(options, ref);
  const { text } = await read(credential, descriptorUrl(ref, sheet, options), { signal: options.signal, cache: "no-cache" });
  const attribute = (name) => new RegExp(`\\s${name}="([^"]+)"`).exec(text)?.[1];
  const [width, height, tileSize, tileOverlap] = ["Width", "Height", "TileSize", "Overlap"].map((name) => Number(attribute(name)));
  const format = attribute("Format");
  if (!(width && height && tileSize && format)) throw new Problem("DamagedRecord", "The sheet's .dzi cannot be read.", 200);
  const folder = `${descriptorUrl(ref, sheet, options).slice(0, -4)}_files`;
  return {
    width,
    height,
    tileSize,
    tileOverlap,
    minLevel: 0,
    maxLevel: Math.ceil(Math.log2(Math.max(width, height))),
    getTileUrl: (level, column, row) => `${folder}/${level}/${column}_${row}.${format}`,
    // A new ticket changes no tile's address, so no tile is loaded or drawn again.
    ...tileLoading((url, signal) => loadBlob(credential, url, signal)),
  };
}

/** What OpenSeadragon calls to load a tile. `load` gives the Blob at an address. */
export function tileLoading(load) {
  const downloads = new WeakMap();
  return {
    downloadTileStart(job) {
      const download = new AbortController();
      downloads.set(job, download);
      const { signal } = download;
      const takesBlobs = Boolean(job.fail); // since OpenSeadragon 6
      const finish = (data) => signal.aborted || (takesBlobs ? job.finish(data, null, "rasterBlob") : job.finish(data, null));
      const fail = ({ message }) => signal.aborted || (takesBlobs ? job.fail(message, null) : job.finish(null, null, message));
      load(job.src, signal).then((blob) => (takesBlobs ? blob : imageOf(blob))).then(finish, fail);
    },
    downloadTileAbort(job) {
      downloads.get(job)?.abort();
    },
  };
}

async function imageOf(blob) {
  const image = new Image();
  image.src = URL.createObjectURL(blob);
  try {
    await image.decode();
  } finally {
    URL.revokeObjectURL(image.src);
  }
  return image;
}

async function loadBlob(credential, url, signal) {
  const { response } = await send(credential, url, { signal });
  if (!response.ok) throw Problem.from(response.status, await response.text());
  return response.blob();
}

/** A thumbnail's address with the ticket in it, for an <img>, which sends no header. */
export async function thumbnail(ref, sheet, options = {}) {
  const url = thumbnailUrl(ref, sheet, options);
  const ticket = options.ticket === undefined ? null : (await credentialOf(options, ref).pass()).value;
  return ticket === null ? url : `${url}?ticket=${encodeURIComponent(ticket)}`;
}

/** The thumbnail itself, with a new ticket if the first is refused. */
export function thumbnailBlob(ref, sheet, options = {}) {
  return loadBlob(credentialOf(options, ref), thumbnailUrl(ref, sheet, options), options.signal);
}
