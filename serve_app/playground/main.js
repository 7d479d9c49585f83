// What happens on the page: asking, stopping, comparing, looking up sources, and the key where one is needed.

import { apiKey, isAbort, nearestSources, servedModels, streamedAnswer } from "./endpoint.js";
import { AnswerPanel, decisionPanel, element, nameOf, notice, passageList, sourceItem } from "./view.js";

const LONGEST_ANSWER = 200;
const BASE_CHOICE = "";
const BASE_HAS_NO_ROWS = "The bare base model has no training rows. "
  + "Choose a culture to see those of its rows that are nearest to the question.";

const part = (id) => document.getElementById(id);

/** What was asked last, how to stop it, and whether it is answered with passages in the prompt. */
let asked = { question: "", stop: new AbortController(), readsPassages: false };
let baseModel = "";
/** What was asked in vain for want of a key. */
let waitingForKey = null;

// ---- asking

async function ask(question) {
  asked.stop.abort();
  asked = { question, stop: new AbortController(), readsPassages: false };
  const mine = asked;
  showAsked(question);
  const models = chosenModels();
  const panels = models.map((model) => new AnswerPanel(nameOf(model === baseModel ? null : model)));
  part("answers").replaceChildren(...panels.map((panel) => panel.element));
  part("comparison").hidden = !models.length;
  await Promise.all([askRouter(mine), ...models.map((model, number) => stream(mine, model, panels[number], () => {}))]);
  if (mine === asked) {
    showBusy(false);
    part("status").textContent = "";
  }
}

async function askRouter(mine) {
  const panel = new AnswerPanel("The router is reading the question", "No answer");
  part("routed").replaceChildren(panel.element);
  part("result").scrollIntoView({ block: "nearest" });
  await stream(mine, "auto", panel, (decision) => {
    part("routed").append(decisionPanel(decision));
    mine.readsPassages = Boolean(decision.passages);
    if (decision.passages?.length) {
      part("routed").append(passageList(decision.passages));
    }
    showSources(mine, decision.culture);
  });
}

/** Stream one model's answer into a panel. Problems end up in the panel, a missing key at the key's field. */
async function stream(mine, model, panel, onDecision) {
  const begun = performance.now();
  const since = () => (performance.now() - begun) / 1000;
  let firstSeconds = 0;
  let finishReason = null;
  try {
    for await (const chunk of streamedAnswer(model, mine.question, LONGEST_ANSWER, mine.stop.signal)) {
      if (chunk.culturemanager) {
        firstSeconds = since();
        panel.answeredBy(chunk.culturemanager.culture, chunk.model);
        onDecision(chunk.culturemanager);
      }
      const [choice] = chunk.choices;
      panel.add(choice.delta.content ?? "");
      finishReason = choice.finish_reason ?? finishReason;
    }
    panel.finish({ finishReason, longest: LONGEST_ANSWER, firstSeconds, seconds: since() });
  } catch (error) {
    if (isAbort(error)) {
      panel.stop();
    } else if (error.status === 401) {
      askForKey(mine);
    } else {
      panel.fail(error.message);
    }
  }
}

function stop() {
  if (!part("stop").hidden) {
    asked.stop.abort();
    showBusy(false);
    part("status").textContent = "Stopped.";
    part("question").focus();
  }
}

function showAsked(question) {
  part("problem").replaceChildren();
  part("asked").textContent = question;
  part("result").hidden = false;
  part("sources").hidden = true;
  part("status").textContent = "Asking.";
  showBusy(true);
}

function showBusy(busy) {
  part("stop").hidden = !busy;
}

// ---- side by side

function chosenModels() {
  const ticked = part("choices").querySelectorAll("input:checked");
  return [...ticked].map((box) => box.value === BASE_CHOICE ? baseModel : box.value);
}

function showChoices(cultures) {
  const choices = [...cultures, ...(baseModel ? [BASE_CHOICE] : [])];
  part("choices").replaceChildren(...choices.map((culture) => {
    const box = element("input", { type: "checkbox", value: culture });
    return element("label", { className: "choice" }, box, nameOf(culture));
  }));
  part("cultures").hidden = !choices.length;
}

