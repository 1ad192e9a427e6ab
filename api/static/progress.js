// Follows the progress of one upload until it is final.
//
// A browser has six connections to a server, for all its tabs together, and an event stream holds one for hours. So all tabs of this origin
// share one stream. One visible tab holds it, and relays its events to the tabs that show the same upload. Every other tab polls the status,
// a hidden tab seldom.

import { getJson, uploadUrl } from "./api.js";
import { isFinal } from "./text.js";

const SILENCE_MS = 60_000;
const POLL_MS = 2000;
const RELAY_FRESH_MS = 5000;
const HIDDEN_POLL_MS = 15_000; // of a hidden tab a person sees the title only
const STREAM_LOCK = "sitelink stream";
const BACK_OFF_MS = [1000, 2000, 4000, 8000, 15_000, 30_000];

/**
 * Calls its listener:
 *   changed(head, sheets)    the counters, and the sheets that are new or different
 *   connection(state, time)  "live" | "reconnecting" | "checking" | "unchanged" | "unreachable" | "final"
 *   warning(text)            the status's warning; null when there is none
 *   refused(problem)         the upload cannot be shown
 */
export class Progress {
  constructor(ref, listener) {
    this.head = null;
    this.sheets = new Map();
    this.url = uploadUrl(ref);
    this.listener = listener;
    this.source = null;
    this.stopped = false;
    this.failures = 0;
    this.silenceTimer = 0;
    this.retryTimer = 0;
    this.streamHold = null; // its abort() gives the stream up, or ends the wait for it
    this.relayedAt = -Infinity; // the time of the last event from another tab
    this.channel = new BroadcastChannel(`sitelink ${ref}`);
    this.channel.onmessage = ({ data }) => this.#receiveFromTab(data);
    this.onVisibilityChange = () => {
      if (!this.head) return; // the first status is still on its way
      if (document.hidden) this.#follow();
      else this.#reconnect();
    };
  }

  start() {
    document.addEventListener("visibilitychange", this.onVisibilityChange);
    this.#reconnect();
  }

  stop() {
    this.stopped = true;
    this.#disconnect();
    this.channel.close();
    document.removeEventListener("visibilitychange", this.onVisibilityChange);
  }

  /** After a request for more work on an ended upload, whose stream is closed: polls until the upload has a new version. */
  async resume() {
    const before = this.head.version;
    for (let attempt = 0; attempt < 30 && !this.stopped && isFinal(this.head.status) && this.head.version === before; attempt++) {
      if (attempt > 0) await new Promise((resolve) => setTimeout(resolve, 1000));
      await this.#fetchStatus().catch(() => {});
    }
    if (!this.stopped && !this.source) this.#follow();
  }

