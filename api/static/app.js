// The page at `/`: `?ref=org/project/plan/upload` shows an upload, `?plan=org/project/plan` the plan's uploads and the form.

import { DEFAULT_PLAN, parsePath } from "./api.js";
import { $ } from "./dom.js";
import { Home } from "./home.js";
import { UploadView } from "./upload.js";

const home = new Home(openUpload);
const upload = new UploadView();
let shown = null;

/** Shows what the address says. */
function route() {
  const query = new URLSearchParams(location.search);
  const ref = query.get("ref");
  const plan = ref ? ref.split("/").slice(0, 3).join("/") : (query.get("plan") ?? DEFAULT_PLAN);
  const target = ref ? `ref ${ref}` : `plan ${plan}`;
  if (target !== shown) {
    shown = target;
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
  document.querySelector("#verdict-again a").href = $("brand").href;
  if (ref) upload.show(ref);
  else home.show(usable, plan);
}

/** The API has accepted a file. */
function openUpload(ref) {
  history.pushState(null, "", `/?ref=${ref}`);
  scrollTo(0, 0);
  route();
  $("file-name").focus();
}

addEventListener("popstate", route);
route();
