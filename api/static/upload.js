// Shows one upload: its state, overall progress, measures and verdict. Sheets and viewer have files of their own.

import { descriptorUrl, parsePath, post, remove, uploadUrl } from "./api.js";
import { $, showBadge, showBar } from "./dom.js";
import { Progress } from "./progress.js";
import { Sheets } from "./sheets.js";
import { about, clockTime, count, duration, isFinal, moment, money, refusal, sentence, sheets, sheetsOf, size, sizeRange, UNKNOWN_NAME, UPLOAD_WORDS } from "./text.js";
import { Viewer } from "./viewer.js";

const ANNOUNCE_MS = 10_000;

export class UploadView {
  constructor() {
    this.ref = null;
    this.progress = null;
    this.status = null;
    this.announcedAt = 0;
    this.sheets = new Sheets({
      opened: (number) => {
        history.pushState({ opened: true }, "", `#sheet=${number}`);
        this.viewer.open(number);
      },
      announce: (text) => this.#announce(text),
    });
    this.viewer = new Viewer({
      sheet: (number) => this.progress?.sheets.get(number),
      sheetCount: () => this.progress?.sheets.size ?? 0,
      readySheets: () => this.#readySheets(),
      descriptor: (number) => descriptorUrl(this.ref, number),
      moved: (number) => history.replaceState(history.state, "", `#sheet=${number}`),
      closed: (number) => this.#viewerClosed(number),
    });
    $("cancel").addEventListener("click", () => this.#cancel());
    $("delete").addEventListener("click", () => this.#delete());
  }

  show(ref) {
    this.ref = ref;
    this.status = null;
    this.announcedAt = performance.now();
    this.progress = parsePath(ref, 4) ? this.#newProgress(ref) : null;
    this.sheets.show(ref, this.progress);
    for (const id of ["verdict", "warning", "cancel", "delete", "measures"]) $(id).hidden = true;
    for (const id of ["facts", "count", "percent", "news"]) $(id).textContent = "";
    $("status").hidden = true;
    $("overall").hidden = false;
    $("file-name").textContent = "Loading…";
    document.title = "SiteLink";
    $("upload").hidden = false;
    if (this.progress) this.progress.start();
    else this.#showRefused({ type: "BadReference", message: `“${ref.slice(0, 200)}” does not name an upload: its form is not organization/project/plan/upload.` });
  }

  #newProgress(ref) {
    return new Progress(ref, {
      changed: (head, changed) => this.#changed(head, changed),
      connection: (state, time) => this.#showConnection(state, time),
      warning: (text) => {
        $("warning").textContent = text ?? "";
        $("warning").hidden = !text;
      },
      refused: (problem) => this.#showRefused(problem),
    });
  }

  hide() {
    this.progress?.stop();
    this.progress = null;
    this.sheets.hide();
    this.viewer.close();
    this.ref = null;
    $("upload").hidden = true;
  }

  /** Opens the sheet that the address names, as `#sheet=3`, or closes the viewer. */
  syncViewer() {
    if (!this.progress?.head) return; // the first status calls this again
    const wanted = Number(/^#sheet=([1-9]\d*)$/.exec(location.hash)?.[1] ?? 0);
    if (wanted === 0) {
      this.viewer.close();
    } else if (this.progress.sheets.get(wanted)?.status === "ready") {
      this.viewer.open(wanted);
    } else {
      history.replaceState(null, "", location.pathname + location.search);
      this.viewer.close();
      const card = this.sheets.card(wanted);
      card?.scrollIntoView({ block: "center" });
      this.#announce(card ? `Sheet ${wanted} is not ready yet.` : `There is no sheet ${wanted}.`);
    }
  }

  #viewerClosed(number) {
    if (location.hash) {
      // Removes the history entry of the opening: then Back leaves the upload instead of opening the sheet again.
      if (history.state?.opened) history.back();
      else history.replaceState(null, "", location.pathname + location.search);
    }
    const button = this.sheets.card(number)?.querySelector(".open");
    button?.scrollIntoView({ block: "nearest" });
    button?.focus({ preventScroll: true });
  }

  #readySheets() {
    return [...(this.progress?.sheets.values() ?? [])].filter((sheet) => sheet.status === "ready").map((sheet) => sheet.number).sort((a, b) => a - b);
  }

