// The progress of one upload, kept true: read once, then followed by Server-Sent Events until it is final.

import { getJson, uploadUrl } from "./api.js";
import { isFinal } from "./text.js";

const SILENCE_MS = 60_000;
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
  }

  start() {
    this.#reconnect();
  }

  stop() {
    this.stopped = true;
    this.#disconnect();
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
    this.#take(document, whole);
    this.listener.warned(document.warning);
    this.listener.news("live");
    this.#awaitNews();
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
