// What the views share. Text from the server goes into the page by textContent alone: titles and file names are data.

export const $ = (id) => document.getElementById(id);

/** A state as icon and word; colour only repeats it. */
export function showBadge(badge, status, words) {
  badge.dataset.status = status;
  badge.querySelector("use").setAttribute("href", `#icon-${status}`);
  badge.lastElementChild.textContent = words[status] ?? status;
}

/** Sets a progress bar; a share of null means that it is not known yet. */
export function showBar(bar, share, words) {
  bar.classList.toggle("unknown", share === null);
  bar.firstElementChild.style.transform = `scaleX(${share ?? 0})`;
  if (share === null) bar.removeAttribute("aria-valuenow");
  else bar.setAttribute("aria-valuenow", Math.floor(share * 100));
  bar.setAttribute("aria-valuetext", words);
}
