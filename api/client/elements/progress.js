// <sitelink-progress>: one upload, its state, overall progress, measures, verdict and sheets.

import { cancel, isFinal, parsePath, Problem, remove, status, watch } from "../sitelink.js";
import { icon, reflect, showBadge, showBar, upgrade } from "./shared.js";
import { Sheets, SHEETS_HTML } from "./sheets.js";
import { BASE, PROGRESS } from "./style.js";
import { count, duration, moment, money, refusal, sentence, sheets, sheetsOf, size, sizeRange, timeRange, UNKNOWN_NAME, UPLOAD_WORDS } from "./words.js";

const ANNOUNCE_MS = 10_000;
const RESUME_TRIES = 30;
const ACTIONS = ["cancel", "retry", "delete"];

const html = (level) => `
  <div class="heading" part="heading">
    <h${level} id="file-name" tabindex="-1"></h${level}>
    <span class="badge" id="status" part="status" hidden>${icon()}<span></span></span>
  </div>
  <p class="muted" id="facts" part="facts"></p>

  <section class="panel" part="panel" aria-label="Progress" id="overall">
    <p class="line"><strong id="count"></strong><span id="percent"></span></p>
    <div class="bar" part="bar" role="progressbar" id="bar" aria-labelledby="count" aria-valuemin="0" aria-valuemax="100"><div class="fill" part="fill"></div></div>
    <div class="measures" part="measures" id="measures" role="group" aria-labelledby="measures-title" hidden>
      <h2 id="measures-title"></h2>
      <dl>
        <div id="measure-tiles"><dt>Tiles</dt><dd></dd><dd class="muted"></dd></div>
        <div id="measure-size"><dt>Size of the tiles</dt><dd></dd><dd class="muted"></dd></div>
        <div id="measure-time"><dt>Time</dt><dd></dd><dd class="muted"></dd></div>
        <div id="measure-cost" title="The list price for writing and reading the objects in the storage. Keeping them costs extra."><dt>Storage requests</dt><dd></dd><dd class="muted"></dd></div>
      </dl>
    </div>
    <div class="line">
      <p class="muted" id="news" part="news" role="status"></p>
      <button type="button" class="button" part="button" id="cancel" hidden>Cancel</button>
      <button type="button" class="button" part="button" id="delete" hidden>Delete</button>
    </div>
  </section>
  <p class="panel warn" id="warning" part="warning" role="status" hidden></p>

  <section class="panel verdict" id="verdict" part="verdict" tabindex="-1" aria-labelledby="verdict-title" hidden>
    <h2 id="verdict-title"></h2>
    <p id="verdict-detail"></p>
    <p id="verdict-help"></p>
    <p class="reason"><code id="verdict-type"></code></p>
    <p id="verdict-again"><slot name="again"></slot></p>
  </section>
  ${SHEETS_HTML}
  <p class="hidden" id="announcer" role="status"></p>`;

export class ProgressElement extends HTMLElement {
  static observedAttributes = ["upload", "server", "controls"];
  #root = this.attachShadow({ mode: "open" });
  #cards = null;
  #watching = null;
  #isDue = false;
  #access = {};
  #progress = null;
  #sheets = new Map();
  #status = null;
  #announcedAt = 0;
  #isCancelling = false;
  #connection = null;

  connectedCallback() {
    upgrade(this, "upload", "server", "ticket", "token", "session", "controls");
    if (!this.#cards) this.#build();
    this.#showSoon();
  }

  disconnectedCallback() {
    this.#watching?.return();
    this.#watching = null;
  }

  attributeChangedCallback(name, before, after) {
    if (name === "controls") this.#showControls();
    else if (before !== after) this.#showSoon();
  }

  get controls() {
    return this.hasAttribute("controls");
  }

  set controls(value) {
    this.toggleAttribute("controls", Boolean(value));
  }

  /** Whether the attribute `controls` has this action; without a word it stands for all. */
  #offers(action) {
    const words = (this.getAttribute("controls") ?? "").split(/\s+/).filter((word) => ACTIONS.includes(word));
    return this.controls && (words.length === 0 || words.includes(action));
  }