  #changed(head, changed) {
    const first = this.status === null;
    this.#showHead(head);
    this.sheets.update(changed);
    if (first) this.syncViewer();
    else if (this.viewer.isOpen) this.viewer.update();
  }

  #showHead(head) {
    const { status, totalPages: total, completedPages: done } = head;
    const final = isFinal(status);
    document.title = `${final ? UPLOAD_WORDS[status] : total ? `${head.progress} %` : UPLOAD_WORDS[status]} · ${head.fileName ?? UNKNOWN_NAME}`;
    $("file-name").textContent = head.fileName ?? UNKNOWN_NAME;
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

  /** Shows the forecast; at the end the receipt, with the forecast below. */
  #showMeasures({ status, forecast, receipt }) {
    $("measures").hidden = !forecast;
    if (!forecast) return;
    const expected = {
      tiles: count(forecast.tiles),
      size: sizeRange(forecast.bytesLow, forecast.bytesHigh),
      time: about(forecast.seconds),
      cost: money(forecast.dollars),
    };
    const actual = isFinal(status) && receipt && {
      tiles: count(receipt.tiles),
      size: size(receipt.bytes),
      time: duration(receipt.seconds * 1000),
      cost: money(receipt.dollars),
    };
    $("measures-title").textContent = actual ? "What it took" : "Forecast";
    for (const [name, text] of Object.entries(expected)) {
      const [value, note] = $(`measure-${name}`).querySelectorAll("dd");
      value.textContent = actual ? actual[name] : text;
      note.textContent = actual ? `forecast ${text}` : "";
      note.hidden = !actual;
    }
  }

  #announce(text) {
    this.announcedAt = performance.now();
    $("announcer").textContent = text;
  }

  #showVerdict({ status, reason, detail, totalPages: total, completedPages: done }) {
    const failed = total - done;
    let verdict = null;
    if (status === "failed") {
      const { title, help } = refusal(reason, total ? "No sheet could be made" : "This upload failed");
      verdict = { title, detail: sentence(detail ?? ""), help, type: reason, kind: "bad" };
    } else if (status === "partial") {
      verdict = { title: `${sheets(failed)} failed`, detail: "All other sheets are ready. Each failed sheet says why it failed, and can be tried again.", kind: "warn" };
    } else if (status === "cancelled") {
      verdict = { title: "This upload was cancelled", detail: `${sheetsOf(done, total)} were ready before that and stay usable.`, kind: "warn" };
    }
    $("verdict").hidden = !verdict;
    if (verdict) this.#fillVerdict(verdict);
  }

  #fillVerdict({ title, detail, help, type, kind }) {
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
    this.#fillVerdict({ title: "The server has nothing at this address", detail: sentence(message), type, kind: "bad" });
  }

  #showConnection(state, time) {
    const { startedAt, completedAt, receipt } = this.progress?.head ?? {};
    if (state === "live" && completedAt) state = "final"; // the event `end` comes in a moment
    const text = {
      live: $("cancel").disabled ? "Cancelling…" : "Live",
      reconnecting: "The connection was lost. Connecting again…",
      checking: "The server has sent nothing for a minute. Asking it…",
      unchanged: `Checked at ${clockTime(Date.now())}: nothing has changed since ${time ? clockTime(time) : "the start"}.`,
      unreachable: "The server cannot be reached. Trying again…",
      final: completedAt ? `Ended ${moment(completedAt)}${startedAt && !receipt ? ` after ${duration(new Date(completedAt) - new Date(startedAt))}` : ""}` : "",
    }[state];
    $("news").dataset.connection = state;
    if ($("news").textContent !== text) $("news").textContent = text; // a screen reader would read the same text again
  }

  async #cancel() {
    if (!confirm("Cancel this upload? The sheets that are ready stay.")) return;
    $("file-name").focus(); // the button with the focus disappears soon
    $("cancel").disabled = true;
    this.#announce("Cancelling.");
    try {
      await post(`${uploadUrl(this.ref)}/cancel`);
      $("news").textContent = "Cancelling…";
    } catch (problem) {
      $("cancel").disabled = false;
      $("news").textContent = `The upload could not be cancelled (${problem.type}). ${sentence(problem.message)}`;
    }
  }

  async #delete() {
    if (!confirm("Delete this upload, its PDF and all its sheets? This cannot be undone.")) return;
    $("delete").disabled = true;
    try {
      await remove(uploadUrl(this.ref));
      location.assign($("back").href);
    } catch (problem) {
      $("news").textContent = `The upload could not be deleted (${problem.type}). ${sentence(problem.message)}`;
    }
    $("delete").disabled = false;
  }
}
