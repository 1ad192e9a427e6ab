// Chooses the view for the address: `?ref=org/project/plan/upload` shows an upload, `?plan=org/project/plan` the plan's uploads and the form.

import "/client/elements.js";
import { BASE } from "/client/elements/style.js";
import { parsePath } from "/client/sitelink.js";
import { $ } from "./dom.js";
import { Home } from "./home.js";
import { firstPlan, PlanForm, remember } from "./plans.js";
import { Session } from "./session.js";
import { UploadView } from "./upload.js";

document.adoptedStyleSheets = [BASE];

const session = new Session();
const home = new Home(session, openUpload);
const upload = new UploadView(session);
const choose = new PlanForm(session, (plan) => go(`/?plan=${plan}`));
let shownTarget = null;

/** Shows the view that the address names. */
function route() {
  const query = new URLSearchParams(location.search);
  const ref = query.get("ref");
  const plan = ref ? ref.split("/").slice(0, 3).join("/") : (query.get("plan") ?? firstPlan(session.allowed));
  const target = ref ? `ref ${ref}` : `plan ${plan}`;
  if (target !== shownTarget) {
    shownTarget = target;
    show(ref, plan);
  }
  if (ref) upload.syncViewer();
}

function show(ref, plan) {
  for (const view of [home, upload, choose]) view.hide();
  const first = firstPlan(session.allowed);
  const usable = plan && parsePath(plan, 3) ? plan : first;
  $("plan").textContent = usable ?? "";
  for (const id of ["brand", "back"]) {
    $(id).href = !usable || usable === first ? "/" : `/?plan=${usable}`;
  }
  $("again").href = $("brand").href;
  $("change-plan").hidden = !session.isChecked || Boolean(session.allowed.plan);
  if (ref) {
    upload.show(ref);
  } else if (usable && (plan || !session.isChecked)) {
    if (session.isChecked && usable === plan) remember(plan);
    home.show(usable, plan);
  } else {
    $("plan").textContent = "";
    $("change-plan").hidden = true;
    choose.show();
  }
}

function go(address) {
  history.pushState(null, "", address);
  scrollTo(0, 0);
  route();
}

/** Goes to an upload that the API has just accepted. */
function openUpload(ref) {
  go(`/?ref=${ref}`);
  $("progress").focus();
}

await session.start();
addEventListener("popstate", route);
route();