  get ticket() {
    return this.#access.ticket;
  }

  set ticket(value) {
    if (value === this.#access.ticket) return;
    this.#access.ticket = value;
    this.#showSoon();
  }

  get token() {
    return this.#access.token;
  }

  set token(value) {
    if (value === this.#access.token) return;
    this.#access.token = value;
    this.#showSoon();
  }

  get session() {
    return this.#access.session;
  }

  set session(value) {
    if (value === this.#access.session) return;
    this.#access.session = value;
    this.#showSoon();
  }

  /** The options of this element's calls of the client. */
  get access() {
    return { ...this.#access, ...(this.server ? { server: this.server } : {}) };
  }

  get progress() {
    return this.#progress;
  }

  sheet(number) {
    return this.#sheets.get(number);
  }

  announce(text) {
    this.#announcedAt = performance.now();
    this.#$("announcer").textContent = text;
  }

  focus() {
    this.#$("file-name")?.focus();
  }

  focusSheet(number) {
    const card = this.#cards.card(number);
    card?.scrollIntoView({ block: "nearest" });
    card?.querySelector(".open").focus({ preventScroll: true });
    return Boolean(card);
  }

  #$(id) {
    return this.#root.getElementById(id);
  }

  #build() {
    const level = Number(this.getAttribute("heading-level"));
    this.#root.adoptedStyleSheets = [BASE, PROGRESS];
    this.#root.innerHTML = html(level >= 1 && level <= 6 ? level : 2);
    this.#cards = new Sheets(this.#root, this, {
      opened: (number) => this.#tell("sitelink-open", { sheet: number }),
      announce: (text) => this.announce(text),
      resume: (number) => this.#resume(number),
      offersRetry: () => this.#offers("retry"),
    });
    this.#$("cancel").addEventListener("click", () => this.#cancel());
    this.#$("delete").addEventListener("click", () => this.#delete());
  }

