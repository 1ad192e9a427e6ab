// Words for people: states, sizes, times and refusals as text. Nothing here touches the page.

export const UPLOAD_WORDS = {
  queued: "Queued",
  processing: "Processing",
  complete: "Complete",
  partial: "Partly complete",
  failed: "Failed",
  cancelled: "Cancelled",
};

export const UNKNOWN_NAME = "Unknown file name"; // the upload's record cannot be read

export const SHEET_WORDS = { pending: "Pending", tiling: "Tiling", uploading: "Uploading", ready: "Ready", failed: "Failed" };

// The title of each refusal, and advice. The page shows the server's own sentence, with value and limit, between the two.
const REFUSALS = {
  NotAPdf: ["This file is not a PDF", "A failed download often leaves an error page under the PDF's name. Open the file on your device. If it does not open, ask its sender for a new copy."],
  UnreadablePdf: ["This PDF is damaged", "Open it in a PDF program, save or print it as a new PDF, and upload the new file. Or ask its sender for a new copy."],
  PasswordRequired: ["This PDF needs a password", "Upload it again with its password. Or save a copy that opens without one, and upload the copy."],
  PasswordRefused: ["This server takes no passwords", "Save a copy of the PDF that opens without a password, and upload the copy."],
  PdfPortfolio: ["This PDF is a portfolio", "Open it in a PDF viewer, save the drawings inside it one by one, and upload each of them."],
  NoPages: ["This PDF has no pages", "Check that it is the right file, or export the sheets again."],
  TooManyPages: ["This PDF has too many pages", "Split it into smaller sets and upload each of them."],
  TooManyTiles: ["This PDF has too many or too large pages", "Split it into smaller sets, or upload it with a lower resolution."],
  FileTooLarge: ["This file is too large", "Split it into smaller sets, or save it with smaller images, and upload the result."],
  SourceMissing: ["The PDF is gone from the storage", "Upload the file again."],
  SourceAltered: ["The PDF in the storage is not the one that was uploaded", "Upload the file again."],
  Terminated: ["An operator stopped this upload", "The sheets that are ready stay usable. To get the others, upload the file again."],
  StorageUnavailable: ["The storage does not answer", "Your file is still chosen. Press Upload again in a few minutes."],
  NoConnection: ["The server cannot be reached", "Check your connection. Your file is still chosen: press Upload to try again."],
};

export function refusal(type, fallbackTitle) {
  const [title, help] = REFUSALS[type] ?? [fallbackTitle, ""];
  return { title, help };
}

/** Makes a sentence of a server's message, which is written to follow a name and a colon. */
export function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

const number = new Intl.NumberFormat("en");
export const count = (value) => number.format(value);
export const sheets = (value) => `${count(value)} ${value === 1 ? "sheet" : "sheets"}`;
export const sheetsOf = (done, total) => `${count(done)} of ${sheets(total)}`;

export function size(bytes) {
  if (bytes === null) return "unknown size"; // the upload's record cannot be read
  let value = bytes;
  let unit = "bytes";
  for (const next of ["kB", "MB", "GB"]) {
    if (value < 1000) break;
    value /= 1000;
    unit = next;
  }
  return `${value.toLocaleString("en", { maximumFractionDigits: unit === "bytes" || value >= 100 ? 0 : 1 })} ${unit}`;
}

const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
export const moment = (time) => day.format(new Date(time));
export const clockTime = (time) => clock.format(new Date(time));

export function duration(milliseconds) {
  const seconds = Math.round(milliseconds / 1000);
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${seconds % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** An estimated time as text. */
function roughly(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = seconds / 60;
  return minutes < 90 ? `${Math.round(minutes)} min` : `${(minutes / 60).toLocaleString("en", { maximumFractionDigits: 1 })} h`;
}

/** Two ends as a text; a unit that both share is said once. */
function range(from, to) {
  const [value, unit] = from.split(" ");
  return `${to.endsWith(` ${unit}`) ? value : from} to ${to}`;
}

/** An estimated range of seconds as text. */
export function timeRange(low, high) {
  const [from, to] = [low, high].map(roughly);
  return from === to ? `about ${to}` : range(from, to);
}

/** An estimated range of bytes as text; two digits are as much as is known. */
export function sizeRange(low, high) {
  const [from, to] = [low, high].map((bytes) => size(Number(bytes.toPrecision(2))));
  return from === to ? to : range(from, to);
}

export const money = (dollars) => (dollars > 0 && dollars < 0.01 ? "under $0.01" : `$${dollars.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`);
