// What htmx doesn't do: replies as they come, stopping them, files, and the keyboard.
"use strict";

const one = (selector, within = document) => within.querySelector(selector);
const query = document.body.dataset.query;
const session = new URLSearchParams(query).get("session");
// Tells whose memory a call is about, so that of several replicas the one that knows it best can answer: UTF-8, byte by byte.
const whose = session === null ? {} : { "x-session-id": String.fromCharCode(...new TextEncoder().encode(session)) };

function notice(text) {
  const box = one("#notice");
  box.replaceChildren();
  if (!text) return;
  const words = document.createElement("p");
  words.textContent = text;
  const close = document.createElement("button");
  close.type = "button";
  close.className = "link";
  close.dataset.dismiss = "";
  close.setAttribute("aria-label", "Dismiss");
  close.textContent = "✕";
  box.append(words, close);
}

function show(view) {
  document.body.dataset.view = view;
  for (const button of document.querySelectorAll("[data-show]"))
    button.setAttribute("aria-pressed", String(button.dataset.show === view));
}

// --- replies

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Posts fields and gives each event of the answer to `seen`. Throws what went wrong, in words. */
async function stream(path, fields, seen, signal) {
  const answer = await fetch(path, {
    method: "POST",
    body: new URLSearchParams(fields),
    headers: { accept: "text/event-stream", ...whose },
    signal,
  });
  if (answer.status === 401) location.assign("/sign-in");
  if (!answer.ok) {
    const body = await answer.json().catch(() => null);
    throw new Error(body?.error?.message ?? `the server answered ${answer.status}`);
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", complete = false;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = JSON.parse(event.slice("data: ".length));
      if (data.error) throw new Error(data.error.message);
      if (data.done) complete = true;
      seen(data);
    }
  }
  if (!complete) throw new Error("the connection ended before the reply did: nothing was kept");
}