/** Three questions to begin with: two that name a culture of this endpoint, and one that names none. */
function showExamples(cultures) {
  if (!cultures.length) {
    return;
  }
  const [first, second] = [cultures[0], cultures.at(-1)].map(nameOf);
  const questions = [
    `Should I take off my shoes in ${first}?`,
    `Advice, please: should I tip in ${second}?`,
    "How late may I arrive for dinner?",
  ];
  const buttons = questions.map((question) => {
    const button = element("button", { type: "button", className: "link", text: question });
    button.addEventListener("click", () => askAgain(question));
    return button;
  });
  part("examples").replaceChildren(part("examples").firstElementChild, ...buttons);
  part("examples").hidden = false;
}

function askAgain(question) {
  part("question").value = question;
  part("question").focus();
  ask(question);
}

// ---- sources

async function showSources(mine, culture) {
  part("sources").hidden = false;
  part("sources-culture").value = culture ?? "";
  part("sources-list").replaceChildren();
  if (!culture) {
    part("sources-note").textContent = BASE_HAS_NO_ROWS;
    return;
  }
  part("sources-note").textContent = "Looking for the nearest training rows.";
  try {
    const { data, reason } = await nearestSources(culture, mine.question, mine.stop.signal);
    if (mine !== asked || part("sources-culture").value !== culture) {
      return;  // another question or culture came in between
    }
    const use = mine.readsPassages ? "It learnt from them; what it looked up stands under the answer."
      : "It learnt from them; it does not look them up when it answers.";
    part("sources-note").textContent = reason ?? `Sentences that ${nameOf(culture)}’s adapter was trained on, those nearest to the `
      + `question first. ${use}`;
    part("sources-list").replaceChildren(...data.map((source, number) => sourceItem(source, number === 0)));
  } catch (error) {
    part("sources-note").textContent = isAbort(error) ? "You stopped the search." : error.message;
  }
}

function showSourceCultures(cultures) {
  const options = cultures.map((culture) => element("option", { value: culture, text: nameOf(culture) }));
  part("sources-culture").replaceChildren(element("option", { value: "", text: "Choose" }), ...options);
}

// ---- the key

/** Show the key's field; what waited for the key is asked once it is there. */
function askForKey(waiting = null) {
  const wasRefused = Boolean(apiKey.read());
  apiKey.forget();
  part("forget-key").hidden = true;
  part("key-form").hidden = false;
  waitingForKey = waiting ?? waitingForKey;
  part("result").hidden = true;
  part("comparison").hidden = true;
  showBusy(false);
  if (wasRefused) {
    part("problem").replaceChildren(notice("This key was not accepted. Check it and enter it again."));
  }
  part("key").value = "";
  part("key").focus();
}

async function useKey() {
  apiKey.keep(part("key").value.trim());
  if (await start() && waitingForKey) {
    const { question } = waitingForKey;
    waitingForKey = null;
    ask(question);
  }
}

// ---- the beginning

/** Ask what is served; whether that was answered. */
async function start() {
  part("problem").replaceChildren();
  try {
    const { cultures, base } = await servedModels();
    baseModel = base;
    part("key-form").hidden = true;
    part("forget-key").hidden = !apiKey.read();
    showChoices(cultures);
    showExamples(cultures);
    showSourceCultures(cultures);
    part("question").focus();
    return true;
  } catch (error) {
    if (error.status === 401) {
      askForKey();
    } else {
      const again = element("button", { type: "button", className: "quiet", text: "Try again" });
      again.addEventListener("click", start);
      part("problem").replaceChildren(notice(error.message), again);
    }
    return false;
  }
}

part("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = part("question").value.trim();
  if (question) {
    ask(question);
  }
});
part("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    part("ask-form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    stop();
  }
});
part("stop").addEventListener("click", stop);
part("sources-culture").addEventListener("change", (event) => {
  asked.stop = asked.stop.signal.aborted ? new AbortController() : asked.stop;
  showSources(asked, event.target.value);
});
part("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey();
});
part("forget-key").addEventListener("click", () => {
  apiKey.forget();
  askForKey();
});

start();
