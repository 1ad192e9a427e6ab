// The sheets of an upload: a card for each, and the filter that chooses which are shown.

import { isFinal, prioritize, retry, thumbnail, thumbnailBlob } from "../sitelink.js";
import { icon, showBadge } from "./shared.js";
import { count, sentence, SHEET_WORDS } from "./words.js";

const AHEAD = "600px"; // thumbnails so far below the window are loaded, too

export const SHEETS_HTML = `
  <section part="sheets" aria-labelledby="sheets-title" id="sheets-section" hidden>
    <h2 class="hidden" id="sheets-title">Sheets</h2>
    <fieldset class="filter" id="filter" part="filter">
      <legend class="hidden">Show sheets</legend>
      <label><input type="radio" name="filter" value="all" checked><span>All <b></b></span></label>
      <label><input type="radio" name="filter" value="open"><span><span id="filter-open">In progress</span> <b></b></span></label>
      <label><input type="radio" name="filter" value="ready"><span>Ready <b></b></span></label>
      <label><input type="radio" name="filter" value="failed"><span>Failed <b></b></span></label>
      <label><input type="radio" name="filter" value="noted"><span>With notes <b></b></span></label>
    </fieldset>
    <p class="muted" id="filter-empty" hidden>No sheet matches this filter.</p>
    <ol class="sheets" id="sheets"></ol>
  </section>
  <template id="sheet-template">
    <li class="sheet" part="sheet">
      <button type="button" class="open" part="open" disabled>
        <span class="paper" part="thumbnail"></span>
        <span class="caption"><span class="number"></span><span class="title" part="title"></span></span>
        <span class="state" part="state">${icon()}<span></span></span>
      </button>
      <details class="notes" hidden>
        <summary>${icon("partial")}<span>May differ from the PDF</span></summary>
        <ul></ul>
      </details>
      <div class="failure" hidden>
        <p class="detail"></p>
        <p class="reason"><code></code></p>
        <button type="button" class="button retry" part="button">Retry</button>
      </div>
    </li>
  </template>`;

export class Sheets {
  #root;
  #element;

  /**
   * `element` is the <sitelink-progress>, `opened(number)` is called when a person opens a sheet, `announce(text)` with what a screen reader should
   * say, `resume()` after a request for more work, which may come after the end, `offers(action)` tells whether a person may ask for it.
   */
  constructor(root, element, { opened, announce, resume, offers }) {
    this.#root = root;
    this.#element = element;
    this.opened = opened;
    this.announce = announce;
    this.resume = resume;
    this.offers = offers;
    this.seen = new IntersectionObserver((entries) => this.#seen(entries), { rootMargin: AHEAD });
    this.cards = new Map();
    this.prioritized = new Set();
    this.counts = {};
    this.#$("filter").addEventListener("change", () => this.#showFilter());
    this.#$("sheets").addEventListener("click", (event) => this.#clicked(event));
  }

  /** Shows no sheet: those of another upload follow. */
  clear() {
    this.seen.disconnect();
    this.cards.clear();
    this.prioritized.clear();
    this.counts = { all: 0, open: 0, ready: 0, failed: 0, noted: 0 };
    this.#$("sheets").replaceChildren();
    this.#$("filter").querySelector("input").checked = true;
    this.#showFilter();
    this.#$("sheets-section").hidden = true;
  }

  #$(id) {
    return this.#root.getElementById(id);
  }

  card(number) {
    return this.cards.get(number);
  }

