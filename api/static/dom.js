// Helpers of all views. Text from the server enters the page by textContent only: titles and file names are data, never HTML.

export const $ = (id) => document.getElementById(id);
