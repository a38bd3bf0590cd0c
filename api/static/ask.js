// Asks, shows the answer with its sources, and keeps the library's state fresh.
// Everything that the server sends becomes text nodes, never markup.

const $ = (id) => document.getElementById(id);
const number = (n) => n.toLocaleString("en");
const plural = (n, one, many) => `${number(n)} ${n === 1 ? one : many}`;

/** An element with properties and children; a string is a text node, null is left out. */
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

function show(element, visible) {
  element.hidden = !visible;
}

/** The JSON of an answer. Throws an Error whose message is a sentence for the person at the page. */
async function call(path, options) {
  let response, body;
  try {
    response = await fetch(path, { credentials: "same-origin", headers: { "Content-Type": "application/json" }, ...options });
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (!response) throw new Error("askfolder does not answer. Is it still running? ./askfolder up starts it.");
  }
  if (response.status === 401) throw new Error("The key is not valid any more. Run ./askfolder open, which opens this page with the right one.");
  if (!response.ok || !body) throw new Error(body?.detail || body?.title || `The server answered ${response.status}, without a reason.`);
  return body;
}

// --- the question ----------------------------------------------------------------------------------------------------

let running = null; // the AbortController of the question that is being answered
let ready = null; // how many documents can be found, once it is known

async function ask(question) {
  if (running) return;
  running = new AbortController();
  const started = performance.now();
  waiting(true, "Searching…");
  $("error").textContent = "";
  try {
    const result = await call("/ask", { method: "POST", body: JSON.stringify({ question }), signal: running.signal });
    showAnswer(result, (performance.now() - started) / 1000);
    waiting(false, "");
  } catch (error) {
    waiting(false, error.name === "AbortError" ? "Cancelled." : "");
    if (error.name === "AbortError") return;
    $("answer").replaceChildren();
    show($("evidence"), false);
    $("error").textContent = error.message;
  } finally {
    running = null;
  }
}

function waiting(on, status) {
  $("status").textContent = status;
  if (document.activeElement === $("cancel")) $("question").focus();
  show($("cancel"), on);
  $("submit").setAttribute("aria-disabled", on);
  $("answer").setAttribute("aria-busy", on);
  $("evidence").setAttribute("aria-busy", on);
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question) return $("question").focus();
  if (matchMedia("(hover: none)").matches) $("question").blur(); // puts the on-screen keyboard away
  ask(question);
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

// --- the answer ------------------------------------------------------------------------------------------------------

function showAnswer(result, seconds) {
  const { answer, citations, passages, warnings = [] } = result;
  const marked = new Set();
  const known = new Set(citations.map((citation) => citation.number));
  const paragraphs = answer.split(/\n{2,}/).map((text) => make("p", { className: "text", dir: "auto" }, ...withMarks(text, known, marked)));
  $("answer").replaceChildren(
    make("h2", {}, "Answer"),
    ...paragraphs,
    make("p", { id: "verdict" }, `${verdict(result)} ${seconds.toFixed(1)} s.`),
    ...warnings.map((text) => make("p", { className: "warning" }, text)),
  );
  $("citations").replaceChildren(...citations.map((citation) => card(citation, passages, marked)));
  $("passages").replaceChildren(...passages.map(passageItem));
  $("looked-count").textContent = `(${number(passages.length)})`;
  $("looked").open = false;
  show($("cited"), citations.length > 0);
  show($("looked"), passages.length > 0);
  show($("evidence"), citations.length + passages.length > 0);
}

function verdict({ verdict, answerer, passages }) {
  if (verdict === "no_answer") {
    if (ready === 0) return "No document is ready yet.";
    return passages.length ? "The passages that come closest are listed below." : "No passage comes close.";
  }
  const by = answerer === "claude" ? "Answered by Claude from the passages below." : "Quoted from your documents, no model was used.";
  return verdict === "partial" ? `${by} Not all of it could be backed with a checked citation.` : by;
}

/** Text nodes and, for every [n] that has a citation, a link to it. */
function withMarks(text, known, marked) {
  return text.split(/(\[\d+\])/).map((part) => {
    const n = /^\[\d+\]$/.test(part) ? Number(part.slice(1, -1)) : null;
    if (!known.has(n)) return part;
    const link = make("a", { className: "mark", href: `#source-${n}`, ariaLabel: `Source ${n}` }, part);
    if (!marked.has(n)) link.id = `mark-${n}`;
    marked.add(n);
    return link;
  });
}

/** "page 3 · Setup › Install", or what there is of it. */
function place({ page, heading }) {
  return [page === null ? "" : `page ${page}`, heading.join(" › ")].filter(Boolean).join(" · ");
}

function card(citation, passages, marked) {
  const n = citation.number;
  const label = `[${n}]`;
  const back = marked.has(n) ? make("a", { className: "mark", href: `#mark-${n}`, ariaLabel: `${n}, back to the answer` }, label) : make("span", { className: "mark" }, label);
  const body = make(
    "div",
    {},
    citation.title ? make("p", { dir: "auto" }, make("strong", {}, citation.title)) : null,
    make("p", { className: "place" }, [citation.source, place(citation)].filter(Boolean).join(" · ")),
    make("blockquote", { dir: "auto" }, citation.quote),
    surroundings(citation, passages),
  );
  return make("li", { id: `source-${n}`, className: "card", tabIndex: -1 }, back, body);
}

