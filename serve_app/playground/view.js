// The elements of the page. Text from a model or a web page is only ever set as text.

const MOST_BARS = 5;

/** What to call who answers; a culture's id is its name in small letters. */
export function nameOf(culture) {
  return culture ? culture.split("_").map((word) => word.charAt(0).toUpperCase() + word.slice(1)).join(" ") : "Bare base model";
}

/** An element with a class, a text and children, each of them optional. */
export function element(tag, { className = "", text = "", ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) {
    made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A problem in words. */
export function notice(message) {
  return element("p", { className: "notice", role: "alert", text: message });
}

/** A box that one answer streams into. Its title says who answers: until that is known `title`, in the end `unanswered`. */
export class AnswerPanel {
  #title;
  #unanswered;
  #version = element("span", { className: "muted" });
  #text = element("p", { className: "answer", "aria-live": "polite", "aria-busy": "true" });
  #footer = element("p", { className: "muted" });

  constructor(title, unanswered = title) {
    this.#unanswered = unanswered;
    this.#title = element("span", { text: title });
    const heading = element("h3", {}, this.#title, this.#version);
    this.element = element("article", { className: "card panel" }, heading, this.#text, this.#footer);
  }

  /** Name who answers, as the endpoint tells it with the first piece. */
  answeredBy(culture, model) {
    this.#title.textContent = this.#unanswered = nameOf(culture);
    this.#version.textContent = culture ? model : "";
  }

  add(text) {
    this.#text.append(text);
  }

  /** The answer ended by itself or at the longest it may be. */
  finish({ finishReason, longest, firstSeconds, seconds }) {
    const cut = finishReason === "length" ? `Cut off after ${longest} tokens. ` : "";
    const silent = this.#text.textContent.trim() ? "" : "The model answered without a word. ";
    this.#end(`${silent}${cut}First words after ${shownSeconds(firstSeconds)}, all after ${shownSeconds(seconds)}.`);
  }

  stop() {
    this.#end("You stopped the answer here.");
  }

  fail(message) {
    this.#end("");
    this.element.append(notice(message));
  }

  #end(remark) {
    this.#title.textContent = this.#unanswered;
    this.#text.setAttribute("aria-busy", "false");
    this.#text.hidden = !this.#text.textContent.trim();
    this.#footer.textContent = remark;
  }
}

function shownSeconds(seconds) {
  return `${seconds.toFixed(1)} s`;
}

/** Why the router sent the question where it did, in words and as bars. */
export function decisionPanel(decision) {
  const title = decision.culture ? `Why ${nameOf(decision.culture)}` : "Why no culture";
  return element("aside", { className: "decision" },
    element("h3", { text: title }), element("p", { text: reasonFor(decision) }), bars(decision));
}

function reasonFor({ culture, confidence, reason, probabilities }) {
  if (reason === "abstained") {
    const [likeliest] = ranked(probabilities);
    const guess = likeliest
      ? `The likeliest culture, ${nameOf(likeliest[0])}, came to ${percent(likeliest[1])}.`
      : "Nothing in the question pointed to one.";
    return "The router was not sure enough to pick a culture, so the bare base model answered, "
      + `without any culture’s adapter. ${guess}`;
  }
  const name = nameOf(culture);
  const because = {
    named: `the question names ${name}, or a place, a person or a word from there`,
    language: `the question is in a language of ${name}`,
    classifier: `the question is like those that ${name}’s training rows answer`,
    pinned: "it was asked for by name",
  }[reason] ?? reason;
  return `The router is ${percent(confidence)} sure: ${because}.`;
}

/** Horizontal bars of the likeliest cultures; what is left belongs to the others and to none. */
function bars({ culture, probabilities }) {
  const all = ranked(probabilities);
  const shown = all.slice(0, MOST_BARS);
  const others = all.slice(MOST_BARS);
  const rows = shown.map(([name, share]) => bar(nameOf(name), share, name === culture));
  if (others.length) {
    rows.push(bar(`${others.length} others`, sum(others), false));
  }
  const none = 1 - sum(all);
  if (none >= 0.0005) {  // less is what rounding left over
    rows.push(bar("None of them", none, false));
  }
  return element("ul", { className: "bars", "aria-label": "The router’s probabilities" }, ...rows);
}

function bar(name, share, chosen) {
  const filled = element("span", { className: "filled" });
  filled.style.inlineSize = `${100 * share}%`;
  return element("li", { className: chosen ? "chosen" : "" },
    element("span", { className: "name", text: name }),
    element("span", { className: "track", "aria-hidden": "true" }, filled),
    element("span", { className: "share", text: percent(share) }));
}

function ranked(probabilities) {
  return Object.entries(probabilities).filter(([, share]) => share > 0).sort(([, one], [, other]) => other - one);
}

function sum(entries) {
  return entries.reduce((total, [, share]) => total + share, 0);
}

/** A share in percent; only a certain one is 0% or 100%. */
export function percent(share) {
  if (share > 0 && share < 0.005) {
    return "under 1%";
  }
  return share < 1 && share >= 0.995 ? "over 99%" : `${Math.round(100 * share)}%`;
}

/** What the model was given to read with the question. */
export function passageList(passages) {
  const items = passages.map(({ title, url, text }) => element("li", {},
    element("blockquote", { text }), element("p", { className: "muted" }, ...(title ? [title, " · "] : []), address(url))));
  return element("aside", { className: "read" },
    element("h3", { text: "What it looked up" }), element("ol", { className: "sources" }, ...items));
}

/** A sentence that training rows stand on: where and when it was found, and the rows. */
export function sourceItem({ quote, title, url, fetched_at: fetchedAt, rows }, open) {
  const found = element("p", { className: "muted" }, ...(title ? [title, " · "] : []), address(url),
    " · ", element("time", { text: `fetched ${day(fetchedAt)}`, datetime: fetchedAt }));
  const lines = rows.map((row) => element("li", {},
    element("span", { className: "task", text: row.task }),
    element("span", { className: "prompt", text: row.prompt }),
    element("span", { className: "completion", text: row.completion })));
  const summary = rows.length === 1 ? "The training row made from it" : `The ${rows.length} training rows made from it`;
  const made = element("details", open ? { open: "" } : {},
    element("summary", { text: summary }), element("ul", { className: "rows" }, ...lines));
  return element("li", {}, element("blockquote", { text: quote }), found, made);
}

/** A link, if it leads to the web: an address out of a page or a folder may be anything. */
function address(url) {
  if (!/^https?:\/\//i.test(url)) {
    return element("span", { className: "address", text: url });
  }
  return element("a", { className: "address", href: url, rel: "noopener noreferrer", target: "_blank", text: url });
}

function day(moment) {
  return new Date(moment).toLocaleDateString("en-GB", { day: "numeric", month: "long", year: "numeric", timeZone: "UTC" });
}
