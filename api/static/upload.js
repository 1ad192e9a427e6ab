// One upload: the overall bar, the verdict, a card for every sheet, and the drawing that is open.

import { descriptorUrl, parsePath, post, remove, thumbnailUrl, uploadUrl } from "./api.js";
import { $, showBadge, showBar } from "./dom.js";
import { Live } from "./live.js";
import { about, clockTime, count, duration, isFinal, moment, money, refusal, sentence, SHEET_WORDS, sheets, sheetsOf, size, sizeRange, UPLOAD_WORDS } from "./text.js";
import { Viewer } from "./viewer.js";

const ANNOUNCE_MS = 10_000;

export class UploadView {
  constructor() {
    this.ref = null;
    this.live = null;
    this.cards = new Map();
    this.counts = {};
    this.status = null;
    this.announcedAt = 0;
    this.viewer = new Viewer({
      sheet: (number) => this.live?.sheets.get(number),
      sheetCount: () => this.live?.sheets.size ?? 0,
      readySheets: () => this.#readySheets(),
      descriptor: (number) => descriptorUrl(this.ref, number),
      moved: (number) => history.replaceState(history.state, "", `#sheet=${number}`),
      closed: (number) => this.#viewerClosed(number),
    });
    $("cancel").addEventListener("click", () => this.#cancel());
    $("delete").addEventListener("click", () => this.#delete());
    $("filter").addEventListener("change", () => this.#showFilter());
    $("sheets").addEventListener("click", (event) => this.#clicked(event));
  }

  show(ref) {
    this.ref = ref;
    this.status = null;
    this.announcedAt = performance.now();
    this.cards.clear();
    this.counts = { all: 0, open: 0, ready: 0, failed: 0, noted: 0 };
    $("sheets").replaceChildren();
    $("filter").querySelector("input").checked = true;
    this.#showFilter();
    for (const id of ["sheets-section", "verdict", "warning", "cancel", "delete", "measures"]) $(id).hidden = true;
    for (const id of ["facts", "count", "percent", "news"]) $(id).textContent = "";
    $("status").hidden = true;
    $("overall").hidden = false;
    $("file-name").textContent = "Loading…";
    document.title = "SiteLink";
    $("upload").hidden = false;
    if (!parsePath(ref, 4)) {
      this.#showRefused({ type: "BadReference", message: `“${ref.slice(0, 200)}” is not organization/project/plan/upload.` });
      return;
    }
    this.live = new Live(ref, {
      changed: (head, changed) => this.#changed(head, changed),
      news: (kind, time) => this.#showNews(kind, time),
      warned: (text) => {
        $("warning").textContent = text ?? "";
        $("warning").hidden = !text;
      },
      refused: (problem) => this.#showRefused(problem),
    });
    this.live.start();
  }

  hide() {
    this.live?.stop();
    this.live = null;
    this.viewer.close();
    this.ref = null;
    $("upload").hidden = true;
  }

  /** Makes the open drawing what the address says: `#sheet=3`, or none. */
  syncViewer() {
    if (!this.live?.head) return; // comes again with the first state
    const wanted = Number(/^#sheet=([1-9]\d*)$/.exec(location.hash)?.[1] ?? 0);
    if (wanted === 0) {
      this.viewer.close();
    } else if (this.live.sheets.get(wanted)?.status === "ready") {
      this.viewer.open(wanted);
    } else {
      history.replaceState(null, "", location.pathname + location.search);
      this.viewer.close();
      const card = this.cards.get(wanted);
      card?.scrollIntoView({ block: "center" });
      this.#announce(card ? `Sheet ${wanted} is not ready yet.` : `There is no sheet ${wanted}.`);
    }
  }

  #viewerClosed(number) {
    if (location.hash) {
      // The entry that opening made is taken back, so that Back leaves the upload and does not open the drawing again.
      if (history.state?.opened) history.back();
      else history.replaceState(null, "", location.pathname + location.search);
    }
    const button = this.cards.get(number)?.querySelector(".open");
    button?.scrollIntoView({ block: "nearest" });
    button?.focus({ preventScroll: true });
  }

  #readySheets() {
    return [...(this.live?.sheets.values() ?? [])].filter((sheet) => sheet.status === "ready").map((sheet) => sheet.number).sort((a, b) => a - b);
  }

  #changed(head, changed) {
    const first = this.status === null;
    this.#showHead(head);
    this.#showCards(changed);
    if (first) this.syncViewer();
    else if (this.viewer.isOpen) this.viewer.update();
  }

  #showHead(head) {
    const { status, totalPages: total, completedPages: done } = head;
    const final = isFinal(status);
    document.title = `${final ? UPLOAD_WORDS[status] : total ? `${head.progress} %` : UPLOAD_WORDS[status]} · ${head.fileName}`;
    $("file-name").textContent = head.fileName;
    $("facts").textContent = [size(head.sizeBytes), `uploaded ${moment(head.createdAt)}`, ...(total ? [sheets(total)] : [])].join(" · ");
    showBadge($("status"), status, UPLOAD_WORDS);
    $("status").hidden = false;

    const words = total ? sheetsOf(done, total) : final ? "No sheets" : status === "queued" ? "Waiting to start" : "Counting the pages";
    $("count").textContent = words;
    $("percent").textContent = total ? `${head.progress} %` : "";
    showBar($("bar"), total ? head.progress / 100 : null, words);
    $("bar").dataset.status = status;
    $("overall").hidden = final && !total;
    if (final && document.activeElement === $("cancel")) $("file-name").focus();
    $("filter-open").textContent = final ? "Not done" : "In progress";
    $("cancel").hidden = final;
    $("delete").hidden = !final;

    if (status !== this.status) {
      if (this.status !== null) this.#announce(`${UPLOAD_WORDS[status]}. ${words}.`);
      if (!final) $("cancel").disabled = false;
      this.status = status;
    } else if (!final && performance.now() - this.announcedAt > ANNOUNCE_MS) {
      this.#announce(words);
    }
    this.#showMeasures(head);
    this.#showVerdict(head);
  }

  /** What it will take; at the end what it took, with what was expected below. */
  #showMeasures({ status, forecast, receipt }) {
    $("measures").hidden = !forecast;
    if (!forecast) return;
    const expected = {
      tiles: count(forecast.tiles),
      size: sizeRange(forecast.bytesLow, forecast.bytesHigh),
      time: about(forecast.seconds),
      cost: money(forecast.dollars),
    };
    const took = isFinal(status) && receipt && {
      tiles: count(receipt.tiles),
      size: size(receipt.bytes),
      time: duration(receipt.seconds * 1000),
      cost: money(receipt.dollars),
    };
    $("measures-title").textContent = took ? "What it took" : "Forecast";
    for (const [name, text] of Object.entries(expected)) {
      const [value, note] = $(`measure-${name}`).querySelectorAll("dd");
      value.textContent = took ? took[name] : text;
      note.textContent = took ? `forecast ${text}` : "";
      note.hidden = !took;
    }
  }

