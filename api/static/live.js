// The progress of one upload, kept true: read once, then followed until it is final.
//
// A browser has six connections to a server, for all its tabs together. A stream holds one for hours, so there is one stream for all tabs of
// this origin: the visible tab whose turn it is has it, and passes on what it hears to the tabs that show the same upload. Every other tab
// asks now and then, a hidden one seldom.

import { getJson, uploadUrl } from "./api.js";
import { isFinal } from "./text.js";

const SILENCE_MS = 60_000;
const ASK_MS = 2000;
const HEARD_MS = 5000;
const ASK_HIDDEN_MS = 15_000; // only the tab's title shows it
const TURN = "sitelink stream";
const BACK_OFF_MS = [1000, 2000, 4000, 8000, 15_000, 30_000];

/**
 * Calls its listener:
 *   changed(head, sheets)  the counters, and the sheets that are new or different
 *   news(kind, time)       "live" | "reconnecting" | "checking" | "unchanged" | "unreachable" | "final"
 *   warned(text)           what the status said when it was asked; null when all is well
 *   refused(problem)       there is no such upload
 */
export class Live {
  constructor(ref, listener) {
    this.head = null;
    this.sheets = new Map();
    this.url = uploadUrl(ref);
    this.listener = listener;
    this.source = null;
    this.stopped = false;
    this.failures = 0;
    this.silence = 0;
    this.retry = 0;
    this.turn = null; // ends this tab's turn, or its wait for one
    this.heardAt = -Infinity; // when another tab passed something on
    this.channel = new BroadcastChannel(`sitelink ${ref}`);
    this.channel.onmessage = ({ data }) => this.#overhear(data);
    this.visibility = () => {
      if (!this.head) return; // the first answer is under way
      if (document.hidden) this.#follow();
      else this.#reconnect();
    };
  }

  start() {
    document.addEventListener("visibilitychange", this.visibility);
    this.#reconnect();
  }

  stop() {
    this.stopped = true;
    this.#disconnect();
    this.channel.close();
    document.removeEventListener("visibilitychange", this.visibility);
  }

  /** Someone asked for more work on an upload that had ended: its stream is closed, so ask until something moves. */
  async resume() {
    const before = this.head.version;
    for (let attempt = 0; attempt < 30 && !this.stopped && isFinal(this.head.status) && this.head.version === before; attempt++) {
      if (attempt > 0) await new Promise((resolve) => setTimeout(resolve, 1000));
      await this.#ask().catch(() => {});
    }
    if (!this.stopped && !this.source) this.#follow();
  }

