// The start page of a plan: the form, and the list of the plan's uploads.

import { $ } from "./dom.js";
import { UploadForm } from "./form.js";
import { UploadList } from "./uploads.js";

export class Home {
  /** `opened(ref)` is called when the API has accepted a file. */
  constructor(session, opened) {
    this.session = session;
    this.form = new UploadForm(session, opened);
    this.uploads = new UploadList(session);
  }

  /** `namedPlan` is the plan in the address; when it is not well-formed, `plan` is another one. */
  show(plan, namedPlan) {
    document.title = "SiteLink";
    $("home").hidden = false;
    const mayUpload = this.session.may("write");
    $("form").hidden = !mayUpload;
    $("home-title").textContent = mayUpload ? "Upload a plan set" : "View a plan set";
    $("home-lead").hidden = !mayUpload;
    $("home-read-only").hidden = mayUpload;
    this.form.show(plan);
    this.uploads.show(plan);
    if (namedPlan !== plan) {
      this.form.showError("BadPlan", `“${namedPlan.slice(0, 200)}” does not name a plan: its form is not organization/project/plan.`, "There is no such plan");
    }
  }

  hide() {
    $("home").hidden = true;
    this.uploads.hide();
  }
}
