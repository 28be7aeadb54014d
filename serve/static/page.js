"use strict";
// Text from documents and models is untrusted: it is inserted as text nodes only, never as HTML.

const byId = (id) => document.getElementById(id);
const form = byId("ask"), question = byId("question"), go = byId("go"), stop = byId("stop");
const statusLine = byId("status"), text = byId("text"), draft = byId("draft"), list = byId("hits");
const quotes = byId("quotes"), write = byId("write");
const unlock = byId("unlock"), key = byId("key");

const parameters = new URLSearchParams(location.search);
write.checked = parameters.get("answer") === "generate";

let running = null; // the AbortController of the current request
let hits = [];

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (question.value.trim()) ask(question.value.trim());
});
unlock.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", key.value.trim()); // for this tab, until it is closed
  unlock.hidden = true;
  key.value = "";
  if (question.value.trim()) ask(question.value.trim());
});
stop.addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "/" && document.activeElement.tagName !== "INPUT") {
    event.preventDefault();
    question.focus();
  }
});

async function ask(asked) {
  running?.abort();
  const mine = (running = new AbortController());
  const began = performance.now();
  const how = write.checked ? "generate" : "quote";
  history.replaceState(null, "", "?" + new URLSearchParams({ q: asked, ...(write.checked && { answer: how }) }));
  clear();
  say("Searching…");
  stop.hidden = false;
  try {
    const known = sessionStorage.getItem("key");
    const response = await fetch("/v1/answer", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...(known && { Authorization: `Bearer ${known}` }) },
      body: JSON.stringify({ question: asked, answer: how, stream: true }),
      signal: mine.signal,
    });
    if (response.status === 401) {
      unlock.hidden = false;
      key.focus();
      throw new Error(known ? "The API key is wrong." : "This server needs an API key.");
    }
    if (!response.ok) throw new Error(await messageOf(response));
    let answered = false, failure = null; // of a remote generator; the quotes are shown anyway
    for await (const { name, data } of events(response.body)) {
      if (name === "sources") showHits(data);
      if (name === "token") text.append(data.text);
      if (name === "error") throw new Error(data.error.message);
      if (name === "done") {
        showAnswer(data);
        answered = true;
        failure = data.failure;
      }
    }
    if (!answered) throw new Error("The connection was lost. What is written so far has not been checked.");
    say(failure ?? `Answered in ${((performance.now() - began) / 1000).toFixed(1)} s`, failure !== null);
  } catch (error) {
    if (running !== mine) return; // a newer request has replaced this one
    if (error.name === "AbortError") say("Stopped. What is written so far has not been checked.");
    else say(error.message, true);
  } finally {
    if (running === mine) {
      running = null;
      stop.hidden = true;
      text.classList.remove("draft");
    }
  }
}

