// Shows one upload by the client's elements; keeps the page's title and address in step with them.

import { isFinal } from "/client/sitelink.js";
import { UNKNOWN_NAME, UPLOAD_WORDS } from "/client/elements/words.js";
import { $ } from "./dom.js";

export class UploadView {
  constructor(session) {
    this.session = session;
    const progress = $("progress");
    progress.addEventListener("sitelink-change", ({ detail }) => this.#changed(detail));
    progress.addEventListener("sitelink-refused", () => {
      document.title = "Not found · SiteLink";
    });
    progress.addEventListener("sitelink-deleted", () => location.assign($("back").href));
    progress.addEventListener("sitelink-open", ({ detail }) => history.pushState({ opened: true }, "", `#sheet=${detail.sheet}`));
    $("drawing").addEventListener("sitelink-show", ({ detail }) => history.replaceState(history.state, "", `#sheet=${detail.sheet}`));
    $("drawing").addEventListener("sitelink-close", () => this.#viewerClosed());
    this.isKnown = false;
  }

  show(ref) {
    this.isKnown = false;
    document.title = "SiteLink";
    $("progress").session = this.session.renew;
    const actions = [...(this.session.may("write") ? ["cancel", "retry", "prioritize"] : []), ...(this.session.may("operate") ? ["delete"] : [])];
    if (actions.length) $("progress").setAttribute("controls", actions.join(" "));
    else $("progress").removeAttribute("controls");
    $("again").hidden = !this.session.may("write");
    $("progress").upload = ref;
    $("upload").hidden = false;
  }

  hide() {
    $("drawing").sheet = 0;
    $("progress").upload = null;
    $("upload").hidden = true;
  }

  /** Opens the sheet that the address names, as `#sheet=3`, or closes the viewer. */
  syncViewer() {
    if (!this.isKnown) return; // the first state calls this again
    const wanted = Number(/^#sheet=([1-9]\d*)$/.exec(location.hash)?.[1] ?? 0);
    const sheet = $("progress").sheet(wanted);
    if (wanted === 0 || sheet?.status === "ready") {
      $("drawing").sheet = wanted;
      return;
    }
    history.replaceState(null, "", location.pathname + location.search);
    $("drawing").sheet = 0;
    $("progress").focusSheet(wanted);
    $("progress").announce(sheet ? `Sheet ${wanted} is not ready yet.` : `There is no sheet ${wanted}.`);
    $("progress").prioritize(wanted);
  }

  #viewerClosed() {
    if (!location.hash) return;
    // Removes the history entry of the opening: then Back leaves the upload instead of opening the sheet again.
    if (history.state?.opened) history.back();
    else history.replaceState(null, "", location.pathname + location.search);
  }

  #changed({ status, totalPages, progress, fileName }) {
    document.title = `${isFinal(status) ? UPLOAD_WORDS[status] : totalPages ? `${progress} %` : UPLOAD_WORDS[status]} · ${fileName ?? UNKNOWN_NAME}`;
    if (this.isKnown) return;
    this.isKnown = true;
    this.syncViewer();
  }
}
