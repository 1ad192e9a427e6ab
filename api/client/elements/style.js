// The styles of the elements. A page may set each colour, as `--sitelink-accent`, and `--sitelink-font`; the names are the first below.
// Constructed style sheets work also on a page whose Content-Security-Policy refuses inline styles.

function styleSheet(text) {
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(text);
  return sheet;
}

/** What the page and its elements share: colours, buttons, panels, bars and states. */
export const BASE = styleSheet(`/* Colours: text has a contrast of at least 4.5 : 1 to its background, a control's edge 3 : 1. */
:root, :host {
  --page: var(--sitelink-page, light-dark(#f4f6f8, #10151b));
  --surface: var(--sitelink-surface, light-dark(#ffffff, #19212a));
  --sunken: var(--sitelink-sunken, light-dark(#e9edf1, #0b0f14));
  --ink: var(--sitelink-ink, light-dark(#17202b, #e7ecf2));
  --muted: var(--sitelink-muted, light-dark(#4f5d6b, #a6b3c0));
  --line: var(--sitelink-line, light-dark(#d4dae1, #303c49));
  --edge: var(--sitelink-edge, light-dark(#77848f, #708090));
  --accent: var(--sitelink-accent, light-dark(#0b5cad, #7ab8ff));
  --accent-strong: var(--sitelink-accent-strong, light-dark(#084a8c, #a5d0ff));
  --on-accent: var(--sitelink-on-accent, light-dark(#ffffff, #0b1a2a));
  --good: var(--sitelink-good, light-dark(#1a6b3a, #72d498));
  --warn: var(--sitelink-warn, light-dark(#7d4a00, #f2c073));
  --warn-soft: var(--sitelink-warn-soft, light-dark(#fdf1dc, #33260f));
  --bad: var(--sitelink-bad, light-dark(#a8231b, #ff9f96));
  --bad-soft: var(--sitelink-bad-soft, light-dark(#fdebe9, #3b1a18));
  --shadow: 0 1px 2px light-dark(rgb(23 32 43 / 8%), transparent), 0 2px 8px light-dark(rgb(23 32 43 / 5%), transparent);
  font: var(--sitelink-font, 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif);
}

*, *::before, *::after { box-sizing: border-box; }
[hidden] { display: none !important; }
h1, h2, p { margin: 0; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.4rem, 1.1rem + 1.4vw, 1.9rem); line-height: 1.2; letter-spacing: -0.01em; }
h2 { font-size: 1.15rem; line-height: 1.3; }
a { color: var(--accent); text-underline-offset: 0.15em; }
code { font: 0.875em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
svg { fill: none; stroke: currentColor; stroke-width: 1.6; stroke-linecap: round; stroke-linejoin: round; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 6px; }

.hidden { position: absolute; width: 1px; height: 1px; margin: -1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.muted { color: var(--muted); }

/* Controls */
.button {
  display: inline-flex; align-items: center; justify-content: center; gap: 0.5rem; min-height: 44px; padding: 0.4rem 1.1rem;
  border: 1px solid var(--edge); border-radius: 8px; background: var(--surface); color: var(--ink);
  font: inherit; font-weight: 550; text-decoration: none; cursor: pointer; touch-action: manipulation;
}
.button:hover { border-color: var(--accent); color: var(--accent); }
.button.primary { background: var(--accent); border-color: var(--accent); color: var(--on-accent); }
.button.primary:hover { background: var(--accent-strong); border-color: var(--accent-strong); }
.button:disabled, .button[aria-disabled="true"] { color: var(--muted); border-color: var(--line); background: transparent; cursor: default; }
.button.icon { width: 48px; height: 48px; padding: 0; }
.button.icon svg { width: 22px; height: 22px; }
.row { display: flex; flex-wrap: wrap; gap: 0.6rem; justify-content: center; }

/* Panels and bars */
.panel { display: grid; gap: 0.5rem; padding: 1rem 1.1rem; border: 1px solid var(--line); border-radius: 10px; background: var(--surface); box-shadow: var(--shadow); }
.panel.bad { border-color: var(--bad); background: var(--bad-soft); }
.panel.warn { border-color: var(--warn); background: var(--warn-soft); }
.panel.bad h2 { color: var(--bad); }
.panel.warn h2 { color: var(--warn); }
.reason code { display: inline-block; padding: 0.05rem 0.45rem; border: 1px solid currentColor; border-radius: 5px; color: var(--muted); overflow-wrap: anywhere; }
.line { display: flex; flex-wrap: wrap; gap: 0.3rem 1rem; align-items: center; justify-content: space-between; }
.line strong { overflow-wrap: anywhere; }
.bar { height: 12px; border-radius: 6px; overflow: hidden; background: var(--sunken); box-shadow: inset 0 0 0 1px var(--edge); }
.fill { height: 100%; background: var(--accent); transform: scaleX(0); transform-origin: left; transition: transform 0.3s ease-out; }
.bar[data-status="complete"] .fill { background: var(--good); }
.bar.unknown::before { content: ""; display: block; width: 30%; height: 100%; background: var(--accent); animation: slide 1.6s ease-in-out infinite alternate; }
@keyframes slide { to { transform: translateX(233%); } }

/* States: an icon and a word; the colour adds nothing new */
.badge, .state { display: inline-flex; align-items: center; gap: 0.4rem; color: var(--muted); font-size: 0.9rem; font-weight: 550; white-space: nowrap; }
.badge svg, .state svg { width: 1em; height: 1em; flex: none; stroke-width: 2; }
.badge { padding: 0.1rem 0.65rem; border: 1px solid currentColor; border-radius: 99px; background: var(--surface); }
[data-status="ready"].state, [data-status="complete"].badge { color: var(--good); }
[data-status="tiling"].state, [data-status="uploading"].state, [data-status="processing"].badge { color: var(--accent); }
[data-status="failed"].state, [data-status="failed"].badge { color: var(--bad); }
[data-status="partial"].badge, [data-status="cancelled"].badge { color: var(--warn); }

@media (prefers-reduced-motion: reduce) {
  *, *::before, *::after { animation: none !important; transition: none !important; }
}
@media (forced-colors: active) {
  .fill { background: Highlight; }
}
`);

