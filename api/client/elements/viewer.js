// <sitelink-viewer>: one sheet in OpenSeadragon, with this element's own buttons and keys; in its box or, with `modal`, in a dialog.

import { Problem, tileSource, watch } from "../sitelink.js";
import { icon, reflect, upgrade } from "./shared.js";
import { BASE, VIEWER } from "./style.js";
import { count, sentence } from "./words.js";

const PAN_SHARE = 0.15; // of the visible part, for each press of an arrow key
const ZOOM_STEP = 1.5;

const button = (id, label, keys, name) =>
  `<button type="button" class="button icon" part="button" id="viewer-${id}" aria-label="${label}" title="${label} ( ${keys} )">${icon(name)}</button>`;

const html = (tag) => `
  <${tag} id="viewer" class="viewer" part="viewer" aria-labelledby="viewer-title">
    <header class="viewer-top" part="top">
      <div class="viewer-name">
        <h2 id="viewer-title" part="title"></h2>
        <p id="viewer-place" class="muted" part="place"></p>
        <p id="viewer-notes" hidden></p>
      </div>
      ${tag === "dialog" ? button("close", "Close the drawing", "Esc", "failed") : ""}
    </header>
    <div class="viewer-stage" part="stage" id="stage"></div>
    <div id="viewer-message" class="panel bad" part="message" role="alert" hidden>
      <p></p>
      <button type="button" class="button" part="button" id="viewer-again">Try again</button>
    </div>
    <div class="viewer-tools" part="tools" role="group" aria-label="Drawing">
      ${button("previous", "Previous sheet", "[ or Page Up", "previous")}
      ${button("out", "Zoom out", "-", "minus")}
      ${button("fit", "Fit the sheet to the screen", "0", "fit")}
      ${button("in", "Zoom in", "+", "plus")}
      ${button("next", "Next sheet", "] or Page Down", "next")}
    </div>
  </${tag}>`;

export class ViewerElement extends HTMLElement {
  static observedAttributes = ["for", "upload", "server", "sheet"];
  #root = this.attachShadow({ mode: "open" });
  #frame = null;
  #isDialog = false;
  #number = 0; // of the drawing that is shown
  #engine = null;
  #access = {};
  #source = null; // the <sitelink-progress>
  #watching = null; // without one
  #sheets = new Map();
  #isDue = false;
  #onOpen = (event) => !event.defaultPrevented && this.#opened(event.detail.sheet);
  #onChange = (event) => this.#changed(event.detail);

  connectedCallback() {
    upgrade(this, "upload", "server", "ticket", "token", "session", "sheet");
    if (!this.#frame) this.#build();
    this.#followSoon();
  }

  disconnectedCallback() {
    this.#leave();
    this.#engine?.destroy();
    this.#engine = null;
    this.#number = 0;
    this.#lockScrolling(false);
  }

  attributeChangedCallback(name, before, after) {
    if (before === after || !this.#frame) return;
    if (name === "sheet") this.#show();
    else this.#followSoon();
  }

  get sheet() {
    return Number(this.getAttribute("sheet")) || 0;
  }

  set sheet(number) {
    if (number) this.setAttribute("sheet", number);
    else this.removeAttribute("sheet");
  }

  get ticket() {
    return this.#access.ticket;
  }

  set ticket(value) {
    this.#access.ticket = value;
    this.#followSoon();
  }

  get token() {
    return this.#access.token;
  }

  set token(value) {
    this.#access.token = value;
    this.#followSoon();
  }

  get session() {
    return this.#access.session;
  }

  set session(value) {
    this.#access.session = value;
    this.#followSoon();
  }

  #$(id) {
    return this.#root.getElementById(id);
  }

  #build() {
    this.#isDialog = this.hasAttribute("modal");
    this.#root.adoptedStyleSheets = [BASE, VIEWER];
    this.#root.innerHTML = html(this.#isDialog ? "dialog" : "section");
    this.#frame = this.#$("viewer");
    const clicks = {
      close: () => this.#frame.close(),
      previous: () => this.#step(-1),
      next: () => this.#step(1),
      in: () => this.#zoom(ZOOM_STEP),
      out: () => this.#zoom(1 / ZOOM_STEP),
      fit: () => this.#engine?.viewport?.goHome(),
      again: () => this.#openDrawing(),
    };
    for (const [id, act] of Object.entries(clicks)) this.#$(`viewer-${id}`)?.addEventListener("click", act);
    this.#frame.addEventListener("keydown", (event) => this.#keyPressed(event));
    this.#frame.addEventListener("close", () => this.#dialogClosed());
  }

  // Where the sheets come from

  #followSoon() {
    if (this.#isDue) return;
    this.#isDue = true;
    queueMicrotask(() => {
      this.#isDue = false;
      if (this.isConnected) this.#follow();
    });
  }

