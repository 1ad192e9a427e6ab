import type { Packed, Problem, Progress, ReadAccess, Sheet, UploadRef, WriteAccess } from "./sitelink.js";

declare class UploadElement extends HTMLElement {
  /** The attribute `upload`, as `organization/project/plan/upload`. */
  upload: UploadRef | null;
  /** The attribute `server`: the server's address. Default: the page's own server. */
  server: string | null;
  ticket: ReadAccess["ticket"];
  token: WriteAccess["token"];
  session: WriteAccess["session"];
}

/**
 * `<sitelink-progress upload="…">`: state, progress, forecast and sheets of an upload.
 *
 * Attributes: `controls` shows the buttons that change something, `controls="cancel retry"` only some of `cancel`, `retry`, `delete` and
 * `prioritize`, which lets a person open a sheet that waits, and so have it tiled next; `compact` leaves the sheets out, `heading-level` is
 * 1 to 6 (default 2). Slot: `again`, shown when the upload failed. Parts: heading, status, facts, panel, bar, fill, measures, news, warning,
 * verdict, filter, sheets, sheet, open, thumbnail, title, state, button.
 */
export class ProgressElement extends UploadElement {
  controls: boolean;
  /** The last known state. */
  readonly progress: Progress | null;
  sheet(number: number): Sheet | undefined;
  /** Says a sentence to screen readers. */
  announce(text: string): void;
  /** Has a sheet that waits tiled next, if `controls` has `prioritize`, and says so to screen readers. */
  prioritize(sheet: number): Promise<void>;
  /** Puts the focus on the file's name. */
  focus(): void;
  /** Puts the focus on the card of a sheet; false when there is none. */
  focusSheet(number: number): boolean;
}

/**
 * `<sitelink-viewer for="id of a sitelink-progress">`, or `<sitelink-viewer upload="…" sheet="3">`: one sheet, to zoom into.
 *
 * Attributes: with `modal` it is a dialog that fills the window and opens with its sheet, else it fills its own box (default height: 32rem).
 * Parts: viewer, top, title, place, stage, message, tools, button.
 */
export class ViewerElement extends UploadElement {
  /** The number of the shown sheet; 0 shows none. The attribute `sheet`. */
  sheet: number;
  /** Whether to read each sheet out of its one file, or a function that gives its address; for packed sheets only. The attribute `packed`. */
  packed?: Packed;
}

declare global {
  interface HTMLElementTagNameMap {
    "sitelink-progress": ProgressElement;
    "sitelink-viewer": ViewerElement;
  }
  /** All of them bubble. */
  interface HTMLElementEventMap {
    /** The progress has a new state. */
    "sitelink-change": CustomEvent<Progress>;
    /** The server refuses to show the upload. */
    "sitelink-refused": CustomEvent<Problem>;
    /** The upload was deleted with the element's button. */
    "sitelink-deleted": CustomEvent<{ upload: UploadRef }>;
    /** A person opens a sheet. Its viewer shows it unless the page calls preventDefault(). */
    "sitelink-open": CustomEvent<{ sheet: number }>;
    /** The viewer has gone to another sheet. */
    "sitelink-show": CustomEvent<{ sheet: number }>;
    /** A person has closed the viewer. */
    "sitelink-close": CustomEvent<{ sheet: number }>;
  }
}