export const PROGRESS = styleSheet(`:host { display: grid; gap: 0.9rem; color: var(--ink); }
.heading { display: flex; flex-wrap: wrap; align-items: center; gap: 0.5rem 0.9rem; }
#file-name { margin: 0; font-size: clamp(1.4rem, 1.1rem + 1.4vw, 1.9rem); line-height: 1.2; letter-spacing: -0.01em; overflow-wrap: anywhere; }
#file-name:focus-visible { outline: none; } /* only this element focuses its heading, so that a screen reader reads it */
:host([compact]) #sheets-section { display: none; }

.verdict.bad { padding: 1.4rem 1.4rem 1.5rem; }
.verdict.bad h2 { font-size: 1.45rem; }
.verdict .button { margin-top: 0.4rem; }
#count, #percent { font-size: 1.15rem; font-variant-numeric: tabular-nums; }
#news[data-connection="live"]::before { content: ""; display: inline-block; width: 0.55em; height: 0.55em; margin-right: 0.5em; border-radius: 50%; background: var(--good); }
#warning:not([hidden]) { display: block; }

/* Forecast and receipt */
.measures { display: grid; gap: 0.15rem; padding-top: 0.3rem; }
.measures h2 { font-size: 0.9rem; font-weight: 600; color: var(--muted); }
.measures dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 0.6rem 1rem; margin: 0; }
.measures dt { font-size: 0.9rem; }
.measures dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
.measures dd.muted { font-size: 0.88rem; font-weight: 400; }

/* Sheets */
#sheets-section { display: grid; gap: 0.9rem; }
.filter { display: flex; flex-wrap: wrap; gap: 0.5rem; margin: 0; padding: 0; border: 0; min-width: 0; }
.filter label { position: relative; cursor: pointer; }
.filter input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: pointer; }
.filter label > span { display: inline-flex; gap: 0.4rem; align-items: center; min-height: 44px; padding: 0 0.9rem; border: 1px solid var(--edge); border-radius: 99px; background: var(--surface); }
.filter b { font-variant-numeric: tabular-nums; font-weight: 600; }
.filter input:checked + span { border-color: var(--accent); box-shadow: inset 0 0 0 1px var(--accent); color: var(--accent); font-weight: 600; }
.filter input:focus-visible + span { outline: 3px solid var(--accent); outline-offset: 2px; }
.sheets { list-style: none; margin: 0; padding: 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: 0.9rem; align-items: start; }
.sheets[data-filter="open"] > :not([data-group="open"]),
.sheets[data-filter="ready"] > :not([data-group="ready"]),
.sheets[data-filter="failed"] > :not([data-group="failed"]),
.sheets[data-filter="noted"] > :not([data-noted]) { display: none; }
.sheet {
  content-visibility: auto; contain-intrinsic-size: auto 15rem auto 16.5rem;
  border: 1px solid var(--line); border-radius: 10px; background: var(--surface); box-shadow: var(--shadow);
}
.sheet[data-status="failed"] { border-color: var(--bad); }
.open { display: grid; width: 100%; padding: 0; border: 0; border-radius: 9px; background: none; color: inherit; font: inherit; text-align: left; cursor: pointer; touch-action: manipulation; }
.open:disabled { cursor: default; color: inherit; }
.open:focus-visible { outline-offset: -3px; }
.open:not(:disabled):hover .title { color: var(--accent); text-decoration: underline; text-underline-offset: 0.15em; }
.paper { display: grid; place-items: center; aspect-ratio: 7 / 5; padding: 0.5rem; border-radius: 9px 9px 0 0; background: var(--sunken); overflow: hidden; }
.paper img { width: 100%; height: 100%; min-height: 0; object-fit: contain; }
.caption { display: flex; gap: 0.6rem; align-items: baseline; padding: 0.6rem 0.8rem 0; }
.number { flex: none; min-width: 1.6em; color: var(--muted); font-variant-numeric: tabular-nums; font-weight: 550; }
.title { font-weight: 600; line-height: 1.35; overflow-wrap: anywhere; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden; }
.state { padding: 0.25rem 0.8rem 0.7rem; }
.notes { padding: 0 0.8rem 0.7rem; font-size: 0.9rem; }
.notes summary { display: flex; align-items: center; gap: 0.4rem; min-height: 44px; margin: -0.5rem 0; color: var(--warn); font-weight: 550; cursor: pointer; }
.notes svg { width: 1em; height: 1em; flex: none; stroke-width: 2; }
.notes ul { margin: 0.3rem 0 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.failure { display: grid; gap: 0.5rem; padding: 0 0.8rem 0.8rem; }
.failure .detail { font-size: 0.92rem; overflow-wrap: anywhere; }
.sheet[data-status="tiling"] .paper, .sheet[data-status="uploading"] .paper {
  background: linear-gradient(100deg, var(--sunken) 35%, var(--line) 50%, var(--sunken) 65%) 0 0 / 300% 100%; animation: shimmer 2.4s linear infinite;
}
@keyframes shimmer { from { background-position: 100% 0; } to { background-position: 0 0; } }

/* On a phone a card has its thumbnail at the left and its words at the right */
@media (max-width: 520px) {
  .sheet { contain-intrinsic-size: auto 20rem auto 6.2rem; }
  .open { grid-template-columns: 7.5rem 1fr; grid-template-rows: 1fr auto; min-height: 6rem; }
  .paper { grid-row: 1 / -1; aspect-ratio: auto; height: 6rem; padding: 0.35rem; border-radius: 9px 0 0 9px; }
  .sheet[data-status="failed"] .paper { border-radius: 9px 0 9px 0; }
  .caption { padding-top: 0.7rem; }
  .failure { padding-top: 0.7rem; }
}
`);

