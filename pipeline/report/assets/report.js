const data = (id) => JSON.parse(document.getElementById(id).textContent);

// SVG takes CSS variables, so charts follow the page from light to dark by themselves.
const config = {
  background: null,
  font: "system-ui, sans-serif",
  view: { stroke: null },
  mark: { color: "var(--accent)" },
  area: { line: { color: "var(--accent)" } },
  axis: {
    domainColor: "var(--line)", gridColor: "var(--line)", tickColor: "var(--line)",
    labelColor: "var(--dim)", titleColor: "var(--dim)", titleFontWeight: "normal",
    labelFontSize: 11, titleFontSize: 11, labelLimit: 220,
  },
  axisX: { grid: false },
};
for (const [name, spec] of Object.entries(data("charts-data"))) {
  const place = document.getElementById(`chart-${name}`);
  if (place) await window.vegaEmbed(place, { ...spec, config }, { actions: false, renderer: "svg" });
}

const PAGE = 20;
const samples = data("samples-data");
const list = document.getElementById("list");
const more = document.getElementById("more");
const searched = samples.map((s) =>
  [s.prompt, s.answer, s.row_uid, ...s.facts].join("\n").toLowerCase());
const answers = Number(list.dataset.answers);
const drawn = answers > samples.length
  ? `drawn from ${answers.toLocaleString("en")} rows with an answer`
  : "all rows with an answer";
let found = samples;
let shown = 0;

// Whatever a prompt or a completion holds becomes text nodes, never markup.
function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function answer(sample) {
  const box = element("div", "text");
  if (!sample.pieces) {
    box.textContent = sample.answer;
    return box;
  }
  sample.pieces.forEach((piece, i) => {
    const probability = Math.exp(sample.logprobs[i]);
    const token = element("mark", "", piece);
    token.style.setProperty("--how", Math.min(0.75, Math.max(0, -sample.logprobs[i] / 8)).toFixed(2));
    token.title = `${(100 * probability).toPrecision(3)} %  (log-probability ${sample.logprobs[i].toFixed(3)}, id ${sample.token_ids[i]})`;
    box.append(token);
  });
  return box;
}

function card(sample) {
  const made = element("article", "sample");
  const meta = element("div", "meta");
  sample.facts.forEach((fact) => meta.append(element("span", "", fact)));
  const pair = element("div", sample.prompt ? "pair" : "");
  if (sample.prompt) pair.append(element("div", "text prompt", sample.prompt));
  pair.append(answer(sample));
  made.append(meta, pair);
  return made;
}

function grow() {
  list.append(...found.slice(shown, shown + PAGE).map(card));
  shown = Math.min(shown + PAGE, found.length);
  more.hidden = shown >= found.length;
}

function search(words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  found = samples.filter((_, i) => wanted.every((word) => searched[i].includes(word)));
  shown = 0;
  list.replaceChildren();
  document.getElementById("count").textContent =
    `${found.length} of ${samples.length}, ${drawn}`;
  grow();
}

more.addEventListener("click", grow);
document.getElementById("search").addEventListener("input", (event) => search(event.target.value));
document.querySelector(".legend").hidden = !samples.some((sample) => sample.pieces);
search("");
