// Defines <sitelink-progress> and <sitelink-viewer>.

export { ProgressElement } from "./elements/progress.js";
export { ViewerElement } from "./elements/viewer.js";
