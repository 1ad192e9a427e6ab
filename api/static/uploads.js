// The list of a plan's uploads, refreshed while one of them runs.

import { showBadge } from "/client/elements/shared.js";
import { moment, sentence, sheets, sheetsOf, size, UNKNOWN_NAME, UPLOAD_WORDS } from "/client/elements/words.js";
import { isFinal, uploads as listUploads } from "/client/sitelink.js";
import { $ } from "./dom.js";

const REFRESH_MS = 10_000;
const NEWEST = 200; // the API lists no more

export class UploadList {
  constructor(session) {
    this.session = session;
    this.plan = null;
    this.timer = 0;
    this.shownList = "";
  }

  show(plan) {
    this.plan = plan;
    this.shownList = "";
    $("uploads").replaceChildren();
    $("uploads-note").hidden = false;
    $("uploads-note").textContent = "Loading…";
    if (this.session.may("read")) this.#refresh();
    else $("uploads-note").textContent = "You may not see the uploads of this plan: your token lacks the scope “read”.";
  }

  hide() {
    this.plan = null;
    clearTimeout(this.timer);
  }

  async #refresh() {
    const plan = this.plan;
    let uploads = null;
    try {
      ({ uploads } = await listUploads(plan, { limit: NEWEST, session: this.session.renew }));
    } catch (problem) {
      if (plan === this.plan) $("uploads-note").textContent = `The list of uploads could not be loaded (${problem.type}). ${sentence(problem.message)}`;
    }
    if (plan !== this.plan) return;
    if (uploads) this.#showList(uploads);
    if (!uploads || uploads.some((upload) => !isFinal(upload.status))) this.timer = setTimeout(() => this.#refresh(), REFRESH_MS);
  }

  #showList(uploads) {
    const list = JSON.stringify(uploads);
    if (list === this.shownList) return; // a new list would lose the focus
    this.shownList = list;
    const focused = document.activeElement?.closest?.("#uploads a")?.getAttribute("href");
    $("uploads-note").textContent =
      uploads.length === 0 ? "Nothing has been uploaded here yet." : uploads.length === NEWEST ? `Only the newest ${NEWEST} uploads are shown.` : "";
    $("uploads-note").hidden = $("uploads-note").textContent === "";
    $("uploads").replaceChildren(...uploads.map(row));
    for (const link of $("uploads").querySelectorAll("a")) if (link.getAttribute("href") === focused) link.focus();
  }
}

function row(upload) {
  const item = $("row-template").content.cloneNode(true);
  const link = item.querySelector("a");
  link.href = `/?ref=${upload.ref}`;
  item.querySelector(".row-name").textContent = upload.fileName ?? UNKNOWN_NAME;
  showBadge(item.querySelector(".badge"), upload.status, UPLOAD_WORDS);
  const done = upload.status === "complete" ? sheets(upload.totalPages) : sheetsOf(upload.completedPages, upload.totalPages);
  item.querySelector(".row-facts").textContent = [
    ...(upload.totalPages ? [done] : []),
    size(upload.sizeBytes),
    moment(upload.createdAt),
  ].join(" · ");
  return item;
}
