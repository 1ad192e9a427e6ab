// Which plan the page shows when its address names none, and the form to choose one.

import { parsePath } from "/client/sitelink.js";
import { $ } from "./dom.js";

const DEFAULT_PLAN = "local/demo/plan"; // where nobody signs in

const storageKey = (organization) => `sitelink plan of ${organization}`;

/** The plan to begin with; null when a person must choose one. */
export function firstPlan({ checked, organization, project, plan }) {
  if (!checked) return DEFAULT_PLAN;
  if (plan) return `${organization}/${project}/${plan}`;
  return parsePath(localStorage.getItem(storageKey(organization)) ?? "", 3) ? localStorage.getItem(storageKey(organization)) : null;
}

export class PlanForm {
  /** `chosen(plan)` is called with `organization/project/plan`. */
  constructor(session, chosen) {
    this.session = session;
    $("choose-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (!$("choose-form").reportValidity()) return;
      chosen([session.allowed.organization, $("choose-project").value, $("choose-plan").value].join("/"));
    });
  }

  show() {
    document.title = "SiteLink";
    const { organization, project } = this.session.allowed;
    const [, lastProject, lastPlan] = (firstPlan(this.session.allowed) ?? "//").split("/");
    $("choose-organization").textContent = organization;
    $("choose-project").value = project ?? lastProject;
    $("choose-project").readOnly = Boolean(project);
    $("choose-plan").value = lastPlan;
    $("choose").hidden = false;
    $($("choose-project").value ? "choose-plan" : "choose-project").focus();
  }

  hide() {
    $("choose").hidden = true;
  }
}

/** Remembers the plan for the next visit. */
export function remember(plan) {
  localStorage.setItem(storageKey(plan.split("/")[0]), plan);
}
