// Helpers of all views. Text from the server enters the page by textContent only: titles and file names are data, never HTML.

export const $ = (id) => document.getElementById(id);

/** Shows a state as an icon and a word. */
export function showBadge(badge, status, words) {
  badge.dataset.status = status;
  badge.querySelector("use").setAttribute("href", `#icon-${status}`);
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
