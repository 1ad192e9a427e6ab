// Helpers of the elements and the page. Text from the server enters a page by textContent only: titles and file names are data, never HTML.

const ICONS = {
  pending: '<circle cx="8" cy="8" r="6" stroke-dasharray="2.2 2.5"/>',
  queued: '<circle cx="8" cy="8" r="6"/><path d="M8 4.8V8l2.3 1.5"/>',
  tiling: '<path d="M2 2h5v5H2zM9 2h5v5H9zM2 9h5v5H2zM9 9h5v5H9z"/>',
  processing: '<path d="M2 2h5v5H2zM9 2h5v5H9zM2 9h5v5H2zM9 9h5v5H9z"/>',
  uploading: '<path d="M8 11V2.5M4.5 6 8 2.5 11.5 6M2.5 10.5v3h11v-3"/>',
  ready: '<path d="m2.5 8.5 3.7 3.7L13.5 4.5"/>',
  complete: '<path d="m2.5 8.5 3.7 3.7L13.5 4.5"/>',
  partial: '<path d="M8 2 14.5 13.5h-13zM8 6.5v3.2M8 11.4v.4"/>',
  failed: '<path d="m3.5 3.5 9 9M12.5 3.5l-9 9"/>',
  cancelled: '<circle cx="8" cy="8" r="6"/><path d="m4 12 8-8"/>',
  plus: '<path d="M8 3v10M3 8h10"/>',
  minus: '<path d="M3 8h10"/>',
  fit: '<path d="M2.5 6V2.5H6M10 2.5h3.5V6M13.5 10v3.5H10M6 13.5H2.5V10"/>',
  previous: '<path d="M10 3 5 8l5 5"/>',
  next: '<path d="m6 3 5 5-5 5"/>',
};

/** The markup of an icon. Each root has its own, because a <use> finds nothing in another root. */
export function icon(name) {
  return `<svg viewBox="0 0 16 16" aria-hidden="true">${ICONS[name] ?? ""}</svg>`;
}

/** Shows a state as an icon and a word. */
export function showBadge(badge, status, words) {
  if (badge.dataset.status !== status) badge.querySelector("svg").innerHTML = ICONS[status] ?? "";
  badge.dataset.status = status;
  badge.lastElementChild.textContent = words[status] ?? status;
}

/** Sets a progress bar to a share from 0 to 1, or to a moving stripe when the share is null: not known yet. */
export function showBar(bar, share, words) {
  bar.classList.toggle("unknown", share === null);
  bar.firstElementChild.style.transform = `scaleX(${share ?? 0})`;
  if (share === null) bar.removeAttribute("aria-valuenow");
  else bar.setAttribute("aria-valuenow", Math.floor(share * 100));
  bar.setAttribute("aria-valuetext", words);
}

/** Makes a property of an element mirror an attribute of the same name. */
export function reflect(type, ...names) {
  for (const name of names) {
    Object.defineProperty(type.prototype, name, {
      get() {
        return this.getAttribute(name);
      },
      set(value) {
        if (value === null || value === undefined) this.removeAttribute(name);
        else this.setAttribute(name, value);
      },
    });
  }
}

/** Calls again what a page set before the element was defined: such a property hides the setter. */
export function upgrade(element, ...names) {
  for (const name of names) {
    if (!Object.hasOwn(element, name)) continue;
    const value = element[name];
    delete element[name];
    element[name] = value;
  }
}