  #disconnect() {
    this.source?.close();
    this.source = null;
    this.streamHold?.abort();
    this.streamHold = null;
    clearTimeout(this.silenceTimer);
    clearTimeout(this.retryTimer);
  }

  /** Fetches the status, then follows its changes. Only the status has the file's name and size, and tells why a stream was refused. */
  async #reconnect() {
    this.#disconnect();
    try {
      await this.#fetchStatus();
    } catch (problem) {
      this.#notAnswered(problem);
      this.#reconnectLater();
      return;
    }
    this.#follow();
  }

  #notAnswered(problem) {
    if (this.stopped) return;
    if (problem.transient) {
      this.listener.connection("unreachable");
    } else {
      this.stop();
      this.listener.refused(problem);
    }
  }

  #reconnectLater() {
    const wait = BACK_OFF_MS[Math.min(this.failures++, BACK_OFF_MS.length - 1)];
    clearTimeout(this.retryTimer);
    if (!this.stopped) this.retryTimer = setTimeout(() => this.#reconnect(), wait);
  }

  #follow() {
    if (this.stopped) return;
    this.#disconnect();
    if (isFinal(this.head.status)) {
      this.listener.connection("final");
      return;
    }
    this.#pollLater();
    if (!document.hidden) this.#awaitStream();
  }

  /** Waits until no other tab holds the stream, then holds it until this tab is hidden or closed, or needs no stream any more. */
  async #awaitStream() {
    const hold = new AbortController();
    this.streamHold = hold;
    const ended = new Promise((resolve) => hold.signal.addEventListener("abort", resolve));
    const stream = () => {
      if (hold.signal.aborted) return undefined;
      this.#openStream();
      return ended;
    };
    // Browsers offer locks to secure origins only (https, and http on loopback). Elsewhere each visible tab has its own stream.
    if (navigator.locks) await navigator.locks.request(STREAM_LOCK, { signal: hold.signal }, stream).catch(() => {});
    else stream();
  }

  /** Without the stream: fetches the status after a while, unless the tab that holds the stream has relayed an event lately. */
  #pollLater() {
    clearTimeout(this.retryTimer);
    const wait = document.hidden ? HIDDEN_POLL_MS : POLL_MS;
    this.retryTimer = setTimeout(async () => {
      if (performance.now() - this.relayedAt > RELAY_FRESH_MS) {
        try {
          await this.#fetchStatus();
        } catch (problem) {
          this.#notAnswered(problem);
          this.#disconnect();
          this.#reconnectLater();
          return;
        }
      }
      if (this.stopped || this.source) return;
      this.listener.connection("live");
      if (isFinal(this.head.status)) this.#follow();
      else this.#pollLater();
    }, wait);
  }

  #openStream() {
    clearTimeout(this.retryTimer);
    this.#restartSilenceTimer();
    const source = new EventSource(`${this.url}/events?after=${this.head.version}`);
    this.source = source;
    source.onopen = () => {
      this.failures = 0;
      this.listener.connection("live");
    };
    source.addEventListener("snapshot", (event) => this.#receive(JSON.parse(event.data), true));
    source.addEventListener("change", (event) => this.#receive(JSON.parse(event.data), false));
    source.addEventListener("end", (event) => {
      this.#receive(JSON.parse(event.data), true);
      this.#follow();
    });
    source.onerror = () => {
      if (this.source !== source) return;
      this.listener.connection("reconnecting");
      // EventSource connects again by itself after a lost connection, but not after an answer other than 200.
      if (source.readyState === EventSource.CLOSED) {
        clearTimeout(this.silenceTimer);
        this.#reconnectLater();
      }
    };
  }

  #receive(document, whole) {
    this.channel.postMessage({ document, whole, since: this.head.version });
    this.#merge(document, whole);
    this.listener.warning(document.warning);
    this.listener.connection("live");
    this.#restartSilenceTimer();
  }

  /** Takes an event that another tab relays; `since` is the version to which the event's changes apply. */
  async #receiveFromTab({ document, whole, since }) {
    if (!this.head || this.stopped) return;
    this.relayedAt = performance.now();
    if (whole || this.head.version >= since) this.#merge(document, whole);
    else await this.#fetchStatus().catch(() => {}); // this tab lacks the version that the event changes
    if (this.stopped) return;
    this.listener.warning(document.warning);
    this.listener.connection("live");
    if (isFinal(this.head.status)) this.#follow();
  }

  #restartSilenceTimer() {
    clearTimeout(this.silenceTimer);
    if (!this.stopped) this.silenceTimer = setTimeout(() => this.#checkSilentStream(), SILENCE_MS);
  }

  async #checkSilentStream() {
    this.listener.connection("checking");
    try {
      const isNewer = await this.#fetchStatus();
      // The status is newer than the stream's last event, so the stream is dead: open a new one.
      if (isNewer) this.#follow();
      else if (!this.stopped) this.listener.connection("unchanged", this.head.updatedAt);
    } catch (problem) {
      this.#notAnswered(problem);
    }
    if (!this.stopped && this.source) this.#restartSilenceTimer();
  }

  /** Fetches the status; returns whether it was newer than the known one. */
  async #fetchStatus() {
    const document = await getJson(this.url);
    if (this.stopped) return false;
    const isNewer = this.#merge(document, true);
    this.listener.warning(document.warning);
    return isNewer;
  }

  #merge(document, whole) {
    if (this.stopped || (this.head && document.version < this.head.version)) return false; // an event was faster
    const isNewer = document.version !== this.head?.version;
    const { sheets, ...head } = document;
    this.head = { ...this.head, ...head }; // events lack the file's name and size
    if (whole) {
      const present = new Set(sheets.map((sheet) => sheet.number));
      for (const number of this.sheets.keys()) if (!present.has(number)) this.sheets.delete(number);
    }
    const changed = sheets.filter((sheet) => this.sheets.get(sheet.number)?.version !== sheet.version);
    for (const sheet of changed) this.sheets.set(sheet.number, sheet);
    this.listener.changed(this.head, changed);
    return isNewer;
  }
}
