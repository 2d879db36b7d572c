// Added to the viewer's page: the sound of a clip plays where it is clicked, a sound that cannot be read says why, and
// the clips most like a recording are found. Nothing is sent anywhere but to the server of the page.

const KEPT = "ajepa-search"; // of the last search, over a reload

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// What the page says ----------------------------------------------------------------------------------------------

const said = element("div", { id: "ajepa-said", hidden: true, role: "alert" });
document.body.append(said);

function say(text) {
  said.textContent = text;
  said.hidden = false;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => (said.hidden = true), 10_000);
}

// Players and pictures report an error without its reason: the server's answer has it.
async function explain(event) {
  const address = event.target?.currentSrc || event.target?.src;
  if (!address?.startsWith(location.origin)) return;
  const answer = await fetch(address);
  if (!answer.ok) say(await answer.text());
}

// Click to hear ---------------------------------------------------------------------------------------------------

let clicked = 0; // when
let playing = null;

function play(player) {
  if (playing && playing !== player) playing.pause();
  playing = player;
  player.play().catch(() => {}); // its `error` event says why
}

// Players are looked for in shadow roots too: the viewer's tooltip may lie in one.
function watch(root) {
  root.addEventListener("error", explain, true);
  new MutationObserver((changes) => {
    for (const change of changes) {
      for (const node of change.addedNodes) visit(node);
    }
  }).observe(root, { childList: true, subtree: true });
}

function visit(node) {
  if (!(node instanceof Element)) return;
  for (const found of [node, ...node.querySelectorAll("*")]) {
    if (found.shadowRoot) {
      watch(found.shadowRoot);
      for (const child of found.shadowRoot.children) visit(child);
    }
    if (found instanceof HTMLAudioElement && !found.closest("#ajepa-search") && Date.now() - clicked < 1500) play(found);
  }
}

addEventListener("pointerup", () => (clicked = Date.now()), true);
watch(document);
visit(document.body);

// Search by a recording -------------------------------------------------------------------------------------------

// The viewer keeps its state in the address: JSON, deflated, in base64 for addresses.
async function through(stream, bytes) {
  const written = new Blob([bytes]).stream().pipeThrough(stream);
  return new Uint8Array(await new Response(written).arrayBuffer());
}

async function readState() {
  const text = new URLSearchParams(location.hash.split("?")[1] ?? "").get("state");
  if (!text) return null;
  const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  const bytes = Uint8Array.from(binary, (c) => c.charCodeAt(0));
  return JSON.parse(new TextDecoder().decode(await through(new DecompressionStream("deflate-raw"), bytes)));
}

async function writeState(state) {
  const json = new TextEncoder().encode(JSON.stringify(state));
  const bytes = await through(new CompressionStream("deflate-raw"), json);
  const binary = Array.from(bytes, (b) => String.fromCharCode(b)).join("");
  const text = btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
  location.hash = `#/?${new URLSearchParams({ state: text })}`;
}

// A view around clips: half of it is 1 / scale wide.
function around(found) {
  const middle = (values) => (Math.min(...values) + Math.max(...values)) / 2;
  const [x, y] = [middle(found.map((f) => f.x)), middle(found.map((f) => f.y))];
  const far = Math.max(...found.map((f) => Math.max(Math.abs(f.x - x), 2 * Math.abs(f.y - y))), 0.5);
  return { x, y, scale: 0.7 / far };
}

// Selects the clips that were found, as a condition that the viewer lists among its own, and goes there.
async function showOnMap(name, found) {
  const state = await readState();
  const [id, chart] = Object.entries(state?.charts ?? {}).find(([, c]) => c.type === "predicates") ?? [];
  if (!chart) return say("the map has no list of conditions: reload the page without its state");
  const predicate = `row IN (${found.map((f) => f.row).join(", ")})`;
  chart.items = [...(chart.items ?? []).filter((item) => item.predicate !== predicate), { name: `like ${name}`, predicate }];
  state.chartStates = { ...state.chartStates, [id]: { ...state.chartStates?.[id], selection: [predicate] } };
  const map = Object.keys(state.charts).find((key) => state.charts[key].type === "embedding");
  if (map) state.chartStates[map] = { ...state.chartStates[map], viewport: around(found) };
  await writeState(state);
  location.reload();
}

function searchPanel() {
  const input = element("input", { type: "file", accept: "audio/*,.flac,.ogg,.opus" });
  const title = element("span", { textContent: "Drop a sound: its nearest clips" });
  const list = element("ol");
  const panel = element(
    "section", { id: "ajepa-search" }, element("header", {}, title, element("label", {}, input, "open"), element("button")), list,
  );
  const button = panel.querySelector("button");
  button.hidden = true;

  function show({ name, found }) {
    title.textContent = `Nearest to ${name}`;
    button.textContent = "on the map";
    button.hidden = false;
    button.onclick = () => showOnMap(name, found);
    list.replaceChildren(
      ...found.map((clip) =>
        element(
          "li", {},
          `${clip.similarity.toFixed(3)} ${clip.label} `, element("small", { textContent: clip.clip_id }),
          element("img", { src: `log-mel/${clip.row}.png`, loading: "lazy", alt: "log-mel" }),
          element("audio", { src: `sound/${clip.row}.wav`, controls: true, preload: "none" }),
        ),
      ),
    );
  }

  async function search(file) {
    title.textContent = `Looking for ${file.name} ...`;
    const answer = await fetch("search", { method: "POST", body: file });
    if (!answer.ok) {
      title.textContent = "Drop a sound: its nearest clips";
      return say(`${file.name}: ${await answer.text()}`);
    }
    const result = { name: file.name, found: await answer.json() };
    sessionStorage.setItem(KEPT, JSON.stringify(result));
    show(result);
  }

  input.onchange = () => input.files[0] && search(input.files[0]);
  addEventListener("dragover", (event) => {
    event.preventDefault();
    panel.classList.add("over");
  });
  addEventListener("dragleave", () => panel.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    panel.classList.remove("over");
    const file = event.dataTransfer?.files[0];
    if (file) search(file);
  });
  const kept = JSON.parse(sessionStorage.getItem(KEPT)) ?? window.AJEPA_EXPLORE.begin;
  if (kept) show(kept);
  return panel;
}

if (window.AJEPA_EXPLORE?.search) document.body.append(searchPanel());
