// The sheets of an upload: a card for each, and the filter that chooses which are shown.

import { post, thumbnailUrl, uploadUrl } from "./api.js";
import { $, showBadge } from "./dom.js";
import { count, isFinal, sentence, SHEET_WORDS } from "./text.js";

export class Sheets {
  /** `opened(number)` is called when a person opens a sheet, `announce(text)` with what a screen reader should say. */
  constructor({ opened, announce }) {
    this.opened = opened;
    this.announce = announce;
    this.cards = new Map();
    this.counts = {};
    this.ref = null;
    this.progress = null;
    $("filter").addEventListener("change", () => this.#showFilter());
    $("sheets").addEventListener("click", (event) => this.#clicked(event));
  }

  /** Shows the sheets of another upload, at first none. */
  show(ref, progress) {
    this.ref = ref;
    this.progress = progress;
    this.cards.clear();
    this.counts = { all: 0, open: 0, ready: 0, failed: 0, noted: 0 };
    $("sheets").replaceChildren();
    $("filter").querySelector("input").checked = true;
    this.#showFilter();
    $("sheets-section").hidden = true;
  }

  hide() {
    this.progress = null;
  }

  card(number) {
    return this.cards.get(number);
  }

  /** Shows the sheets that are new or different, and drops the cards of sheets that are gone. */
  update(changed) {
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
    // New sheets come in the order of their numbers, all at once when the pages have been counted.
    $("sheets").append(fresh);
    if (this.cards.size > this.progress.sheets.size) this.#dropCards();
    $("sheets-section").hidden = this.cards.size === 0;
    this.#showFilter();
  }

  #dropCards() {
    for (const [number, card] of this.cards) {
      if (this.progress.sheets.has(number)) continue;
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
      list.remove(); // Chromium hides 2,000 items in 5 s while their list is in the page, and in 0.2 s while it is not
      list.dataset.filter = chosen;
      $("sheets-section").append(list);
    }
    for (const input of $("filter").querySelectorAll("input")) {
      const sheetCount = this.counts[input.value];
      input.parentElement.querySelector("b").textContent = count(sheetCount);
      input.parentElement.hidden = sheetCount === 0 && input.value !== chosen;
    }
    const alike = Object.values(groups).includes(all) && [0, all].includes(noted);
    $("filter").hidden = chosen === "all" && alike; // there is nothing to choose
    $("filter-empty").hidden = all === 0 || this.counts[chosen] > 0;
  }

  #clicked(event) {
    const number = Number(event.target.closest("li")?.dataset.number);
    if (event.target.closest(".open")) {
      this.opened(number);
    } else if (event.target.closest(".retry")) {
      this.#retry(number, event.target.closest(".retry"));
    }
  }

  async #retry(number, button) {
    const progress = this.progress;
    if (button.getAttribute("aria-disabled") === "true") return;
    button.setAttribute("aria-disabled", true); // not `disabled`: a disabled button loses the focus
    button.textContent = "Retry requested…";
    try {
      await post(`${uploadUrl(this.ref)}/sheets/${number}/retry`);
      this.announce(`Sheet ${number} will be tried again.`);
      if (isFinal(progress.head.status)) await progress.resume();
      const sheet = progress.sheets.get(number);
      if (this.progress === progress && sheet?.status === "failed") this.#showCard(this.cards.get(number), sheet);
    } catch (problem) {
      button.setAttribute("aria-disabled", false);
      button.textContent = "Retry";
      button.parentElement.querySelector(".detail").textContent = `${sentence(problem.message)} (${problem.type})`;
    }
  }
}

function group(status) {
  return status === "ready" || status === "failed" ? status : "open";
}
