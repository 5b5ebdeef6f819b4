"use strict";
const el = (id) => document.getElementById(id);
let latest = 0; // the newest picture: answers to older ones are dropped
let shown = []; // addresses of pictures to let go
let waiting = null; // the picture that waits for a token

function say(text, bad) {
  el("status").textContent = text;
  el("status").classList.toggle("bad", Boolean(bad));
}

async function ask(path, options) {
  const token = el("token").value.trim();
  const headers = token ? { Authorization: "Bearer " + token } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw new Error("The service does not answer. Is it still running?");
  }
  if (response.ok) return response;
  if (response.status === 401) el("ask").hidden = false;
  let reason = response.statusText;
  try { reason = (await response.json()).error; } catch (error) { /* the status has to do */ }
  throw new Error(reason || "Error " + response.status);
}

function percent(share) {
  return (100 * share).toFixed(1) + " %";
}

function list(top) {
  el("classes").replaceChildren(...top.map((guess) => {
    const item = document.createElement("li");
    const name = document.createElement("span");
    const share = document.createElement("span");
    const bar = document.createElement("progress");
    name.className = "name"; share.className = "share";
    name.textContent = guess.name;
    share.textContent = percent(guess.probability);
    bar.max = 1; bar.value = guess.probability;
    bar.setAttribute("aria-hidden", "true"); // the number beside it says the same
    item.append(name, share, bar);
    return item;
  }));
}

function picture(id, blob) {
  const address = URL.createObjectURL(blob);
  shown.push(address);
  el(id).src = address;
}

async function predict(file) {
  const mine = ++latest;
  el("result").hidden = true;
  shown.forEach(URL.revokeObjectURL);
  shown = [];
  waiting = file;
  say("Looking at " + (file.name || "the picture") + "…");
  const query = "?model=" + encodeURIComponent(el("name").value);
  try {
    const started = performance.now();
    const answer = await (await ask("/predict" + query, { method: "POST", body: file })).json();
    const seconds = (performance.now() - started) / 1000;
    const seen = await (await ask("/preview" + query, { method: "POST", body: file })).blob();
    if (mine !== latest) return;
    waiting = null;
    list(answer.top);
    picture("given", file);
    picture("seen", seen);
    el("latency").textContent = "Answered in " + (1000 * seconds).toFixed(0) + " ms, the way to the service included.";
    el("result").hidden = false;
    say(answer.top[0].name + ", " + percent(answer.top[0].probability));
  } catch (error) {
    if (mine === latest) say(error.message, true);
  }
}

async function describe() {
  try {
    const server = await (await ask("/v2")).json();
    if (el("name").options.length === 0) server.models.forEach((name) => el("name").add(new Option(name, name)));
    el("choose").hidden = server.models.length < 2;
    const model = await (await ask("/v2/models/" + encodeURIComponent(el("name").value))).json();
    const about = model.parameters;
    el("model").textContent = about.variant + ", " + about.classes.length + " classes, on " + about.backend + ", weights " +
      about.digest.replace("sha256:", "").slice(0, 12);
    el("ask").hidden = true;
    return true;
  } catch (error) {
    el("model").textContent = error.message;
    return false;
  }
}

function take(files) {
  const file = Array.from(files || [])[0];
  if (file) predict(file);
}

for (const id of ["file", "camera"]) {
  const input = el(id);
  input.addEventListener("click", () => { input.value = ""; }); // the same picture again is a change too
  input.addEventListener("change", () => take(input.files));
  const label = document.querySelector('label[for="' + id + '"]');
  input.addEventListener("focus", () => label.classList.add("focused"));
  input.addEventListener("blur", () => label.classList.remove("focused"));
}
const drop = el("drop");
document.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => take(event.clipboardData.files));
el("name").addEventListener("change", describe);
el("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (await describe() && waiting) predict(waiting);
});
describe();