// The server's own message, or a sentence for a reply that is not from it, such as a proxy's page.
async function messageOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server did not answer properly (status ${response.status}); try again.`;
  }
}

// Server-sent events of a POST request, which EventSource does not support.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      buffer += value;
      const complete = buffer.split("\n\n");
      buffer = complete.pop();
      for (const block of complete) {
        const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s, 2)));
        yield { name: fields.event, data: JSON.parse(fields.data) };
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // closes the connection if the consumer stops early
  }
}

function clear() {
  hits = [];
  text.replaceChildren();
  text.classList.add("draft");
  quotes.replaceChildren();
  list.replaceChildren();
  draft.hidden = true;
  byId("answer").hidden = byId("passages").hidden = true;
}

function say(message, isError = false) {
  statusLine.textContent = message;
  statusLine.classList.toggle("error", isError);
}

function showHits(sources) {
  hits = sources.hits;
  if (sources.n_prompt_hits) say("Writing…");
  hits.forEach((hit, i) => {
    const item = byId("hit").content.cloneNode(true).firstElementChild;
    item.querySelector("h3").textContent = pathOf(hit);
    const scores = [["score", hit.score], ["dense", hit.dense], ["lexical", hit.lexical]]
      .filter(([, value]) => value !== null)
      .map(([name, value]) => `${name} ${value.toFixed(3)}`);
    if (sources.n_prompt_hits) scores.push(i < sources.n_prompt_hits ? "read by the model" : "not read by the model");
    item.querySelector(".scores").textContent = scores.join(" · ");
    list.append(item);
    showPassage(i, []);
  });
  byId("passages").hidden = !hits.length;
  byId("answer").hidden = false;
  text.setAttribute("aria-busy", "true"); // screen readers wait for the final answer
}

function showAnswer(answer) {
  text.classList.remove("draft");
  text.replaceChildren();
  if (answer.kind === "generated") {
    const characters = Array.from(answer.draft); // offsets count code points
    let end = 0;
    for (const sentence of answer.sentences) {
      text.append(characters.slice(end, sentence.start).join(""), sentenceNode(sentence));
      end = sentence.end;
    }
  } else if (answer.kind !== "quote") {
    text.append(answer.text.split("\n")[0]); // "The corpus may say:", or that it does not say
    draft.hidden = !answer.draft;
    draft.querySelector("p").textContent = answer.draft;
  }
  answer.quotes.forEach((quote, i) => quotes.append(quoteNode(quote, i ? null : answer.span)));
  if (answer.kind !== "generated" && answer.unanswered.length) {
    for (const line of answer.text.split("\n").slice(-answer.unanswered.length)) { // "Not answered: …"
      quotes.append(Object.assign(document.createElement("p"), { textContent: line }));
    }
  }
  text.removeAttribute("aria-busy");
  hits.forEach((hit, i) => showPassage(i, citationsOf(answer, hit)));
}

const citationsOf = (answer, hit) =>
  [...answer.sentences.map((sentence) => sentence.citation), ...answer.quotes].filter((c) => c?.passage_id === hit.passage_id);

const nameOf = ({ unit, first, last }) => (first === last ? `${unit} ${first}` : `${unit}s ${first}–${last}`);

// Where a hit or a quote stands: the document's title, the headings above it, its pages.
function pathOf(source) {
  const path = [...new Set([source.title || source.doc_id, ...source.headings])].join(" › ");
  return source.pages ? `${path}, ${nameOf(source.pages)}` : path;
}

// A quote, in which the reader's short answer, if there is one, is marked.
function quoteNode(quote, span) {
  const node = byId("quote").content.cloneNode(true).firstElementChild;
  const characters = Array.from(quote.text); // offsets count code points
  const [from, to] = span ? [span.start - quote.start, span.end - quote.start] : [0, 0];
  const mark = document.createElement("mark");
  mark.textContent = characters.slice(from, to).join("");
  const parts = [characters.slice(0, from).join(""), mark, characters.slice(to).join("")];
  node.querySelector("blockquote").append(...(span ? parts : [quote.text]), sourceButton(quote));
  node.querySelector("figcaption").textContent = `${pathOf(quote)} · ${Math.round(100 * quote.probability)} %`;
  return node;
}

function sentenceNode(sentence) {
  const node = document.createElement("span");
  node.append(sentence.text);
  if (sentence.supported) {
    node.append(sourceButton(sentence.citation));
    return node;
  }
  node.className = "unsupported";
  const badge = document.createElement("span");
  badge.className = "badge";
  badge.textContent = "no source found";
  node.append(badge);
  return node;
}

// A button with the number of the passage that a citation or quote is from; it marks the source there.
function sourceButton(source) {
  const number = hits.findIndex((hit) => hit.passage_id === source.passage_id);
  const button = document.createElement("button");
  button.type = "button";
  button.className = "cite";
  button.textContent = number + 1;
  button.title = source.text;
  button.setAttribute("aria-label", `Source ${number + 1}: ${source.text}`);
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    document.querySelectorAll(".cite").forEach((b) => b.setAttribute("aria-pressed", b === button));
    hits.forEach((_, i) => showPassage(i, i === number ? [source] : [], "strong"));
    const mark = list.children[number].querySelector("mark");
    list.children[number].focus({ preventScroll: true });
    mark.scrollIntoView({ block: "center" });
  });
  return button;
}

// Shows a passage's text with the cited spans, which may overlap, marked.
function showPassage(i, citations, className = "") {
  const hit = hits[i], characters = Array.from(hit.text);
  const node = list.children[i].querySelector(".passage");
  node.replaceChildren();
  let end = 0;
  for (const citation of [...citations].sort((a, b) => a.start - b.start || b.end - a.end)) {
    const from = Math.max(citation.start - hit.start, end), to = citation.end - hit.start;
    if (to <= end) continue;
    const mark = document.createElement("mark");
    mark.className = className;
    mark.textContent = characters.slice(from, to).join("");
    node.append(characters.slice(end, from).join(""), mark);
    end = to;
  }
  node.append(characters.slice(end).join(""));
}

async function waitUntilReady() {
  for (;;) {
    const response = await fetch("/readyz").catch(() => null);
    if (response?.ok) return;
    say(response ? await messageOf(response) : "The server does not answer.", true);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

waitUntilReady().then(() => {
  if (!running) say("");
  const asked = parameters.get("q");
  if (asked) {
    question.value = asked;
    ask(asked);
  }
});