/** The quoted words where they stand in their passage. Offsets count code points, JavaScript's strings do not. */
function surroundings({ chunk_id, char_start, char_end, quote }, passages) {
  const passage = passages.find((candidate) => candidate.chunk_id === chunk_id);
  const letters = Array.from(passage?.content ?? "");
  const [start, end] = [char_start - passage?.char_start, char_end - passage?.char_start];
  if (letters.slice(start, end).join("") !== quote || letters.length === end - start) return null;
  const text = make("p", { className: "passage", dir: "auto" }, letters.slice(0, start).join(""), make("mark", {}, quote), letters.slice(end).join(""));
  return make("details", {}, make("summary", {}, "In its surroundings"), text);
}

function passageItem(passage) {
  const summary = make("summary", {}, passage.source, make("span", { className: "place" }, place(passage)));
  return make("li", {}, make("details", {}, summary, make("p", { className: "passage", dir: "auto" }, passage.content)));
}

// From a mark to its source and back.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a.mark");
  if (!link) return;
  event.preventDefault();
  const target = $(link.hash.slice(1));
  document.querySelectorAll(".lit").forEach((element) => element.classList.remove("lit"));
  target.classList.add("lit");
  target.focus({ preventScroll: true });
  target.scrollIntoView({ block: "nearest" });
});

// --- the library -----------------------------------------------------------------------------------------------------

const LISTED = 200; // documents of one look at the ledger
const SHOWN = 50; // rows of the table
const UNFINISHED = ["ingesting", "failed", "quarantined", "queued"]; // in the order of the table
const STAGES = { parsing: "reading", embedding: "embedding" };
const rows = new Map(); // document id → its row, kept so that a selection survives the next look
let timer;

async function look() {
  let seconds = 15;
  try {
    const page = await call(`/documents?limit=${LISTED}`, { signal: AbortSignal.timeout(10_000) });
    let documents = page.documents;
    if (page.next_cursor !== null) {
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
  ready = count("ready");
  const words = [
    [ready, "ready"], [count("queued", "ingesting"), "in work"], [count("failed"), "failed"],
    [count("quarantined"), "set aside"], [count("excluded"), "excluded"],
  ].filter(([n]) => n).map(([n, word]) => `${number(n)} ${word}`);
  put($("counts"), words.join(" · ") || "Nothing here yet.");
  $("counts").className = "";
  $("library").className = words.length ? "" : "empty";
  list($("problems"), problems, (text) => [text]);

  const unfinished = UNFINISHED.flatMap((state) => documents.filter((one) => one.state === state)).slice(0, SHOWN);
  const body = $("work").tBodies[0];
  const wanted = unfinished.map(row);
  if (wanted.length !== body.rows.length || wanted.some((one, i) => one !== body.rows[i])) body.replaceChildren(...wanted);
  for (const [id, one] of rows) if (!one.isConnected) rows.delete(id);
  show($("work"), wanted.length > 0);
  const more = count(...UNFINISHED) - wanted.length;
  put($("more"), more > 0 ? `and ${number(more)} more` : "");
  showReady(documents.filter((one) => one.state === "ready"));
}

function showReady(documents) {
  show($("ready"), documents.length > 0);
  list($("ready").querySelector("ul"), documents, ({ source, title }) => [source, make("span", { className: "place" }, title ?? "")]);
  put($("ready").querySelector("p"), ready > documents.length ? `and ${number(ready - documents.length)} more` : "");
}

/** Fills a list anew, unless it shows these items already. */
function list(element, items, content) {
  const seen = JSON.stringify(items);
  if (element.dataset.seen === seen) return;
  element.dataset.seen = seen;
  element.replaceChildren(...items.map((item) => make("li", {}, ...content(item))));
}

function row(one) {
  if (!rows.has(one.id)) {
    const name = make("th", { scope: "row" }, make("span", {}), make("span", { className: "reason" }));
    rows.set(one.id, make("tr", {}, name, make("td", {}, make("span", { className: "label" }), make("progress", {}))));
  }
  const element = rows.get(one.id);
  const [name, reason, label, bar] = element.querySelectorAll("span, progress");
  const { done, total } = one.progress ?? {};
  put(name, one.source);
  put(reason, one.error ?? "");
  put(label, total ? `${state(one)}, ${number(done)} of ${number(total)}` : state(one));
  show(bar, Boolean(total));
  Object.assign(bar, { max: total || 1, value: done ?? 0, ariaLabel: `Progress of ${one.source}` });
  element.className = one.state === "failed" || one.state === "quarantined" ? "bad" : "";
  return element;
}

function state({ state, stage, error }) {
  if (state === "ingesting") return STAGES[stage] ?? "in work";
  if (state === "queued") return error ? "is tried again" : "waiting";
  return state === "quarantined" ? "set aside" : state;
}

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden) look();
});
look();