export const VIEWER = styleSheet(`/* Viewer */
:host { display: block; color: var(--ink); }
:host(:not([modal])) { height: 32rem; margin-top: 0.9rem; }
:host(:not([modal])) .viewer { border: 1px solid var(--line); border-radius: 10px; }
:host([modal]) { display: contents; }
.viewer { display: grid; grid-template-rows: auto 1fr auto; position: relative; height: 100%; background: var(--sunken); color: var(--ink); overflow: hidden; }
dialog.viewer { position: fixed; inset: 0; width: 100vw; height: 100vh; height: 100dvh; max-width: none; max-height: none; margin: 0; padding: 0; border: 0; }
dialog.viewer:not([open]) { display: none; }
.viewer::backdrop { background: var(--sunken); }
.viewer-top { display: flex; gap: 0.8rem; align-items: center; justify-content: space-between; padding: 0.4rem 0.6rem 0.4rem 1rem; background: var(--surface); border-bottom: 1px solid var(--line); min-width: 0; }
.viewer-name { min-width: 0; }
.viewer-name h2, .viewer-name p { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.viewer-name p { font-size: 0.88rem; }
.viewer-name #viewer-notes { color: var(--warn); white-space: normal; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; }
.viewer-name #viewer-notes[hidden] { display: none; }
.viewer-top .button { flex: none; }
.viewer-stage { position: relative; min-width: 0; min-height: 0; background: var(--sunken); }
.viewer-stage :focus-visible { outline-offset: -3px; border-radius: 0; }
.viewer-stage.whole-sheet .navigator { visibility: hidden; }
@media (hover: none) { .viewer-stage .openseadragon-canvas:focus { outline: none; } }
.viewer-tools { display: flex; gap: 0.5rem; justify-content: center; padding: 0.4rem 0.6rem calc(0.4rem + env(safe-area-inset-bottom)); background: var(--surface); border-top: 1px solid var(--line); }
#viewer-message { position: absolute; inset: auto 1rem 5.5rem; margin: 0 auto; max-width: 26rem; justify-items: start; }
`);
