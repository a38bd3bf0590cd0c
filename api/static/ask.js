// The ask page: asks a question, shows the answer with its sources, and refreshes the state of the library.
// Text from the server is inserted as text nodes, never as markup.

import { rating } from "./rating.js";

const $ = (id) => document.getElementById(id);
const number = (n) => n.toLocaleString("en");
const more = (n) => (n > 0 ? `and ${number(n)} more` : "");

/** Make an element with properties and children. A string becomes a text node, null is left out. */
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Set a text only if it changed, so that a selection and a screen reader are not disturbed. */
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Send a request and return the response. Throws an Error whose message is shown to the user. */
async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options, headers: { "Content-Type": "application/json", ...options?.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("Can't reach askfolder. Check that it is running; ./askfolder up starts it.");
  }
  if (response.ok) return response;
  if (response.status === 401) throw new Error("You are signed out: the key is no longer valid. Run ./askfolder open to sign in again.");
  const body = await response.json().catch(() => null);
  throw new Error(body?.detail || body?.title || `The server answered with status ${response.status} and gave no reason.`);
}

async function call(path, options) {
  const response = await request(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(`The server answered with status ${response.status} and gave no reason.`);
  }
}

/** Yield the events of a streamed answer as [name, data], up to "done". Throws if the stream ends before "done". */
async function* events(path, options) {
  const response = await request(path, { ...options, headers: { Accept: "text/event-stream" } });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (buffer + value).split("\n\n");
      buffer = parts.pop();
      for (const part of parts) {
        const [, name] = part.match(/^event: (.*)$/m) ?? [];
        if (!name) continue; // a heartbeat
        const data = JSON.parse(part.match(/^data: (.*)$/m)[1]);
        if (name === "error") throw Object.assign(new Error(data.detail), { name: "Told" });
        yield [name, data];
        if (name === "done") return;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error.name === "Told") throw error;
    throw new Error("The connection to askfolder was lost before the answer was complete. Ask again.");
  }
  throw new Error("The answer is incomplete: the stream ended early. Ask again.");
}

// --- the question ---

const turns = []; // earlier questions and answers, sent with the next question

let running = null; // the AbortController of the question that is being answered
let ready = null; // number of ready documents, null until known

async function ask(question) {
  if (running) return;
  if (matchMedia("(hover: none)").matches) $("question").blur(); // hides the on-screen keyboard
  running = new AbortController();
  $("error").textContent = "";
  waiting(true, "Searching…");
  const links = new Map(); // citation number → number of marks so far
  let passages = [];
  for (const id of ["understood", "steps"]) $(id).hidden = true;
  $("steps").replaceChildren();
  try {
    const body = { question, history: turns, mode: $("deep")?.checked ? "deep" : "quick" };
    const options = { method: "POST", body: JSON.stringify(body), signal: running.signal };
    for await (const [name, data] of events("/ask", options)) {
      if (name === "passages") {
        passages = data.passages;
        $("answer").replaceChildren();
        if (data.question !== question) {
          $("understood").textContent = `Understood as: ${data.question}`;
          $("understood").hidden = false;
        }
        showEvidence(passages);
        $("status").textContent = passages.length ? "Reading the passages…" : "";
      } else if (name === "step") {
        passages = [...passages, ...data.passages];
        showStep(data, passages);
      } else if (name === "citation") {
        links.set(data.number, 0);
        $("cited").hidden = false;
        $("citations").append(card(data, passages));
      } else if (name === "delta") {
        showSentence(data, links);
      } else if (name === "done") {
        waiting(false, "");
        showEnd({ ...data, passages });
        keep(question, data);
      }
    }
  } catch (error) {
    $("answer").replaceChildren(); // an incomplete answer is not shown
    $("evidence").hidden = true;
    if (error.name === "AbortError") return waiting(false, "Cancelled.");
    waiting(false, "");
    $("error").textContent = error.message;
  } finally {
    running = null;
  }
}

/** Add the answer to the conversation above the question field. */
function keep(question, { question: standing, answer, citations }) {
  const sources = [...new Set(citations.map(place))].join("; ");
  turns.push({ question: standing, answer });
  const said = make("div", { className: "said" }, make("p", { dir: "auto" }, answer), make("p", { className: "place" }, sources));
  $("turns").append(make("li", {}, make("details", {}, make("summary", { dir: "auto" }, question), said)));
  $("conversation").hidden = false;
  $("question").value = "";
  $("question").placeholder = "Ask a follow-up question";
}

$("fresh").addEventListener("click", () => {
  turns.length = 0;
  $("turns").replaceChildren();
  $("question").placeholder = "";
  for (const id of ["conversation", "understood", "steps", "evidence"]) $(id).hidden = true;
  $("answer").replaceChildren();
  $("question").focus();
});

