// Chooses the view for the address: `?ref=org/project/plan/upload` shows an upload, `?plan=org/project/plan` the plan's uploads and the form.

import "/client/elements.js";
import { BASE } from "/client/elements/style.js";
import { parsePath } from "/client/sitelink.js";
import { DEFAULT_PLAN } from "./api.js";
import { $ } from "./dom.js";
import { Home } from "./home.js";
import { UploadView } from "./upload.js";

document.adoptedStyleSheets = [BASE];

const home = new Home(openUpload);
const upload = new UploadView();
let shownTarget = null;

/** Shows the view that the address names. */
function route() {
  const query = new URLSearchParams(location.search);
  const ref = query.get("ref");
  const plan = ref ? ref.split("/").slice(0, 3).join("/") : (query.get("plan") ?? DEFAULT_PLAN);
  const target = ref ? `ref ${ref}` : `plan ${plan}`;
  if (target !== shownTarget) {
    shownTarget = target;
    show(ref, plan);
  }
  if (ref) upload.syncViewer();
}

function show(ref, plan) {
  home.hide();
  upload.hide();
  const usable = parsePath(plan, 3) ? plan : DEFAULT_PLAN;
  $("plan").textContent = usable;
  for (const id of ["brand", "back"]) {
    $(id).href = usable === DEFAULT_PLAN ? "/" : `/?plan=${usable}`;
  }
  $("again").href = $("brand").href;
  if (ref) upload.show(ref);
  else home.show(usable, plan);
}

/** Goes to an upload that the API has just accepted. */
function openUpload(ref) {
  history.pushState(null, "", `/?ref=${ref}`);
  scrollTo(0, 0);
  route();
  $("progress").focus();
}

addEventListener("popstate", route);
route();