  #disconnect() {
    this.source?.close();
    this.source = null;
    this.turn?.abort();
    this.turn = null;
    clearTimeout(this.silence);
    clearTimeout(this.retry);
  }

  /** Asks for the status, then follows from there. The status goes first: only it knows the file, and why a stream was refused. */
  async #reconnect() {
    this.#disconnect();
    try {
      await this.#ask();
    } catch (problem) {
      this.#unanswered(problem);
      this.#reconnectLater();
      return;
    }
    this.#follow();
  }

  #unanswered(problem) {
    if (this.stopped) return;
    if (problem.transient) {
      this.listener.news("unreachable");
    } else {
      this.stop();
      this.listener.refused(problem);
    }
  }

  #reconnectLater() {
    const wait = BACK_OFF_MS[Math.min(this.failures++, BACK_OFF_MS.length - 1)];
    clearTimeout(this.retry);
    if (!this.stopped) this.retry = setTimeout(() => this.#reconnect(), wait);
  }

  #follow() {
    if (this.stopped) return;
    this.#disconnect();
    if (isFinal(this.head.status)) {
      this.listener.news("final");
      return;
    }
    this.#askLater();
    if (!document.hidden) this.#awaitTurn();
  }

  /** Waits until no other tab has the stream, then has it until this tab is hidden or closed, or needs no stream any more. */
  async #awaitTurn() {
    const turn = new AbortController();
    this.turn = turn;
    const ended = new Promise((resolve) => turn.signal.addEventListener("abort", resolve));
    const stream = () => {
      if (turn.signal.aborted) return undefined;
      this.#openStream();
      return ended;
    };
    // Only secure origins have locks (https, and http on loopback). Elsewhere each visible tab has a stream of its own.
    if (navigator.locks) await navigator.locks.request(TURN, { signal: turn.signal }, stream).catch(() => {});
    else stream();
  }

  /** Without the stream: asks, unless the tab that has it passes on what it hears. */
  #askLater() {
    clearTimeout(this.retry);
    const wait = document.hidden ? ASK_HIDDEN_MS : ASK_MS;
    this.retry = setTimeout(async () => {
      if (performance.now() - this.heardAt > HEARD_MS) {
        try {
          await this.#ask();
        } catch (problem) {
          this.#unanswered(problem);
          this.#disconnect();
          this.#reconnectLater();
          return;
        }
      }
      if (this.stopped || this.source) return;
      this.listener.news("live");
      if (isFinal(this.head.status)) this.#follow();
      else this.#askLater();
    }, wait);
  }

  #openStream() {
    clearTimeout(this.retry);
    this.#awaitNews();
    const source = new EventSource(`${this.url}/events?after=${this.head.version}`);
    this.source = source;
    source.onopen = () => {
      this.failures = 0;
      this.listener.news("live");
    };
    source.addEventListener("snapshot", (event) => this.#hear(JSON.parse(event.data), true));
    source.addEventListener("change", (event) => this.#hear(JSON.parse(event.data), false));
    source.addEventListener("end", (event) => {
      this.#hear(JSON.parse(event.data), true);
      this.#follow();
    });
    source.onerror = () => {
      if (this.source !== source) return;
      this.listener.news("reconnecting");
      // EventSource comes back by itself after a lost connection, and never after an answer other than 200.
      if (source.readyState === EventSource.CLOSED) {
        clearTimeout(this.silence);
        this.#reconnectLater();
      }
    };
  }

  #hear(document, whole) {
    this.channel.postMessage({ document, whole, since: this.head.version });
    this.#take(document, whole);
    this.listener.warned(document.warning);
    this.listener.news("live");
    this.#awaitNews();
  }

  /** The tab that has the stream shows this upload, too, and passed on a document; `since` is the version that it changes. */
  async #overhear({ document, whole, since }) {
    if (!this.head || this.stopped) return;
    this.heardAt = performance.now();
    if (whole || this.head.version >= since) this.#take(document, whole);
    else await this.#ask().catch(() => {}); // a change of a state that this tab has never seen
    if (this.stopped) return;
    this.listener.warned(document.warning);
    this.listener.news("live");
    if (isFinal(this.head.status)) this.#follow();
  }

  #awaitNews() {
    clearTimeout(this.silence);
    if (!this.stopped) this.silence = setTimeout(() => this.#check(), SILENCE_MS);
  }

  async #check() {
    this.listener.news("checking");
    try {
      const moved = await this.#ask();
      // Progress that the stream did not bring: the stream is dead. Make a new one.
      if (moved) this.#follow();
      else if (!this.stopped) this.listener.news("unchanged", this.head.updatedAt);
    } catch (problem) {
      this.#unanswered(problem);
    }
    if (!this.stopped && this.source) this.#awaitNews();
  }

  /** Returns whether the status was newer than what was known. */
  async #ask() {
    const document = await getJson(this.url);
    if (this.stopped) return false;
    const moved = this.#take(document, true);
    this.listener.warned(document.warning);
    return moved;
  }

  #take(document, whole) {
    if (this.stopped || (this.head && document.version < this.head.version)) return false; // overtaken by an event
    const moved = document.version !== this.head?.version;
    const { sheets, ...head } = document;
    this.head = { ...this.head, ...head }; // events do not repeat the file's name and size
    if (whole) {
      const present = new Set(sheets.map((sheet) => sheet.number));
      for (const number of this.sheets.keys()) if (!present.has(number)) this.sheets.delete(number);
    }
    const changed = sheets.filter((sheet) => this.sheets.get(sheet.number)?.version !== sheet.version);
    for (const sheet of changed) this.sheets.set(sheet.number, sheet);
    this.listener.changed(this.head, changed);
    return moved;
  }
}