  /** Shows the sheets that are new or different, and drops the cards of sheets that are gone. */
  update(changed, all) {
    const fresh = document.createDocumentFragment();
    for (const sheet of changed) {
      let card = this.cards.get(sheet.number);
      if (!card) {
        card = this.#$("sheet-template").content.cloneNode(true).firstElementChild;
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
    this.#$("sheets").append(fresh);
    if (this.cards.size > all.size) this.#dropCards(all);
    this.#$("sheets-section").hidden = this.cards.size === 0;
    this.#showFilter();
  }

  #dropCards(all) {
    for (const [number, card] of this.cards) {
      if (all.has(number)) continue;
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
    const waits = sheet.status === "pending";
    if (!waits) this.prioritized.delete(sheet.number);
    card.dataset.status = sheet.status;
    card.dataset.group = group(sheet.status);
    const open = card.querySelector(".open");
    // The button of a sheet whose turn has come keeps the focus until the sheet is ready.
    const canOpen = waits ? this.#canPrioritize(sheet) : ready || (sheet.status !== "failed" && !open.disabled);
    if (!canOpen && open === this.#root.activeElement) {
      card.tabIndex = -1;
      card.focus();
    }
    open.disabled = !canOpen;
    open.title = waits && canOpen ? "Have this sheet made next" : "";
    card.querySelector(".number").textContent = sheet.number;
    card.querySelector(".title").textContent = sheet.title ?? `Sheet ${sheet.number}`;
    showBadge(card.querySelector(".state"), sheet.status, SHEET_WORDS);
    if (waits && this.prioritized.has(sheet.number)) card.querySelector(".state").lastElementChild.textContent += ", comes next";
    if (ready && sheet.scaled) card.querySelector(".state").lastElementChild.textContent += ` at ${sheet.dpi} dpi`;

    const paper = card.querySelector(".paper");
    if (!ready && !sheet.thumbnail) {
      paper.replaceChildren();
    } else if (!paper.firstElementChild) {
      const image = new Image();
      image.decoding = "async";
      image.alt = "";
      paper.append(image);
      this.seen.observe(card);
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
    if (sheet.status !== "failed" && failure.contains(this.#root.activeElement)) {
      card.tabIndex = -1;
      card.focus();
    }
    failure.hidden = sheet.status !== "failed";
    if (!failure.hidden) {
      card.querySelector(".detail").textContent = sentence(sheet.detail ?? "");
      card.querySelector("code").textContent = sheet.reason ?? "";
      const button = card.querySelector(".retry");
      button.hidden = !this.offers("retry");
      button.setAttribute("aria-disabled", false);
      button.textContent = "Retry";
      button.setAttribute("aria-label", `Retry sheet ${sheet.number}`);
    }
  }

  #showFilter() {
    const chosen = this.#$("filter").querySelector("input:checked").value;
    const { all, noted, ...groups } = this.counts;
    const list = this.#$("sheets");
    if (list.dataset.filter !== chosen) {
      list.remove(); // Chromium hides 2,000 items in 5 s while their list is in the page, and in 0.2 s while it is not
      list.dataset.filter = chosen;
      this.#$("sheets-section").append(list);
    }
    for (const input of this.#$("filter").querySelectorAll("input")) {
      const sheetCount = this.counts[input.value];
      input.parentElement.querySelector("b").textContent = count(sheetCount);
      input.parentElement.hidden = sheetCount === 0 && input.value !== chosen;
    }
    const alike = Object.values(groups).includes(all) && [0, all].includes(noted);
    this.#$("filter").hidden = chosen === "all" && alike; // there is nothing to choose
    this.#$("filter-empty").hidden = all === 0 || this.counts[chosen] > 0;
  }

  #clicked(event) {
    const number = Number(event.target.closest("li")?.dataset.number);
    if (event.target.closest(".open")) {
      if (this.#element.sheet(number)?.status === "ready") this.opened(number);
      else this.prioritize(number);
    } else if (event.target.closest(".retry")) {
      this.#retry(number, event.target.closest(".retry"));
    }
  }

  /** Loads the thumbnails of cards that come into view. Not by `loading="lazy"`: a ticket in an address could have expired by then. */
  #seen(entries) {
    for (const { isIntersecting, target: card } of entries) {
      if (!isIntersecting) continue;
      this.seen.unobserve(card);
      const image = card.querySelector(".paper img");
      if (image) this.#loadThumbnail(image, Number(card.dataset.number));
    }
  }

  async #loadThumbnail(image, number) {
    const { upload, access } = this.#element;
    const loadBlob = async () => {
      const address = URL.createObjectURL(await thumbnailBlob(upload, number, access));
      image.addEventListener("load", () => URL.revokeObjectURL(address), { once: true });
      image.src = address;
    };
    try {
      if (access.ticket === undefined && access.token !== undefined) return await loadBlob(); // an image sends no token
      const address = await thumbnail(upload, number, access);
      if (access.server) image.crossOrigin = "anonymous";
      image.addEventListener("error", () => loadBlob().catch(() => image.remove()), { once: true });
      image.src = address;
    } catch {
      image.remove();
    }
  }

  #canPrioritize(sheet) {
    return sheet?.status === "pending" && this.offers("prioritize") && !isFinal(this.#element.progress.status);
  }

  /** Has a sheet that waits made next, if a person may ask for it. */
  async prioritize(number) {
    const { upload, access } = this.#element;
    const sheet = this.#element.sheet(number);
    if (!this.#canPrioritize(sheet)) {
      if (["tiling", "uploading"].includes(sheet?.status)) this.announce(`Sheet ${number} is being made.`);
      return;
    }
    try {
      await prioritize(upload, number, access);
    } catch (problem) {
      this.announce(`Sheet ${number} cannot be made next. ${sentence(problem.message)}`);
      return;
    }
    if (this.#element.upload !== upload || !this.cards.has(number)) return;
    this.prioritized.add(number);
    this.announce(`Sheet ${number} comes next.`);
    this.#showCard(this.cards.get(number), this.#element.sheet(number));
  }

  async #retry(number, button) {
    const { upload, access } = this.#element;
    if (button.getAttribute("aria-disabled") === "true") return;
    button.setAttribute("aria-disabled", true); // not `disabled`: a disabled button loses the focus
    button.textContent = "Retry requested…";
    try {
      await retry(upload, number, access);
      this.announce(`Sheet ${number} will be tried again.`);
      const sheet = await this.resume(number);
      if (sheet?.status === "failed" && this.cards.has(number)) this.#showCard(this.cards.get(number), sheet);
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