  #announce(text) {
    this.announcedAt = performance.now();
    $("announcer").textContent = text;
  }

  #showVerdict({ status, reason, detail, totalPages: total, completedPages: done }) {
    const failed = total - done;
    let said = null;
    if (status === "failed") {
      const { title, help } = refusal(reason, total ? "No sheet could be made" : "This upload failed");
      said = { title, detail: sentence(detail ?? ""), help, type: reason, kind: "bad" };
    } else if (status === "partial") {
      said = { title: `${sheets(failed)} failed`, detail: "All others are ready. A failed sheet says why, and can be tried again.", kind: "warn" };
    } else if (status === "cancelled") {
      said = { title: "This upload was cancelled", detail: `${sheetsOf(done, total)} became ready before that and stay usable.`, kind: "warn" };
    }
    $("verdict").hidden = !said;
    if (said) this.#say(said);
  }

  #say({ title, detail, help, type, kind }) {
    const panel = $("verdict");
    panel.classList.toggle("bad", kind === "bad");
    panel.classList.toggle("warn", kind === "warn");
    for (const [name, text] of Object.entries({ title, detail, help, type })) {
      const element = $(`verdict-${name}`);
      element.textContent = text ?? "";
      element.hidden = !text;
    }
    $("verdict-type").parentElement.hidden = !type;
    $("verdict-again").hidden = kind !== "bad";
    panel.hidden = false;
  }

  #showRefused({ type, message, status }) {
    document.title = "Not found · SiteLink";
    $("file-name").textContent = status === 404 || status === undefined ? "There is no such upload" : "This upload cannot be shown";
    $("overall").hidden = true;
    $("sheets-section").hidden = true;
    this.#say({ title: "The server has nothing at this address", detail: sentence(message), type, kind: "bad" });
  }

  #showNews(kind, time) {
    const { startedAt, completedAt, receipt } = this.live?.head ?? {};
    if (kind === "live" && completedAt) kind = "final"; // the end follows in a moment
    const text = {
      live: $("cancel").disabled ? "Cancelling…" : "Live",
      reconnecting: "The connection was lost. Connecting again…",
      checking: "No news for a minute. Checking with the server…",
      unchanged: `Checked at ${clockTime(Date.now())}: nothing has changed since ${time ? clockTime(time) : "the start"}.`,
      unreachable: "The server cannot be reached. Trying again…",
      final: completedAt ? `Ended ${moment(completedAt)}${startedAt && !receipt ? ` after ${duration(new Date(completedAt) - new Date(startedAt))}` : ""}` : "",
    }[kind];
    $("news").dataset.kind = kind;
    if ($("news").textContent !== text) $("news").textContent = text; // the same again would be read out again
  }

  #showCards(changed) {
    const fresh = document.createDocumentFragment();
    for (const sheet of changed) {
      let card = this.cards.get(sheet.number);
      if (!card) {
        card = $("sheet-template").content.cloneNode(true).firstElementChild;
        card.dataset.number = sheet.number;
        this.cards.set(sheet.number, card);
        fresh.append(card);
      } else {
        this.#tally(card, -1);
      }
      this.#showCard(card, sheet);
      this.#tally(card, 1);
    }
    // Sheets come by number; all at once when the pages have been counted.
    $("sheets").append(fresh);
    if (this.cards.size > this.live.sheets.size) this.#dropCards();
    $("sheets-section").hidden = this.cards.size === 0;
    this.#showFilter();
  }

  #dropCards() {
    for (const [number, card] of this.cards) {
      if (this.live.sheets.has(number)) continue;
      this.#tally(card, -1);
      card.remove();
      this.cards.delete(number);
    }
  }

  #tally(card, by) {
    this.counts.all += by;
    this.counts[card.dataset.group] += by;
    if ("noted" in card.dataset) this.counts.noted += by;
  }

  #showCard(card, sheet) {
    const ready = sheet.status === "ready";
    card.dataset.status = sheet.status;
    card.dataset.group = group(sheet.status);
    const open = card.querySelector(".open");
    open.disabled = !ready;
    card.querySelector(".number").textContent = sheet.number;
    card.querySelector(".title").textContent = sheet.title ?? `Sheet ${sheet.number}`;
    showBadge(card.querySelector(".state"), sheet.status, SHEET_WORDS);
    if (ready && sheet.scaled) card.querySelector(".state").lastElementChild.textContent += ` at ${sheet.dpi} dpi`;

    const paper = card.querySelector(".paper");
    if (!ready) {
      paper.replaceChildren();
    } else if (!paper.firstElementChild) {
      const image = new Image();
      image.loading = "lazy";
      image.decoding = "async";
      image.alt = "";
      image.src = thumbnailUrl(this.ref, sheet.number);
      paper.append(image);
    }

    const notes = card.querySelector(".notes");
    notes.hidden = !ready || !sheet.notes?.length;
    card.toggleAttribute("data-noted", !notes.hidden);
    if (!notes.hidden) {
      notes.querySelector("ul").replaceChildren(...sheet.notes.map(({ type, message }) => {
        const item = document.createElement("li");
        item.textContent = message;
        item.title = type;
        return item;
      }));
    }

    const failure = card.querySelector(".failure");
    if (sheet.status !== "failed" && failure.contains(document.activeElement)) {
      card.tabIndex = -1;
      card.focus();
    }
    failure.hidden = sheet.status !== "failed";
    if (!failure.hidden) {
      card.querySelector(".detail").textContent = sentence(sheet.detail ?? "");
      card.querySelector("code").textContent = sheet.reason ?? "";
      const retry = card.querySelector(".retry");
      retry.setAttribute("aria-disabled", false);
      retry.textContent = "Retry";
      retry.setAttribute("aria-label", `Retry sheet ${sheet.number}`);
    }
  }

  #showFilter() {
    const chosen = $("filter").querySelector("input:checked").value;
    const { all, noted, ...groups } = this.counts;
    const list = $("sheets");
    if (list.dataset.filter !== chosen) {
      list.remove(); // Chromium takes 5 s to hide 2,000 items of a list in the page one by one, and 0.2 s beside it
      list.dataset.filter = chosen;
      $("sheets-section").append(list);
    }
    for (const input of $("filter").querySelectorAll("input")) {
      const sheetCount = this.counts[input.value];
      input.parentElement.querySelector("b").textContent = count(sheetCount);
      input.parentElement.hidden = sheetCount === 0 && input.value !== chosen;
    }
    const alike = Object.values(groups).includes(all) && [0, all].includes(noted);
    $("filter").hidden = chosen === "all" && alike; // nothing to choose between
    $("filter-empty").hidden = all === 0 || this.counts[chosen] > 0;
  }

  #clicked(event) {
    const number = Number(event.target.closest("li")?.dataset.number);
    if (event.target.closest(".open")) {
      history.pushState({ opened: true }, "", `#sheet=${number}`);
      this.viewer.open(number);
    } else if (event.target.closest(".retry")) {
      this.#retry(number, event.target.closest(".retry"));
    }
  }

  async #retry(number, button) {
    const live = this.live;
    if (button.getAttribute("aria-disabled") === "true") return;
    button.setAttribute("aria-disabled", true); // not disabled: that would take the focus away
    button.textContent = "Asked to try again…";
    try {
      await post(`${uploadUrl(this.ref)}/sheets/${number}/retry`);
      this.#announce(`Sheet ${number} will be tried again.`);
      if (isFinal(live.head.status)) await live.resume();
      const sheet = live.sheets.get(number);
      if (this.live === live && sheet?.status === "failed") this.#showCard(this.cards.get(number), sheet);
    } catch (problem) {
      button.setAttribute("aria-disabled", false);
      button.textContent = "Retry";
      button.parentElement.querySelector(".detail").textContent = `${sentence(problem.message)} (${problem.type})`;
    }
  }

  async #cancel() {
    if (!confirm("Cancel this upload? Sheets that are ready stay.")) return;
    $("file-name").focus(); // the button is about to go
    $("cancel").disabled = true;
    this.#announce("Cancelling.");
    try {
      await post(`${uploadUrl(this.ref)}/cancel`);
      $("news").textContent = "Cancelling…";
    } catch (problem) {
      $("cancel").disabled = false;
      $("news").textContent = `It could not be cancelled (${problem.type}). ${sentence(problem.message)}`;
    }
  }

  async #delete() {
    if (!confirm("Delete this upload, its PDF and all its sheets? This cannot be undone.")) return;
    $("delete").disabled = true;
    try {
      await remove(uploadUrl(this.ref));
      location.assign($("back").href);
    } catch (problem) {
      $("news").textContent = `It could not be deleted (${problem.type}). ${sentence(problem.message)}`;
    }
    $("delete").disabled = false;
  }
}

function group(status) {
  return status === "ready" || status === "failed" ? status : "open";
}
