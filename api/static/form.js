// The form that sends a PDF: choose or drop a file, watch it being sent, read why it was refused.

import { showBar } from "/client/elements/shared.js";
import { duration, refusal, sentence, size } from "/client/elements/words.js";
import { upload } from "/client/sitelink.js";
import { $ } from "./dom.js";

export class UploadForm {
  /** `opened(ref)` is called when the API has accepted a file. */
  constructor(session, opened) {
    this.session = session;
    this.opened = opened;
    this.plan = null;
    this.sending = null;
    $("file").addEventListener("change", () => this.#fileChosen());
    $("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    $("abort").addEventListener("click", () => this.sending?.abort());
    this.#acceptDrops();
  }

  /** From now on files are sent to this plan. */
  show(plan) {
    this.plan = plan;
  }

  #acceptDrops() {
    const drop = $("drop");
    const carriesFile = (event) => event.dataTransfer?.types.includes("Files");
    // Otherwise the browser opens a file that is dropped beside the box, in place of the page.
    for (const type of ["dragover", "drop"]) addEventListener(type, (event) => carriesFile(event) && event.preventDefault());
    addEventListener("dragover", (event) => {
      if (!$("home").hidden && !$("form").hidden && carriesFile(event)) drop.classList.add("dragging");
    });
    addEventListener("dragleave", (event) => event.relatedTarget === null && drop.classList.remove("dragging"));
    addEventListener("drop", (event) => {
      drop.classList.remove("dragging");
      if ($("home").hidden || $("form").hidden || this.sending || !carriesFile(event)) return;
      const [file] = event.dataTransfer.files;
      if (!file) return;
      const transfer = new DataTransfer();
      transfer.items.add(file);
      $("file").files = transfer.files;
      this.#fileChosen();
      $("submit").focus();
    });
  }

  #fileChosen() {
    const [file] = $("file").files;
    $("form-error").hidden = true;
    $("chosen").textContent = file ? `${file.name} (${size(file.size)})` : "No file chosen";
    $("submit").hidden = !file;
    $("password-field").hidden = !file;
    $("pick-label").textContent = file ? "Choose another PDF" : "Choose a PDF";
    $("drop").classList.toggle("filled", Boolean(file));
  }

  async #send() {
    const [file] = $("file").files;
    if (!file || this.sending) return;
    let started = performance.now();
    $("form-error").hidden = true;
    $("drop").hidden = true;
    $("sending").hidden = false;
    $("sending-name").textContent = file.name;
    this.#showSent(0, file.size, 0);
    $("abort").focus();
    addEventListener("beforeunload", askBeforeLeaving);
    const sending = new AbortController();
    this.sending = sending;
    let answer = null;
    let problem = null;
    try {
      const onProgress = (sent, total) => this.#showSent(sent, total, performance.now() - started);
      await this.session.ensure();
      started = performance.now();
      answer = await upload(file, { to: this.plan, password: $("password").value, onProgress, signal: sending.signal, session: this.session.renew });
    } catch (error) {
      problem = error;
    }
    this.sending = null;
    removeEventListener("beforeunload", askBeforeLeaving);
    $("sending").hidden = true;
    $("drop").hidden = false;
    if (answer) {
      $("form").reset();
      this.#fileChosen();
      this.opened(answer.ref);
    } else if (!sending.signal.aborted) {
      this.showError(problem.type, problem.message, "The upload was refused");
    } else {
      $("submit").focus();
    }
  }

  #showSent(sent, total, elapsed) {
    const share = total ? sent / total : 0;
    const percent = Math.floor(share * 100);
    const done = total > 0 && sent >= total;
    const left = share > 0.02 && elapsed > 1500 && !done ? `, about ${duration((elapsed / share) * (1 - share))} left` : "";
    showBar($("sending-bar"), share, `${percent} %`);
    $("sending-percent").textContent = `${percent} %`;
    $("sending-text").textContent = done ? "The whole file is sent. Waiting for the server…" : `${size(sent)} of ${size(total)}${left}`;
  }

  /** Shows a refusal beside the form, and moves the focus there. */
  showError(type, detail, fallbackTitle) {
    const { title, help } = refusal(type, fallbackTitle);
    $("form-error-title").textContent = title;
    $("form-error-detail").textContent = sentence(detail);
    $("form-error-help").textContent = help;
    $("form-error-help").hidden = !help;
    $("form-error-type").textContent = type;
    $("form-error").hidden = false;
    $("form-error").focus();
  }
}

function askBeforeLeaving(event) {
  event.preventDefault();
}