  #leave() {
    this.#source?.removeEventListener("sitelink-open", this.#onOpen);
    this.#source?.removeEventListener("sitelink-change", this.#onChange);
    this.#watching?.return();
    this.#source = this.#watching = null;
    this.#sheets.clear();
  }

  #follow() {
    this.#leave();
    const id = this.getAttribute("for");
    if (id) {
      this.#source = this.getRootNode().getElementById(id);
      this.#source?.addEventListener("sitelink-open", this.#onOpen);
      this.#source?.addEventListener("sitelink-change", this.#onChange);
      if (this.#source?.progress) this.#changed(this.#source.progress);
    } else if (this.upload) {
      this.#watch();
    }
    this.#show();
  }

  async #watch() {
    try {
      const watching = watch(this.upload, this.#options);
      this.#watching = watching;
      for await (const progress of watching) if (this.#watching === watching) this.#changed(progress);
    } catch (problem) {
      this.#showMessage(sentence(problem.message));
    }
  }

  get #options() {
    return { ...this.#access, ...(this.server ? { server: this.server } : {}) };
  }

  #changed(progress) {
    this.#sheets = new Map(progress.sheets.map((sheet) => [sheet.number, sheet]));
    if (this.#number) this.#update();
    else this.#show();
  }

  #readySheets() {
    return [...this.#sheets.values()].filter((sheet) => sheet.status === "ready").map((sheet) => sheet.number);
  }

  // Which sheet is shown

  #opened(number) {
    this.sheet = number;
    if (!this.#isDialog) this.#frame.scrollIntoView({ block: "nearest" });
  }

  #tell(name, sheet) {
    this.dispatchEvent(new CustomEvent(name, { detail: { sheet }, bubbles: true, composed: true }));
  }

  /** Shows the sheet of the attribute, as soon as it is ready. */
  #show() {
    const number = this.sheet;
    if (number === this.#number) return;
    if (!number) {
      this.#number = 0;
      if (this.#isDialog) this.#frame.close();
      this.#engine?.close();
      this.#clear();
      return;
    }
    if (this.#sheets.get(number)?.status !== "ready") return;
    this.#number = number;
    if (this.#isDialog && !this.#frame.open) {
      this.#frame.showModal();
      this.#lockScrolling(true);
    }
    this.#update();
    this.#openDrawing();
  }

  #clear() {
    for (const id of ["viewer-title", "viewer-place"]) this.#$(id).textContent = "";
    this.#$("viewer-notes").hidden = true;
    this.#$("viewer-message").hidden = true;
  }

  /** Shows the sheet's name, place and neighbours, which may have changed. */
  #update() {
    const sheet = this.#sheets.get(this.#number);
    if (!sheet) return;
    const ready = this.#readySheets();
    const place = ready.indexOf(this.#number);
    this.#$("viewer-title").textContent = sheet.title ?? `Sheet ${sheet.number}`;
    this.#$("viewer-place").textContent = [
      `Sheet ${count(sheet.number)} of ${count(this.#sheets.size)}`,
      ...(sheet.scaled ? [`drawn at ${sheet.dpi} dpi`] : []),
    ].join(" · ");
    const notes = this.#$("viewer-notes");
    notes.hidden = !sheet.notes?.length;
    notes.textContent = notes.title = notes.hidden ? "" : `May differ from the PDF. ${sheet.notes.map((note) => note.message).join(" ")}`;
    // Not `disabled`: a disabled button loses the focus, and with it the person's place on the page.
    this.#$("viewer-previous").setAttribute("aria-disabled", place <= 0);
    this.#$("viewer-next").setAttribute("aria-disabled", place === ready.length - 1);
  }

  #step(by) {
    const ready = this.#readySheets();
    const number = ready[ready.indexOf(this.#number) + by];
    if (number === undefined) return;
    this.sheet = number;
    this.#tell("sitelink-show", number);
  }

  #lockScrolling(isLocked) {
    if (this.#isDialog) document.documentElement.style.overflow = isLocked ? "hidden" : "";
  }

  #dialogClosed() {
    if (this.#frame.open) return; // the dialog was opened again before this event came
    const number = this.#number;
    this.#engine?.close();
    this.#lockScrolling(false);
    if (!number) return; // the page has closed it
    this.#number = 0;
    this.sheet = 0;
    this.#clear();
    this.#source?.focusSheet?.(number);
    this.#tell("sitelink-close", number);
  }

  // The drawing

  async #openDrawing() {
    const number = this.#number;
    const isCurrent = () => this.#number === number && this.isConnected;
    this.#$("viewer-message").hidden = true;
    try {
      const source = this.#source;
      const [tiles] = await Promise.all([
        tileSource(source?.upload ?? this.upload, number, { ...(source?.access ?? this.#options), packed: this.packed ?? this.hasAttribute("packed") }),
        globalThis.OpenSeadragon ?? engineScript(),
      ]);
      if (!isCurrent()) return;
      this.#engine ??= this.#createEngine();
      this.#engine.canvas.setAttribute("aria-label", `Drawing of sheet ${number}. Arrow keys move it, plus and minus zoom, 0 fits it to the screen.`);
      this.#engine.open(tiles);
    } catch (error) {
      if (!isCurrent()) return;
      this.#showMessage(error instanceof Problem ? `This drawing could not be loaded. ${sentence(error.message)}` : "The drawing viewer could not be loaded. Check your connection.");
    }
  }

  #createEngine() {
    const { OpenSeadragon } = globalThis;
    // OpenSeadragon 6 adds an inline style unless the page has an element with this mark. A page's CSP may refuse inline styles, and the rule would
    // not reach into this element, so style.js holds it. The mark is on an element without a namespace, which the browser does not take for a style
    // sheet.
    if (!document.querySelector("[data-openseadragon-mobile-css]")) {
      const marker = document.createElementNS(null, "style");
      marker.setAttribute("data-openseadragon-mobile-css", "true");
      document.head.append(marker);
    }
    const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const stage = this.#$("stage");
    const engine = OpenSeadragon({
      element: stage,
      drawer: "canvas", // line drawings gain nothing from WebGL, and a phone may take the context away
      showNavigationControl: false,
      showNavigator: stage.clientWidth >= 640 && stage.clientHeight >= 320,
      navigatorPosition: "BOTTOM_LEFT", // not over the title block
      navigatorAutoFade: false,
      navigatorOpacity: 1,
      navigatorBackground: "#8d99a6",
      navigatorBorderColor: "#556270",
      navigatorDisplayRegionColor: "#b3261e",
      keyboardNavEnabled: false, // its keys also flip and rotate the drawing; this element's keys work from every button
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsPen: { clickToZoom: false, dblClickToZoom: true },
      animationTime: reducedMotion ? 0 : 0.5,
      maxZoomPixelRatio: 4,
      minZoomImageRatio: 0.8,
      visibilityRatio: 0.3,
      maxTilesPerFrame: 4,
      tileRetryMax: 2,
      placeholderFillStyle: "#ffffff",
    });
    const showNavigator = () => stage.classList.toggle("whole-sheet", engine.viewport.getZoom() < engine.viewport.getHomeZoom() * 1.02);
    engine.addHandler("zoom", showNavigator);
    engine.addHandler("open", showNavigator);
    engine.addHandler("open", () => {
      this.#$("viewer-message").hidden = true;
    });
    engine.addHandler("open-failed", () => this.#showMessage("This drawing could not be loaded."));
    engine.addHandler("tile-load-failed", () => this.#showMessage("Parts of this drawing could not be loaded."));
    return engine;
  }

  #showMessage(text) {
    this.#$("viewer-message").hidden = false;
    this.#$("viewer-message").firstElementChild.textContent = text;
  }

  #zoom(by) {
    this.#engine?.viewport?.zoomBy(by);
    this.#engine?.viewport?.applyConstraints();
  }

  #pan(right, down) {
    const viewport = this.#engine?.viewport;
    if (!viewport) return;
    const visible = viewport.getBounds();
    viewport.panBy(new globalThis.OpenSeadragon.Point(right * visible.width * PAN_SHARE, down * visible.height * PAN_SHARE));
    viewport.applyConstraints();
  }

  #keyPressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const action = {
      "[": () => this.#step(-1),
      "]": () => this.#step(1),
      PageUp: () => this.#step(-1),
      PageDown: () => this.#step(1),
      ArrowLeft: () => (event.shiftKey ? this.#step(-1) : this.#pan(-1, 0)),
      ArrowRight: () => (event.shiftKey ? this.#step(1) : this.#pan(1, 0)),
      ArrowUp: () => this.#pan(0, -1),
      ArrowDown: () => this.#pan(0, 1),
      "+": () => this.#zoom(ZOOM_STEP),
      "=": () => this.#zoom(ZOOM_STEP),
      "-": () => this.#zoom(1 / ZOOM_STEP),
      0: () => this.#engine?.viewport?.goHome(),
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }
}

reflect(ViewerElement, "upload", "server");
customElements.define("sitelink-viewer", ViewerElement);

let script = null;

/** Loads OpenSeadragon, when the first drawing is opened: a phone that only watches the progress does not need it. */
function engineScript() {
  script ??= new Promise((resolve, reject) => {
    const element = document.createElement("script");
    element.src = new URL("../openseadragon/openseadragon.min.js", import.meta.url);
    element.onload = resolve;
    element.onerror = () => {
      script = null;
      element.remove();
      reject(new Error("not loaded"));
    };
    document.head.append(element);
  });
  return script;
}
