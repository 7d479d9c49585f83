// The requests to the endpoint: the key, the stream of an answer, and errors in words.

const KEY_NAME = "culturemanager-api-key";
const LONGEST_SOURCES_QUERY = 2000;

/** What to do about a status, after what the endpoint itself said. */
const ADVICE = {
  400: "Change the question and ask again.",
  403: "Choose another culture, or use a key that may ask for it.",
  404: "Load the page again to see what is served now.",
  413: "Shorten the question and ask again.",
  500: "Ask again; if it stays, the endpoint’s log says more.",
  503: "Ask again in a few seconds; if it stays, the endpoint’s log says more.",
};

const OUT_OF_REACH = "The endpoint cannot be reached. Check your connection, and that it still runs; then ask again.";

/** A request that got no answer; the message is for a person to read. */
export class EndpointError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.name = "EndpointError";
    this.status = status;
  }
}

/** The API key, kept for this tab only. */
export const apiKey = {
  read: () => sessionStorage.getItem(KEY_NAME) ?? "",
  keep: (key) => sessionStorage.setItem(KEY_NAME, key),
  forget: () => sessionStorage.removeItem(KEY_NAME),
};

/** The cultures that can be asked for, and the base: `auto` comes first in the list, then the base, cultures, versions. */
export async function servedModels() {
  const { data } = await readJson(await request("v1/models"));
  const [, base, ...others] = data.map((model) => model.id);
  return { base, cultures: others.filter((name) => !/-v\d+$/.test(name)) };
}

/** The training rows' sentences nearest to a question. */
export async function nearestSources(culture, question, signal) {
  const query = new URLSearchParams({ query: question.slice(0, LONGEST_SOURCES_QUERY), limit: "5" });
  return readJson(await request(`v1/cultures/${encodeURIComponent(culture)}/sources?${query}`, { signal }));
}

/**
 * Ask a model and yield the chunks of its answer as they arrive, in OpenAI's format.
 * The first one carries the routing decision under `culturemanager`.
 */
export async function* streamedAnswer(model, question, longest, signal) {
  const body = { model, messages: [{ role: "user", content: question }], max_tokens: longest, stream: true };
  const headers = { "Content-Type": "application/json" };
  const response = await request("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  for await (const data of serverSentEvents(response.body)) {
    if (data === "[DONE]") {
      return;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) {
      throw new EndpointError(`${asSentence(chunk.error.message)} Ask again.`);
    }
    yield chunk;
  }
  throw new EndpointError("The answer broke off before its end. Ask again.");
}

async function* serverSentEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await read(reader);
    if (done) {
      return;
    }
    const events = (waiting + value).split("\n\n");
    waiting = events.pop();
    for (const event of events) {
      yield event.replace(/^data: /, "");
    }
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw isAbort(error) ? error : new EndpointError("The connection was lost while the answer came in. Ask again.");
  }
}

async function request(path, options = {}) {
  const key = apiKey.read();
  const headers = key ? { ...options.headers, Authorization: `Bearer ${key}` } : options.headers;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw isAbort(error) ? error : new EndpointError(OUT_OF_REACH);
  }
  if (!response.ok) {
    throw await refused(response);
  }
  return response;
}

async function readJson(response) {
  try {
    return await response.json();
  } catch (error) {
    throw isAbort(error) ? error : new EndpointError("The endpoint’s answer could not be read. Ask again.");
  }
}

/** The endpoint's own words and, unless they say so themselves, what a person can do. */
async function refused(response) {
  const unsaid = `The endpoint answered with status ${response.status}`;
  const said = asSentence(await response.json().then((body) => body.error.message).catch(() => unsaid));
  if (/\bagain\b/i.test(said)) {
    return new EndpointError(said, response.status);
  }
  const advice = response.status === 429 ? waitingAdvice(response) : ADVICE[response.status] ?? "Ask again in a while.";
  return new EndpointError(`${said} ${advice}`, response.status);
}

function waitingAdvice(response) {
  const seconds = Number(response.headers.get("Retry-After")) || 1;
  return `Wait ${seconds === 1 ? "a second" : `${seconds} seconds`}, then ask again.`;
}

function asSentence(text) {
  const sentence = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(sentence) ? sentence : `${sentence}.`;
}

/** Whether a request ended because the person stopped it. */
export function isAbort(error) {
  return error.name === "AbortError";
}
