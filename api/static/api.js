// Calls the API: the list of a plan's uploads. All other calls are in the client.

import { Problem } from "/client/sitelink.js";

export const DEFAULT_PLAN = "local/demo/plan";

export async function getJson(url) {
  let response;
  let text;
  try {
    response = await fetch(url, { cache: "no-cache", signal: AbortSignal.timeout(30_000) });
    text = await response.text();
  } catch {
    throw Problem.noConnection;
  }
  if (!response.ok) throw Problem.from(response.status, text);
  return JSON.parse(text);
}