function waiting(on, status) {
  $("status").textContent = status;
  if (document.activeElement === $("cancel")) $("question").focus();
  $("cancel").hidden = !on;
  $("submit").setAttribute("aria-disabled", on);
  for (const id of ["answer", "evidence"]) $(id).setAttribute("aria-busy", on);
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (question) ask(question);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
$("cancel").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});

// --- the answer ---

function showPassages(passages) {
  $("passages").replaceChildren(...passages.map(passageItem));
  $("looked-count").textContent = `(${number(passages.length)})`;
}

/** Show a search that the model ran. */
function showStep({ query, passages: fresh }, passages) {
  const found = fresh.length === 1 ? "1 more passage" : `${number(fresh.length)} more passages`;
  $("steps").append(make("li", { dir: "auto" }, `Searched for “${query}”: ${found}`));
  $("steps").hidden = false;
  showPassages(passages);
}

function showEvidence(passages) {
  $("citations").replaceChildren();
  showPassages(passages);
  $("looked").open = false;
  $("cited").hidden = true;
  $("looked").hidden = !passages.length;
  $("evidence").hidden = false;
}

const STATUS = { partly: "The cited text supports only a part of this sentence.", unsupported: "Nothing in the documents supports this sentence." };

/** Append a sentence to the last paragraph. A blank line starts a new paragraph. */
function showSentence({ text, status }, links) {
  text.split(/\n{2,}/).forEach((part, index) => {
    const last = $("answer").lastElementChild;
    const fresh = !last || (index > 0 && last.hasChildNodes());
    if (!last) $("answer").append(make("h2", {}, "Answer"));
    if (fresh) $("answer").append(make("p", { className: "text", dir: "auto" }));
    if (part) $("answer").lastElementChild.append(make("span", { className: status, title: STATUS[status] ?? "" }, ...withMarks(part, links)));
  });
}

/** Show the verdict, warnings and rating buttons below the answer. */
function showEnd(result) {
  const { answer, sentences, warnings = [] } = result;
  if (!sentences.length) $("answer").replaceChildren(make("h2", {}, "Answer"), make("p", { className: "text" }, answer));
  if (!$("answer").lastElementChild.hasChildNodes()) $("answer").lastElementChild.remove();
  $("answer").append(make("p", { id: "verdict" }, verdict(result)), ...warnings.map((text) => make("p", { className: "warning" }, text)), rating(result.question_id) ?? "");
}

function verdict({ verdict, answerer, passages }) {
  if (verdict === "no_answer") {
    if (ready === 0) return "No document is ready yet.";
    return passages.length ? "The closest passages are listed below." : "No passage matches the question.";
  }
  const by = answerer === "claude" ? "Answered by Claude from the passages below." : "Quoted word for word from your documents. No AI model was used.";
  return verdict === "partial" ? `${by} Some sentences have no verified citation.` : by;
}

/** Split a text into text nodes, code and links: [n] becomes a link if citation n exists. argv[1] is not a mark, as in api/verification/citations.py. */
function withMarks(text, links) {
  return text.split(/(`[^`\n]+`)|(?<![\p{L}\p{N}_])(\[\d+\])/u).filter(Boolean).map((part) => {
    if (/^`[^`\n]+`$/.test(part)) return make("code", {}, part.slice(1, -1));
    const n = /^\[\d+\]$/.test(part) ? Number(part.slice(1, -1)) : null;
    if (!links.has(n)) return part;
    links.set(n, links.get(n) + 1);
    const id = links.get(n) === 1 ? `mark-${n}` : "";
    return make("a", { id, className: "mark", href: `#source-${n}`, ariaLabel: `Source ${n}` }, part);
  });
}

/** Describe a place, for example "letters.pdf · page 3 · Setup › Install". */
function place({ source, page, heading }) {
  return [source, page === null ? "" : `page ${page}`, heading.join(" › ")].filter(Boolean).join(" · ");
}

function card(citation, passages) {
  const n = citation.number;
  const back = make("a", { className: "mark", href: `#mark-${n}`, ariaLabel: `${n}, back to the answer` }, `[${n}]`);
  const body = make(
    "div", {},
    citation.title ? make("p", { dir: "auto" }, make("strong", {}, citation.title)) : null,
    make("p", { className: "place" }, place(citation)),
    make("blockquote", { dir: "auto" }, citation.quote),
    surroundings(citation, passages.find(({ chunk_id }) => chunk_id === citation.chunk_id)),
  );
  return make("li", { id: `source-${n}`, className: "card", tabIndex: -1 }, back, body);
}

/** Show a quote within its passage. Offsets count code points, so strings are split with Array.from. */
function surroundings({ char_start, char_end, quote }, passage) {
  if (!passage || passage.content === quote) return null;
  const letters = Array.from(passage.content);
  const [start, end] = [char_start - passage.char_start, char_end - passage.char_start];
  const [before, words, after] = [letters.slice(0, start), letters.slice(start, end), letters.slice(end)].map((part) => part.join(""));
  if (start < 0 || words !== quote) return null;
  const text = make("p", { className: "passage", dir: "auto" }, before, make("mark", {}, words), after);
  return make("details", {}, make("summary", {}, "Show in context"), text);
}