class Talk {
  constructor(form) {
    this.form = form;
    this.thread = one("#thread");
    this.text = one("#text");
    this.stop = one(".stop", form);
    this.send = one(".send", form);
    this.beside = one("#beside");
    this.window = one("#window");
    this.editing = one(".editing", form);
    this.edited = null;
    this.running = null;

    form.addEventListener("submit", (event) => { event.preventDefault(); this.submit(); });
    this.stop.addEventListener("click", () => this.running?.abort());
    this.text.addEventListener("input", () => this.grow());
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); this.submit(); }
    });
    this.beside.addEventListener("change", () => { this.window.hidden = this.beside.checked; });
    one("[data-cancel]", form).addEventListener("click", () => this.edit(null));
    this.thread.addEventListener("click", (event) => {
      const { edit, again } = event.target.dataset;
      if (edit) this.edit(edit, one(".text", event.target.closest(".said")).textContent);
      if (again) this.again(again, event.target.closest(".turn"));
      const trace = event.target.closest(".trace > summary")?.parentElement;
      if (trace && trace === this.lastTrace) localStorage.traces = trace.open ? "closed" : "open"; // as it will be
    });
    this.thread.addEventListener("htmx:afterSettle", (event) => {
      if (event.target === this.thread || event.target.contains(this.lastTrace)) this.openTrace();
    });
    document.addEventListener("DOMContentLoaded", () => this.openTrace());
    this.toEnd();
  }

  grow() {
    this.text.style.height = "auto";
    this.text.style.height = `${Math.min(this.text.scrollHeight + 2, 220)}px`;
  }

  /** The id of the newest turn that was kept. */
  get head() { return one(".turn:last-of-type", this.thread)?.dataset.snapshot; }

  get lastTrace() { return one(".turn:last-of-type > .trace", this.thread); }

  /** What the newest turn wrote is shown by itself, until somebody closes it. */
  openTrace() {
    if (this.lastTrace && localStorage.traces !== "closed") this.lastTrace.open = true;
  }

  toEnd() { this.thread.scrollTop = this.thread.scrollHeight; }

  edit(handle, text = "") {
    this.edited = handle;
    this.editing.hidden = handle === null;
    this.text.value = text;
    this.grow();
    this.text.focus();
  }

  async submit() {
    const text = this.text.value.trim();
    if (!text || this.running) return;
    const edited = this.edited, beside = this.beside.checked;
    const fields = edited ? { message: edited, text } : { text };
    if (!edited && (beside || this.form.recent.value)) fields.recent = beside ? "0" : this.form.recent.value;
    const turn = element("article", "turn coming");
    const said = element("div", "said user");
    said.append(element("div", "text", text));
    turn.append(said);
    const replaced = edited && one(`[data-edit="${CSS.escape(edited)}"]`, this.thread)?.closest(".turn");
    this.edit(null);
    const path = edited ? "/page/again" : "/page/say";
    const kept = await this.reply(turn, path, fields, { replaced, compared: beside ? text : null });
    if (!kept && !this.text.value) this.edit(edited, text);
  }

  again(handle, turn) {
    if (this.running) return;
    const coming = element("article", "turn coming");
    const said = element("div", "said user");
    said.append(element("div", "text", one(".said.user .text", turn)?.textContent ?? ""));
    coming.append(said);
    this.reply(coming, "/page/again", { message: handle }, { replaced: turn });
  }

  /** Takes a turn and what follows it out of sight: the thread is shown anew in the end, whatever came. */
  drop(turn) {
    while (turn) {
      const next = turn.nextElementSibling;
      turn.remove();
      turn = next;
    }
  }

  /** Shows a reply as it comes, and beside it the frozen model's; whether the turn was kept. */
  async reply(turn, path, fields, { replaced = null, compared = null }) {
    const before = this.head;
    this.drop(replaced);
    this.running = new AbortController();
    const { signal } = this.running;
    this.busy(true);
    notice("");
    one(".empty", this.thread)?.remove();
    this.thread.append(turn);
    const answers = element("div", "answers");
    const said = element("div", "said assistant");
    said.append(answers);
    turn.append(said);
    const all = [this.column(answers, `${path}?${query}`, fields, signal, compared === null ? null : "With memory")];
    if (compared !== null)
      all.push(this.column(answers, `/page/without?${query}`, { text: compared }, signal, "Without memory"));
    const [kept, other] = await Promise.all(all);
    const stopped = signal.aborted;
    this.running = null;
    this.busy(false);
    await this.refresh();
    if (other?.column) this.putBeside(other.column, kept.column);
    const { head } = this; // the server may have been done when it was stopped
    const whole = kept.whole || (head !== undefined && head !== before);
    if (stopped && !kept.whole)
      notice(whole ? "It was complete before it was stopped, and is kept." : "Stopped. Nothing of it was kept: the memory is as it was.");
    const failed = kept.error ?? other?.error;
    if (failed && !stopped) notice(failed);
    return whole;
  }

  /** One reply into a column; an error is a value, so that the other column goes on. */
  async column(answers, path, fields, signal, title) {
    const column = element("div", title === null ? "column" : "column titled");
    if (title !== null) column.append(element("p", "role", title));
    const text = element("div", "text waiting");
    column.append(text);
    answers.append(column);
    this.toEnd();
    try {
      await stream(path, fields, (data) => {
        const low = this.thread.scrollHeight - this.thread.scrollTop - this.thread.clientHeight < 60;
        if (data.text) { text.classList.remove("waiting"); text.append(data.text); }
        if (low) this.toEnd();
      }, signal);
      text.classList.remove("waiting");
      return { whole: true, column };
    } catch (error) {
      text.classList.remove("waiting");
      if (!text.textContent) text.append(signal.aborted ? "(stopped)" : "(failed)");
      return { whole: false, column, error: error.message };
    }
  }

  /** The conversation as the server has it now. */
  async refresh() {
    await htmx.ajax("GET", `/page/thread?${query}`, { target: "#thread", swap: "innerHTML" });
    htmx.trigger(one("#list"), "refresh");
    const tab = one("[role=tab][aria-selected=true]");
    if (tab) htmx.trigger(tab, "refresh");
    this.toEnd();
  }

  /** The frozen model's reply stays in sight beside the one that was kept; it is kept nowhere. */
  putBeside(column, kept) {
    const answers = one(".turn:last-of-type .said.assistant:last-of-type .answers", this.thread);
    if (!answers) return;
    answers.replaceChildren(kept, column);
    column.append(element("p", "quiet", "not kept"));
    this.toEnd();
  }

  busy(on) {
    this.stop.hidden = !on;
    this.send.hidden = on;
    this.thread.setAttribute("aria-busy", String(on));
    if (on) this.stop.focus(); else this.text.focus();
  }
}