  #tell(name, detail) {
    return this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true, cancelable: true }));
  }

  /** A page sets several attributes and properties one after the other: they are looked at together. */
  #showSoon() {
    if (this.#isDue) return;
    this.#isDue = true;
    queueMicrotask(() => {
      this.#isDue = false;
      if (this.isConnected && this.#cards) this.#show();
    });
  }

  #show() {
    this.#watching?.return();
    this.#watching = null;
    this.#progress = null;
    this.#sheets.clear();
    this.#status = null;
    this.#isCancelling = false;
    this.#connection = null;
    this.#announcedAt = performance.now();
    this.#cards.clear();
    for (const id of ["verdict", "warning", "cancel", "delete", "measures", "status"]) this.#$(id).hidden = true;
    for (const id of ["facts", "count", "percent", "news"]) this.#$(id).textContent = "";
    this.#$("overall").hidden = false;
    this.#$("file-name").textContent = this.upload ? "Loading…" : "";
    if (!this.upload) return;
    if (parsePath(this.upload, 4)) this.#follow();
    else this.#showRefused(new Problem("BadReference", `“${this.upload.slice(0, 200)}” does not name an upload: its form is not organization/project/plan/upload.`, 400));
  }

  async #follow() {
    this.#watching?.return();
    const watching = watch(this.upload, { ...this.access, onConnection: (state) => this.#watching === watching && this.#showConnection(state) });
    this.#watching = watching;
    try {
      for await (const progress of watching) {
        if (this.#watching === watching) this.#changed(progress);
      }
    } catch (problem) {
      if (this.#watching === watching) this.#showRefused(problem);
    }
  }

  /** After a request for more work: if the upload has ended, waits for its new version and follows it again. Returns the sheet. */
  async #resume(number) {
    const { upload } = this;
    const before = this.#progress;
    for (let attempt = 0; attempt < RESUME_TRIES && isFinal(this.#progress.status) && this.#progress.version === before.version; attempt++) {
      if (attempt > 0) await new Promise((resolve) => setTimeout(resolve, 1000));
      const now = await status(upload, this.access).catch(() => null);
      if (this.upload !== upload || !this.isConnected) return undefined;
      if (now && (now.version !== before.version || !isFinal(now.status))) {
        this.#follow();
        break;
      }
    }
    return this.#sheets.get(number);
  }

  #changed(progress) {
    this.#progress = progress;
    const present = new Set(progress.sheets.map((sheet) => sheet.number));
    for (const number of this.#sheets.keys()) if (!present.has(number)) this.#sheets.delete(number);
    const changed = progress.changed.filter((sheet) => this.#sheets.get(sheet.number)?.version !== sheet.version);
    for (const sheet of progress.sheets) this.#sheets.set(sheet.number, sheet);
    this.#showHead(progress);
    this.#cards.update(changed, this.#sheets);
    this.#tell("sitelink-change", progress);
  }

  #showHead(progress) {
    const { status: state, totalPages: total, completedPages: done } = progress;
    const final = isFinal(state);
    this.#$("file-name").textContent = progress.fileName ?? UNKNOWN_NAME;
    this.#$("facts").textContent = [size(progress.sizeBytes), `uploaded ${moment(progress.createdAt)}`, ...(total ? [sheets(total)] : [])].join(" · ");
    showBadge(this.#$("status"), state, UPLOAD_WORDS);
    this.#$("status").hidden = false;

    const words = total ? sheetsOf(done, total) : final ? "No sheets" : state === "queued" ? "Waiting to start" : "Counting the pages";
    this.#$("count").textContent = words;
    this.#$("percent").textContent = total ? `${progress.progress} %` : "";
    showBar(this.#$("bar"), total ? progress.progress / 100 : null, words);
    this.#$("bar").dataset.status = state;
    this.#$("overall").hidden = final && !total;
    this.#$("warning").textContent = progress.warning ?? "";
    this.#$("warning").hidden = !progress.warning;
    if (final && this.#root.activeElement === this.#$("cancel")) this.focus();
    this.#$("filter-open").textContent = final ? "Not done" : "In progress";

    if (state !== this.#status) {
      if (this.#status !== null) this.announce(`${UPLOAD_WORDS[state]}. ${words}.`);
      if (!final) this.#isCancelling = false;
      this.#status = state;
    } else if (!final && performance.now() - this.#announcedAt > ANNOUNCE_MS) {
      this.announce(words);
    }
    this.#showControls();
    this.#showConnection(this.#connection);
    this.#showMeasures(progress);
    this.#showVerdict(progress);
  }

  #showControls() {
    if (!this.#cards) return;
    const final = this.#status !== null && isFinal(this.#status);
    this.#$("cancel").hidden = !this.#offers("cancel") || this.#status === null || final;
    this.#$("cancel").disabled = this.#isCancelling;
    this.#$("delete").hidden = !this.#offers("delete") || !final;
  }

  /** Shows the forecast; at the end the receipt, with the forecast below. */
  #showMeasures({ status: state, forecast, receipt }) {
    this.#$("measures").hidden = !forecast;
    if (!forecast) return;
    const expected = {
      tiles: count(forecast.tiles),
      size: sizeRange(forecast.bytesLow, forecast.bytesHigh),
      time: timeRange(forecast.secondsLow ?? forecast.seconds, forecast.secondsHigh ?? forecast.seconds),
      cost: money(forecast.dollars),
    };
    const actual = isFinal(state) && receipt && {
      tiles: count(receipt.tiles),
      size: size(receipt.bytes),
      time: duration(receipt.seconds * 1000),
      cost: money(receipt.dollars),
    };
    this.#$("measures-title").textContent = actual ? "What it took" : "Forecast";
    for (const [name, text] of Object.entries(expected)) {
      const [value, note] = this.#$(`measure-${name}`).querySelectorAll("dd");
      value.textContent = actual ? actual[name] : text;
      note.textContent = actual ? `forecast ${text}` : "";
      note.hidden = !actual;
    }
  }

  #showVerdict({ status: state, reason, detail, totalPages: total, completedPages: done }) {
    const failed = total - done;
    let verdict = null;
    if (state === "failed") {
      const { title, help } = refusal(reason, total ? "No sheet could be made" : "This upload failed");
      verdict = { title, detail: sentence(detail ?? ""), help, type: reason, kind: "bad" };
    } else if (state === "partial") {
      const again = this.#offers("retry") ? ", and can be tried again" : "";
      verdict = { title: `${sheets(failed)} failed`, detail: `All other sheets are ready. Each failed sheet says why it failed${again}.`, kind: "warn" };
    } else if (state === "cancelled") {
      verdict = { title: "This upload was cancelled", detail: `${sheetsOf(done, total)} were ready before that and stay usable.`, kind: "warn" };
    }
    this.#$("verdict").hidden = !verdict;
    if (verdict) this.#fillVerdict(verdict);
  }

  #fillVerdict({ title, detail, help, type, kind }) {
    const panel = this.#$("verdict");
    panel.classList.toggle("bad", kind === "bad");
    panel.classList.toggle("warn", kind === "warn");
    for (const [name, text] of Object.entries({ title, detail, help, type })) {
      const element = this.#$(`verdict-${name}`);
      element.textContent = text ?? "";
      element.hidden = !text;
    }
    this.#$("verdict-type").parentElement.hidden = !type;
    this.#$("verdict-again").hidden = kind !== "bad" || !this.querySelector("[slot=again]");
    panel.hidden = false;
  }

  #showRefused(problem) {
    const { type = "Error", message, status: code } = problem;
    const isMissing = code === 404 || type === "BadReference";
    this.#$("file-name").textContent = isMissing ? "There is no such upload" : "This upload cannot be shown";
    this.#$("overall").hidden = true;
    this.#$("sheets-section").hidden = true;
    this.#fillVerdict({ title: isMissing ? "The server has nothing at this address" : "The server refuses it", detail: sentence(message), type, kind: "bad" });
    this.#tell("sitelink-refused", problem);
  }

  #showConnection(state) {
    this.#connection = state;
    const { startedAt, completedAt, receipt } = this.#progress ?? {};
    if (state === "live" && completedAt) state = "ended"; // the last state comes in a moment
    const text = {
      live: this.#isCancelling ? "Cancelling…" : "Live",
      reconnecting: "The connection was lost. Connecting again…",
      checking: "The server has sent nothing for a while. Asking it…",
      unreachable: "The server cannot be reached. Trying again…",
      ended: completedAt ? `Ended ${moment(completedAt)}${startedAt && !receipt ? ` after ${duration(new Date(completedAt) - new Date(startedAt))}` : ""}` : "",
    }[state];
    const news = this.#$("news");
    if (text === undefined) return;
    news.dataset.connection = state;
    if (news.textContent !== text) news.textContent = text; // a screen reader would read the same text again
  }

  async #cancel() {
    if (!confirm("Cancel this upload? The sheets that are ready stay.")) return;
    this.focus(); // the button with the focus disappears soon
    this.#isCancelling = true;
    this.#showControls();
    this.announce("Cancelling.");
    try {
      await cancel(this.upload, this.access);
      this.#showConnection(this.#connection);
    } catch (problem) {
      this.#isCancelling = false;
      this.#showControls();
      this.#$("news").textContent = `The upload could not be cancelled (${problem.type}). ${sentence(problem.message)}`;
    }
  }

  async #delete() {
    if (!confirm("Delete this upload, its PDF and all its sheets? This cannot be undone.")) return;
    this.#$("delete").disabled = true;
    try {
      const { upload } = this;
      await remove(upload, this.access);
      this.#tell("sitelink-deleted", { upload });
    } catch (problem) {
      this.#$("news").textContent = `The upload could not be deleted (${problem.type}). ${sentence(problem.message)}`;
    }
    this.#$("delete").disabled = false;
  }
}

reflect(ProgressElement, "upload", "server");
customElements.define("sitelink-progress", ProgressElement);
