// The form that sends a PDF, and the list of the plan's uploads.

import { getJson, sendFile, uploadsUrl } from "./api.js";
import { $, showBadge, showBar } from "./dom.js";
import { duration, isFinal, moment, refusal, sentence, sheets, sheetsOf, size, UPLOAD_WORDS } from "./text.js";

const REFRESH_MS = 10_000;
const NEWEST = 200; // the most that the API lists

export class Home {
  /** `opened(ref)` is called when the API has accepted a file. */
  constructor(opened) {
    this.opened = opened;
    this.plan = null;
    this.sending = null;
    this.timer = 0;
    this.list = "";

    $("file").addEventListener("change", () => this.#chosen());
    $("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    $("abort").addEventListener("click", () => this.sending?.abort());
    this.#acceptDrops();
  }

  /** `asked` is the plan that the address names, `plan` the one that is used. */
  show(plan, asked) {
    this.plan = plan;
    this.list = "";
    document.title = "SiteLink";
    $("home").hidden = false;
    $("uploads").replaceChildren();
    $("uploads-note").hidden = false;
    $("uploads-note").textContent = "Loading…";
    if (asked !== plan) this.#showError("BadPlan", `“${asked.slice(0, 200)}” is not a plan: that is organization/project/plan.`, "There is no such plan");
    this.#refresh();
  }

  hide() {
    this.plan = null;
    clearTimeout(this.timer);
    $("home").hidden = true;
  }

  #acceptDrops() {
    const drop = $("drop");
    const carriesFile = (event) => event.dataTransfer?.types.includes("Files");
    // A file dropped beside the box must not replace the page.
    for (const type of ["dragover", "drop"]) addEventListener(type, (event) => carriesFile(event) && event.preventDefault());
    addEventListener("dragover", (event) => {
      if (!$("home").hidden && carriesFile(event)) drop.classList.add("over");
    });
    addEventListener("dragleave", (event) => event.relatedTarget === null && drop.classList.remove("over"));
    addEventListener("drop", (event) => {
      drop.classList.remove("over");
      if ($("home").hidden || this.sending || !carriesFile(event)) return;
      const [file] = event.dataTransfer.files;
      if (!file) return;
      const one = new DataTransfer();
      one.items.add(file);
      $("file").files = one.files;
      this.#chosen();
      $("submit").focus();
    });
  }

  #chosen() {
    const [file] = $("file").files;
    $("form-error").hidden = true;
    $("chosen").textContent = file ? `${file.name} (${size(file.size)})` : "No file chosen";
    $("submit").hidden = !file;
    $("pick-label").textContent = file ? "Choose another" : "Choose a PDF";
    $("drop").classList.toggle("filled", Boolean(file));
  }

  async #send() {
    const [file] = $("file").files;
    if (!file || this.sending) return;
    const started = performance.now();
    $("form-error").hidden = true;
    $("drop").hidden = true;
    $("sending").hidden = false;
    $("sending-name").textContent = file.name;
    this.#showSent(0, file.size, 0);
    $("abort").focus();
    addEventListener("beforeunload", askBeforeLeaving);
    this.sending = sendFile(this.plan, file, (sent, total) => this.#showSent(sent, total, performance.now() - started));
    let answer = null;
    let problem = null;
    try {
      answer = await this.sending.done;
    } catch (error) {
      problem = error;
    }
    this.sending = null;
    removeEventListener("beforeunload", askBeforeLeaving);
    $("sending").hidden = true;
    $("drop").hidden = false;
    if (answer) {
      $("form").reset();
      this.#chosen();
      this.opened(answer.ref);
    } else if (problem) {
      this.#showError(problem.type, problem.message, "The upload was refused");
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
    $("sending-text").textContent = done ? "All bytes are sent, waiting for the server…" : `${size(sent)} of ${size(total)}${left}`;
  }

  #showError(type, detail, fallbackTitle) {
    const { title, help } = refusal(type, fallbackTitle);
    $("form-error-title").textContent = title;
    $("form-error-detail").textContent = sentence(detail);
    $("form-error-help").textContent = help;
    $("form-error-help").hidden = !help;
    $("form-error-type").textContent = type;
    $("form-error").hidden = false;
    $("form-error").focus();
  }

  async #refresh() {
    const plan = this.plan;
    let uploads = null;
    try {
      ({ uploads } = await getJson(`${uploadsUrl(plan)}?limit=${NEWEST}`));
    } catch (problem) {
      if (plan === this.plan) $("uploads-note").textContent = `The list could not be loaded (${problem.type}). ${sentence(problem.message)}`;
    }
    if (plan !== this.plan) return;
    if (uploads) this.#showList(uploads);
    if (!uploads || uploads.some((upload) => !isFinal(upload.status))) this.timer = setTimeout(() => this.#refresh(), REFRESH_MS);
  }

  #showList(uploads) {
    const list = JSON.stringify(uploads);
    if (list === this.list) return; // keeps the focus where it is
    this.list = list;
    const focused = document.activeElement?.closest?.("#uploads a")?.getAttribute("href");
    $("uploads-note").textContent =
      uploads.length === 0 ? "Nothing has been uploaded here yet." : uploads.length === NEWEST ? `The newest ${NEWEST} are shown.` : "";
    $("uploads-note").hidden = $("uploads-note").textContent === "";
    $("uploads").replaceChildren(...uploads.map(row));
    for (const link of $("uploads").querySelectorAll("a")) if (link.getAttribute("href") === focused) link.focus();
  }
}

function row(upload) {
  const item = $("row-template").content.cloneNode(true);
  const link = item.querySelector("a");
  link.href = `/?ref=${upload.ref}`;
  item.querySelector(".row-name").textContent = upload.fileName ?? "?";
  showBadge(item.querySelector(".badge"), upload.status, UPLOAD_WORDS);
  const done = upload.status === "complete" ? sheets(upload.totalPages) : sheetsOf(upload.completedPages, upload.totalPages);
  item.querySelector(".row-facts").textContent = [
    ...(upload.totalPages ? [done] : []),
    size(upload.sizeBytes),
    moment(upload.createdAt),
  ].join(" · ");
  return item;
}

function askBeforeLeaving(event) {
  event.preventDefault();
}