// --- the rest of the page

/** Shows a dialog; whether it was confirmed. */
function confirmed(dialog) {
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

async function takeIn(input) {
  const [file] = input.files;
  if (!file) return;
  const dialog = one("#taken"), name = one("input", dialog);
  name.value = file.name.replace(/\.zip$/, "");
  input.value = "";
  if (!(await confirmed(dialog)) || !name.value.trim()) return;
  notice("");
  const answer = await fetch(`/page/import?${new URLSearchParams({ session: name.value.trim() })}`, { method: "POST", body: file });
  const body = await answer.json().catch(() => null);
  if (answer.ok) location.assign(body.address);
  else notice(body?.error?.message ?? `the server answered ${answer.status}`);
}

function select(tab) {
  for (const other of document.querySelectorAll("[role=tab]")) {
    other.setAttribute("aria-selected", String(other === tab));
    other.tabIndex = other === tab ? 0 : -1;
  }
  one("#part").setAttribute("aria-labelledby", tab.id);
}

/** Asks in a dialog of the page's own before htmx sends what carries `hx-confirm`. */
async function ask(event) {
  const { question, elt } = event.detail;
  if (!question) return;
  event.preventDefault();
  const dialog = one("#sure"), purge = one(".purge", dialog), box = one("input", purge);
  one("#sure-what").textContent = question;
  purge.hidden = !("purge" in elt.dataset);
  box.checked = false;
  if (!(await confirmed(dialog))) return;
  if (!purge.hidden) elt.dataset.purge = String(box.checked);
  event.detail.issueRequest(true);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.show) show(button.dataset.show);
  if ("dismiss" in button.dataset) notice("");
  if ("close" in button.dataset) button.closest("dialog").close("no");
  if (button.getAttribute("role") === "tab") select(button);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") one(".stop:not([hidden])")?.click();
  if (event.target.getAttribute?.("role") !== "tab" || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const step = event.key === "ArrowRight" ? 1 : tabs.length - 1;
  const next = tabs[(tabs.indexOf(event.target) + step) % tabs.length];
  next.focus();
  next.click();
});
document.addEventListener("htmx:confirm", ask);
document.addEventListener("htmx:configRequest", (event) => {
  Object.assign(event.detail.headers, whose);
  if (event.detail.elt.dataset.purge === "true") event.detail.parameters.purge = "true";
});
document.addEventListener("htmx:beforeSwap", (event) => {
  const { xhr } = event.detail;
  if (!xhr.getResponseHeader("content-type")?.startsWith("application/json")) return;
  event.detail.shouldSwap = false; // an error from in front of the page's own routes, or behind them
  notice(JSON.parse(xhr.responseText).error?.message ?? `the server answered ${xhr.status}`);
});
document.addEventListener("htmx:sendError", () => notice("The server cannot be reached."));
document.body.addEventListener("memory-changed", () => {
  notice("");
  const tab = one("[role=tab][aria-selected=true]");
  if (tab) htmx.trigger(tab, "refresh");
});
document.addEventListener("change", (event) => { if ("import" in event.target.dataset) takeIn(event.target); });
for (const form of document.querySelectorAll("#say")) new Talk(form);
show(document.body.dataset.view);
