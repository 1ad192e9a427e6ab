// Who uses the page, and what the server allows them: signing in, again after the session has expired, and out. All tabs have one session.
//
// The token goes to the server once. From then on the browser has a cookie, which no script can read.

import { sentence } from "/client/elements/words.js";
import { Problem } from "/client/sitelink.js";
import { $ } from "./dom.js";

const ADDRESS = "/v1/session";
const REQUEST_MS = 30_000;
const TRY_AGAIN_MS = 3000;
const TOKEN = /^[\w.~+/=-]+$/;

export class Session {
  #tabs = new BroadcastChannel("sitelink session");
  #waiting = null; // resolves when somebody has signed in

  constructor() {
    this.allowed = null;
    /** For the client: called when the server refuses the session. */
    this.renew = () => this.#signInAgain();
    this.#tabs.onmessage = ({ data }) => (data === "in" ? this.#signedInElsewhere() : location.reload());
    $("sign-in-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#signIn();
    });
    $("sign-in").addEventListener("cancel", (event) => event.preventDefault());
    $("sign-in").addEventListener("close", () => this.#waiting && $("sign-in").showModal()); // a second Esc closes a dialog, whatever the page says
    $("sign-out").addEventListener("click", () => this.#signOut());
    // The browser may show a page again as it was before signing out.
    addEventListener("pageshow", ({ persisted }) => persisted && this.isChecked && location.reload());
  }

  /** Returns when the server lets this browser in. */
  async start() {
    for (;;) {
      try {
        return this.#take(await request("GET"));
      } catch (problem) {
        if (problem.status === 401) return this.#ask("Sign in", "");
        $("startup").textContent = `${sentence(problem.message)} Trying again…`;
        $("startup").hidden = false;
        await new Promise((resolve) => setTimeout(resolve, TRY_AGAIN_MS));
        $("startup").hidden = true;
      }
    }
  }

  /** Asks for a new session now if the old one has expired: a server that refuses a large file may not be heard while the file is sent. */
  async ensure() {
    if (!this.isChecked) return;
    try {
      await request("GET");
    } catch (problem) {
      if (problem.status === 401) await this.renew();
    }
  }

  get isChecked() {
    return this.allowed?.checked ?? false;
  }

  may(scope) {
    return this.allowed.scopes.includes(scope);
  }

  #take(allowed) {
    const before = this.allowed;
    this.allowed = allowed;
    $("who").hidden = !allowed.checked;
    $("who-name").textContent = [allowed.subject, allowed.organization].filter(Boolean).join(" · ");
    $("who-name").title = allowed.expiresAt ? `Signed in until ${new Date(allowed.expiresAt).toLocaleString()}` : "";
    const permissions = ({ organization, project, plan, scopes }) => JSON.stringify([organization, project, plan, scopes]);
    if (before && permissions(before) !== permissions(allowed)) location.reload(); // what is shown may not be for this person
  }

  #signInAgain() {
    return this.#ask("Your session has ended", "Sign in again to go on where you were. Nothing on this page is lost.");
  }

  #ask(title, text) {
    if (this.#waiting) return this.#waiting.promise;
    let resolve;
    const promise = new Promise((done) => {
      resolve = done;
    });
    this.#waiting = { promise, resolve };
    $("sign-in-title").textContent = title;
    $("sign-in-text").textContent = text;
    $("sign-in-text").hidden = !text;
    $("sign-in-error").hidden = true;
    $("sign-in").showModal();
    return promise;
  }

  #answered() {
    const waiting = this.#waiting;
    this.#waiting = null;
    $("token").value = "";
    $("sign-in").close();
    waiting?.resolve();
  }

  async #signIn() {
    const token = $("token").value.trim().replace(/^Bearer\s+/i, "").replace(/^(["'])(.*)\1$/, "$2");
    if ($("sign-in-submit").getAttribute("aria-disabled") === "true") return;
    $("sign-in-error").hidden = true;
    $("sign-in-submit").setAttribute("aria-disabled", true);
    try {
      if (!TOKEN.test(token)) throw new Problem("NoToken", token ? "This is not a token: a token has no spaces and only plain letters." : "Paste a token first.", 0);
      await request("POST", { Authorization: `Bearer ${token}` });
      const allowed = await request("GET").catch((problem) => {
        if (problem.status !== 401) throw problem;
        throw new Problem("NoCookie", "The server accepts this token, but the browser did not keep the session. Open this page by https, and allow its cookie.", 0);
      });
      if (!allowed.organization) {
        await request("DELETE");
        throw new Problem("NoOrganization", "This token belongs to no organization, so this page has nothing to show with it.", 0);
      }
      this.#take(allowed);
      this.#answered();
      this.#tabs.postMessage("in");
    } catch (problem) {
      $("sign-in-error").textContent = sentence(problem.message);
      $("sign-in-error").hidden = false;
      $("token").focus();
      $("token").select();
    }
    $("sign-in-submit").setAttribute("aria-disabled", false);
  }

  async #signedInElsewhere() {
    if (!this.#waiting) return;
    const allowed = await request("GET").catch(() => null);
    if (!allowed || !this.#waiting) return;
    this.#take(allowed);
    this.#answered();
  }

  async #signOut() {
    try {
      await request("DELETE");
    } catch (problem) {
      $("who-name").textContent = `You could not be signed out. ${sentence(problem.message)}`;
      return;
    }
    this.#tabs.postMessage("out");
    location.assign("/");
  }
}

async function request(method, headers = {}) {
  let response;
  let text;
  try {
    response = await fetch(ADDRESS, { method, headers, cache: "no-store", signal: AbortSignal.timeout(REQUEST_MS) });
    text = await response.text();
  } catch {
    throw Problem.noConnection;
  }
  if (!response.ok) throw Problem.from(response.status, text);
  return text ? JSON.parse(text) : null;
}