function passageItem(passage) {
  const snippet = make("span", { className: "snippet", dir: "auto" }, passage.content.slice(0, 200));
  const content = make("p", { className: "passage", dir: "auto" }, passage.content);
  return make("li", {}, make("details", {}, make("summary", {}, place(passage), snippet), content));
}

// A click on a mark goes to its source, and back.
document.addEventListener("click", (event) => {
  const target = $(event.target.closest("a.mark")?.hash.slice(1));
  if (!target) return;
  event.preventDefault();
  document.querySelector(".lit")?.classList.remove("lit");
  target.classList.add("lit");
  target.focus({ preventScroll: true });
  target.scrollIntoView({ block: "nearest" });
});

// --- the library ---

const SHOWN = 50; // rows shown in the table
const UNFINISHED = ["ingesting", "failed", "quarantined", "queued"]; // in the order of the table
const WORDS = { parsing: "reading", contexts: "writing contexts", embedding: "embedding", quarantined: "quarantined", failed: "failed", queued: "waiting" };
const rows = new Map(); // document id → table row, reused so that a selection survives a refresh
let timer;

async function look() {
  let seconds = 15;
  try {
    const page = await call("/documents?limit=200", { signal: AbortSignal.timeout(10_000) });
    let documents = page.documents;
    if (page.next_cursor) {
      const states = UNFINISHED.filter((state) => page.counts[state]);
      const pages = await Promise.all(states.map((state) => call(`/documents?state=${state}&limit=${SHOWN}`)));
      documents = [...pages.flatMap((one) => one.documents), ...documents.filter((one) => one.state === "ready")];
    }
    showLibrary(documents, page.counts, page.problems);
    if (page.counts.queued || page.counts.ingesting) seconds = 2;
  } catch (error) {
    put($("counts"), error.message);
    $("counts").className = "bad";
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(look, seconds * 1000);
}

function showLibrary(documents, counts, problems) {
  const count = (...states) => states.reduce((sum, state) => sum + (counts[state] ?? 0), 0);
  const groups = { ready: ["ready"], processing: ["queued", "ingesting"], failed: ["failed"], quarantined: ["quarantined"], excluded: ["excluded"] };
  const words = Object.entries(groups).filter(([, states]) => count(...states)).map(([word, states]) => `${number(count(...states))} ${word}`);
  put($("counts"), words.join(" · ") || "No documents yet.");
  $("counts").className = "";
  $("library").className = words.length ? "" : "empty";
  list($("problems"), problems, (text) => text);

  const wanted = UNFINISHED.flatMap((state) => documents.filter((one) => one.state === state)).slice(0, SHOWN).map(row);
  const body = $("work").tBodies[0];
  if (wanted.length !== body.rows.length || wanted.some((one, i) => one !== body.rows[i])) body.replaceChildren(...wanted);
  for (const [id, one] of rows) if (!one.isConnected) rows.delete(id);
  $("work").hidden = !wanted.length;
  put($("more"), more(count(...UNFINISHED) - wanted.length));

  const readable = documents.filter((one) => one.state === "ready");
  ready = count("ready");
  $("ready").hidden = !readable.length;
  list($("ready").querySelector("ul"), readable, ({ source, title }) => (title ? `${source} · ${title}` : source));
  put($("ready").querySelector("p"), more(ready - readable.length));
}

function list(element, items, text) {
  const [shown, wanted] = [Array.from(element.children, (item) => item.textContent), items.map(text)];
  if (shown.join("\n") !== wanted.join("\n")) element.replaceChildren(...wanted.map((line) => make("li", {}, line)));
}

function row(one) {
  if (!rows.has(one.id)) {
    const name = make("th", { scope: "row" }, make("span", {}), make("span", { className: "reason" }));
    rows.set(one.id, make("tr", {}, name, make("td", {}, make("span", { className: "label" }), make("progress", {}))));
  }
  const element = rows.get(one.id);
  const [name, reason, label, bar] = element.querySelectorAll("span, progress");
  const { done, total } = one.progress ?? {};
  const state = one.state === "queued" && one.error ? "waiting to retry" : WORDS[one.stage ?? one.state] ?? "processing";
  put(name, one.source);
  put(reason, one.error ?? "");
  put(label, total ? `${state}, ${number(done)} of ${number(total)}` : state);
  Object.assign(bar, { hidden: !total, max: total || 1, value: done ?? 0, ariaLabel: `Progress of ${one.source}` });
  element.className = one.state === "failed" || one.state === "quarantined" ? "bad" : "";
  return element;
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden) look();
});
look();
