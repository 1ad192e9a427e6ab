// Shows one sheet: OpenSeadragon in a dialog that fills the window, with this page's own buttons and keys.

import { $ } from "./dom.js";
import { count } from "./text.js";

const PAN_SHARE = 0.15; // of the visible part, for each press of an arrow key
const ZOOM_STEP = 1.5;

export class Viewer {
  /**
   * `upload` gives the sheets: sheet(number), sheetCount(), readySheets(), descriptor(number).
   * Its moved(number) is called after a step to another sheet, its closed(number) when the person closes the dialog.
   */
  constructor(upload) {
    this.upload = upload;
    this.dialog = $("viewer");
    this.number = 0;
    this.engine = null;
    $("viewer-close").addEventListener("click", () => this.dialog.close());
    $("viewer-previous").addEventListener("click", () => this.#step(-1));
    $("viewer-next").addEventListener("click", () => this.#step(1));
    $("viewer-in").addEventListener("click", () => this.#zoom(ZOOM_STEP));
    $("viewer-out").addEventListener("click", () => this.#zoom(1 / ZOOM_STEP));
    $("viewer-fit").addEventListener("click", () => this.engine?.viewport.goHome());
    $("viewer-again").addEventListener("click", () => this.#openDrawing());
    this.dialog.addEventListener("keydown", (event) => this.#keyPressed(event));
    this.dialog.addEventListener("close", () => this.#dialogClosed());
  }

  get isOpen() {
    return this.dialog.open;
  }

  open(number) {
    if (this.isOpen && this.number === number) return;
    this.number = number;
    if (!this.isOpen) this.dialog.showModal();
    document.documentElement.classList.add("viewing");
    this.update();
    this.#openDrawing();
  }

  /** Closes the dialog without a call of `closed`: the address has changed already. */
  close() {
    if (!this.isOpen) return;
    this.number = 0;
    this.dialog.close();
  }

  /** Shows the sheet's name, place and neighbours, which may have changed. */
  update() {
    const sheet = this.upload.sheet(this.number);
    if (!sheet) return;
    const ready = this.upload.readySheets();
    const place = ready.indexOf(this.number);
    $("viewer-title").textContent = sheet.title ?? `Sheet ${sheet.number}`;
    $("viewer-place").textContent = [
      `Sheet ${count(sheet.number)} of ${count(this.upload.sheetCount())}`,
      ...(sheet.scaled ? [`drawn at ${sheet.dpi} dpi`] : []),
    ].join(" · ");
    const notes = $("viewer-notes");
    notes.hidden = !sheet.notes?.length;
    notes.textContent = notes.title = notes.hidden ? "" : `May differ from the PDF. ${sheet.notes.map((note) => note.message).join(" ")}`;
    // Not `disabled`: a disabled button loses the focus, and with it the person's place on the page.
    $("viewer-previous").setAttribute("aria-disabled", place <= 0);
    $("viewer-next").setAttribute("aria-disabled", place === ready.length - 1);
  }

  async #openDrawing() {
    const number = this.number;
    $("viewer-message").hidden = true;
    try {
      await engineScript();
    } catch {
      this.#showMessage("The drawing viewer could not be loaded. Check your connection.");
      return;
    }
    if (!this.isOpen || number !== this.number) return;
    this.engine ??= this.#createEngine();
    this.engine.canvas.setAttribute("aria-label", `Drawing of sheet ${number}. Arrow keys move it, plus and minus zoom, 0 fits it to the screen.`);
    this.engine.open(this.upload.descriptor(number));
  }

  #createEngine() {
    // OpenSeadragon 6 adds an inline style unless the page has an element with this mark. The page's CSP refuses inline styles, so style.css
    // holds the rule, and the mark is on an element without a namespace, which the browser does not take for a style sheet.
    const marker = document.createElementNS(null, "style");
    marker.setAttribute("data-openseadragon-mobile-css", "true");
    document.head.append(marker);
    const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const engine = OpenSeadragon({
      element: $("stage"),
      drawer: "canvas", // line drawings gain nothing from WebGL, and a phone may take the context away
      showNavigationControl: false,
      showNavigator: matchMedia("(min-width: 720px) and (min-height: 500px)").matches,
      navigatorPosition: "BOTTOM_LEFT", // not over the title block
      navigatorAutoFade: false,
      navigatorOpacity: 1,
      navigatorBackground: "#8d99a6",
      navigatorBorderColor: "#556270",
      navigatorDisplayRegionColor: "#b3261e",
      keyboardNavEnabled: false, // its keys also flip and rotate the drawing; this page's keys work from every button
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
    const showNavigator = () => $("stage").classList.toggle("whole-sheet", engine.viewport.getZoom() < engine.viewport.getHomeZoom() * 1.02);
    engine.addHandler("zoom", showNavigator);
    engine.addHandler("open", showNavigator);
    engine.addHandler("open", () => {
      $("viewer-message").hidden = true;
    });
    engine.addHandler("open-failed", () => this.#showMessage("This drawing could not be loaded."));
    engine.addHandler("tile-load-failed", () => this.#showMessage("Parts of this drawing could not be loaded."));
    return engine;
  }

  #showMessage(text) {
    $("viewer-message").hidden = false;
    $("viewer-message").firstElementChild.textContent = text;
  }

  #step(by) {
    const ready = this.upload.readySheets();
    const number = ready[ready.indexOf(this.number) + by];
    if (number === undefined) return;
    this.open(number);
    this.upload.moved(number);
  }

  #zoom(by) {
    this.engine?.viewport?.zoomBy(by);
    this.engine?.viewport?.applyConstraints();
  }

  #pan(right, down) {
    const viewport = this.engine?.viewport;
    if (!viewport) return;
    const visible = viewport.getBounds();
    viewport.panBy(new OpenSeadragon.Point(right * visible.width * PAN_SHARE, down * visible.height * PAN_SHARE));
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
      0: () => this.engine?.viewport?.goHome(),
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  #dialogClosed() {
    if (this.isOpen) return; // the dialog was opened again before this event came
    const number = this.number;
    this.number = 0;
    this.engine?.close();
    document.documentElement.classList.remove("viewing");
    if (number) this.upload.closed(number);
  }
}

let script = null;

/** Loads OpenSeadragon, when the first drawing is opened: a phone that only watches the progress does not need it. */
function engineScript() {
  script ??= new Promise((resolve, reject) => {
    const element = document.createElement("script");
    element.src = "/static/openseadragon/openseadragon.min.js";
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
