// Buttons of the status page, and what changes on it while it is open. Texts of the server are shown as text, never as markup run.
// The token stays in this tab.
"use strict";

const KEY = "vmstation-wake-token";
// Between the news of a change and the question for the page, which leaves most of a client's share of requests for wakes, milliseconds.
const PAUSE = 2000;
// Ages on a page that is seen are not much older than this, milliseconds.
const STALE = 120000;
// Until a server that refused to tell its news is asked again, milliseconds.
const AGAIN = 10000;

const token = document.getElementById("token");
const result = document.getElementById("result");
const live = document.getElementById("live");
// Ids of buttons whose request is under way. They stay enabled, so that they keep the focus.
const busy = new Set();

function say(text, failed) {
  result.textContent = text;
  result.classList.toggle("failed", failed);
}

// A browser may forbid the store; the token then lasts as long as the page.
function remember(value) {
  try {
    if (value) { sessionStorage.setItem(KEY, value); } else { sessionStorage.removeItem(KEY); }
  } catch (_forbidden) { }
}

function remembered() {
  try { return sessionStorage.getItem(KEY) || ""; } catch (_forbidden) { return ""; }
}

async function act(button) {
  const { action, node } = button.dataset;
  const { id } = button;
  if (busy.has(id)) { return; }
  if (!token.value) {
    say("Enter the token first.", true);
    token.focus();
    return;
  }
  if (!/^[\x21-\x7e]+$/.test(token.value)) {
    say("A token has no spaces and no other letters than those of ASCII.", true);
    token.focus();
    return;
  }
  const wakes = action === "wake";
  const path = "/" + action + "/" + encodeURIComponent(node) + (wakes ? "?verify=true" : "");
  busy.add(id);
  prepare(document);
  say(wakes ? "Waking " + node + " .." : "Asking " + node + " to sleep ..", false);
  try {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "X-Auth-Token": token.value },
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
    });
    const text = await answer.text();
    let message = "";
    try { message = JSON.parse(text).message; } catch (_notJson) { }
    if (typeof message !== "string" || message === "") {
      const done = wakes ? "woken." : "ordered to sleep; its agent hears of it as soon as it asks.";
      message = answer.ok ? done : "HTTP status " + answer.status + ".";
    }
    say(node + ": " + message, !answer.ok);
    if (answer.status === 401) { token.focus(); }
  } catch (error) {
    say(node + ": no answer of the server (" + error.message + ").", true);
  } finally {
    busy.delete(id);
    prepare(document);
    soon();
  }
}

// What only a script can do is shown where there is one.
function prepare(page) {
  for (const hidden of page.querySelectorAll("#token-form, #live, .act")) { hidden.hidden = false; }
  for (const button of page.querySelectorAll("button[data-action]")) {
    if (busy.has(button.id)) { button.setAttribute("aria-disabled", "true"); } else { button.removeAttribute("aria-disabled"); }
  }
}

// Makes `old` what `fresh` is. What is the same is not touched, so that focus, selection and scroll positions stay. Children with an id
// stand in the same order in both.
function follow(old, fresh) {
  if (old.isEqualNode(fresh)) { return; }
  for (const { name } of [...old.attributes]) { if (!fresh.hasAttribute(name)) { old.removeAttribute(name); } }
  for (const { name, value } of fresh.attributes) { if (old.getAttribute(name) !== value) { old.setAttribute(name, value); } }
  const kept = new Map([...old.children].filter((child) => child.id).map((child) => [child.id, child]));
  let at = old.firstChild;
  const drop = () => {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  };
  for (const child of [...fresh.childNodes]) {
    const its = kept.get(child.id);
    while (its && at && at !== its) { drop(); }
    if (!at || at.nodeName !== child.nodeName || at.id !== child.id) {
      old.insertBefore(child, at);
      continue;
    }
    if (at.nodeType === Node.ELEMENT_NODE) { follow(at, child); } else if (at.data !== child.data) { at.data = child.data; }
    at = at.nextSibling;
  }
  while (at) { drop(); }
}

let changed = false;
let asking = false;

// Asks for the page, once for all that happens within the pause.
async function soon() {
  changed = true;
  if (asking) { return; }
  asking = true;
  while (changed && !document.hidden) {
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
    changed = false;
    // The mark tells that the server is gone; when it is back, its news begin anew.
    try { await update(); } catch (_gone) { }
  }
  asking = false;
}

async function update() {
  const answer = await fetch("/", { credentials: "omit", cache: "no-store", redirect: "error" });
  if (!answer.ok) { return; }
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  prepare(page);
  for (const part of ["time", "main"]) {
    const fresh = page.getElementById(part);
    if (fresh) { follow(document.getElementById(part), fresh); }
  }
}

let news = null;

// A page that nobody sees takes no connection.
function listen() {
  if (news || document.hidden) { return; }
  const source = new EventSource("/events");
  news = source;
  source.onopen = () => mark("live", "good");
  for (const what of ["open", "node", "wake", "missed"]) { source.addEventListener(what, soon); }
  source.onerror = () => {
    mark("not connected", "bad");
    if (source.readyState === EventSource.CLOSED && news === source) {
      news = null;
      setTimeout(listen, AGAIN);
    }
  };
}

function mark(words, kind) {
  if (live.textContent !== words) { live.textContent = words; }
  live.className = kind;
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) {
    listen();
    soon();
  } else if (news) {
    news.close();
    news = null;
  }
});
setInterval(soon, STALE);

token.value = remembered();
token.addEventListener("input", () => remember(token.value));
document.getElementById("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  say("The token is kept until this tab is closed.", false);
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-action]");
  if (button) { act(button); }
});
prepare(document);
mark("connecting", "");
listen();
