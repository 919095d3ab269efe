// What moves on the page: the filters and order of the table, and the drawing under d3-zoom.
// Names from models are only ever read from the document and compared, never written as markup.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);

  // ------------------------------------------------------------------ order of a table
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const worth = (cell) => cell.firstChild?.textContent ?? "";
  const size = (text) => {
    const number = Number(text.replace(",", ""));
    return text === "" || Number.isNaN(number) ? Infinity : number;
  };

  function sortBy(heading) {
    const table = heading.closest("table");
    const body = table.tBodies[0];
    const column = heading.cellIndex;
    const down = heading.getAttribute("aria-sort") === "ascending";
    const isNumber = heading.classList.contains("number");
    const key = (cell) => (isNumber ? size(worth(cell)) : worth(cell));
    const compare = isNumber ? (a, b) => (a > b) - (a < b) : collator.compare;
    const rows = [...body.rows].map((row, at) => [key(row.cells[column]), at, row]);
    rows.sort((a, b) => (down ? -compare(a[0], b[0]) : compare(a[0], b[0])) || a[1] - b[1]);
    body.append(...rows.map((entry) => entry[2]));
    for (const other of all("th[aria-sort]", table)) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  }
  for (const button of all("th[aria-sort] button")) {
    button.addEventListener("click", () => sortBy(button.parentElement));
  }

  // ------------------------------------------------------------------ the drawing
  const canvas = one(".canvas");
  const details = one("#details");
  const section = one("#network");
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  // Screen pixels per unit of the drawing from which on all words of a box can be read, and from
  // which on its kind alone, in larger letters.
  const LEGIBLE = 0.8;
  const GLANCE = 0.45;
  const drawings = new Map();
  let current = null;

  class Network {
    constructor(svg) {
      this.svg = svg;
      this.view = one(".view", svg);
      this.box = svg.viewBox.baseVal;
      this.at = d3.zoomIdentity;
      this.scale = 1;
      this.selected = null;
      this.boxes = all(".n", svg); // in the order of the ops
      this.lines = all(".e path", svg);
      this.places = this.boxes.map((box) => {
        const { e, f } = box.transform.baseVal.getItem(0).matrix;
        return { x: e, y: f };
      });
      const { width, height } = this.box;
      this.zoom = d3
        .zoom()
        .extent([[0, 0], [width, height]])
        .translateExtent([[-width / 2, -height / 2], [width * 1.5, height * 1.5]])
        .scaleExtent([1, Math.max(4, width / 250)])
        .filter((event) => {
          const whole = section.classList.contains("whole");
          if (event.type === "wheel") return whole || event.ctrlKey || event.metaKey;
          if (event.type.startsWith("touch")) return whole || event.touches.length > 1;
          return !event.button && !event.ctrlKey;
        })
        .on("zoom", (event) => {
          this.view.setAttribute("transform", event.transform);
          this.at = event.transform;
          this.scale = event.transform.k;
          this.words();
        });
      d3.select(svg).call(this.zoom);
    }
    pixels() {
      return Math.min(canvas.clientWidth / this.box.width, canvas.clientHeight / this.box.height);
    }
    words() {
      const seen = this.pixels() * this.scale;
      if (seen >= GLANCE) this.cull(seen);
      this.svg.classList.toggle("far", seen < GLANCE);
      this.svg.classList.toggle("mid", seen >= GLANCE && seen < LEGIBLE);
    }
    // Words outside of the window are not drawn: of 2,000 boxes they would take seconds.
    cull(seen) {
      const wide = canvas.clientWidth / seen;
      const high = canvas.clientHeight / seen;
      const x = this.at.invertX(this.box.width / 2) - wide / 2;
      const y = this.at.invertY(0);
      this.places.forEach((place, number) => {
        const isOff = place.x < x - wide || place.x > x + 2 * wide
          || place.y < y - high || place.y > y + 2 * high;
        if (isOff !== Boolean(place.isOff)) {
          place.isOff = isOff;
          this.boxes[number].classList.toggle("off", isOff);
        }
      });
    }
    moving() {
      const target = d3.select(this.svg);
      return calm ? target : target.transition().duration(200);
    }
    pan(x, y) {
      const { width, height } = this.box;
      const step = 0.15 / this.scale;
      this.zoom.translateBy(this.moving(), -x * width * step, -y * height * step);
    }
    by(factor) {
      this.zoom.scaleBy(this.moving(), factor);
    }
    whole() {
      this.zoom.transform(this.moving(), d3.zoomIdentity);
    }
    select(box, { look }) {
      this.selected?.classList.remove("sel");
      for (const line of all(".e .lit", this.svg)) line.classList.remove("lit");
      this.selected = box;
      for (const row of all("tr.lit")) row.classList.remove("lit");
      if (!box) {
        details.textContent = "Choose a box to read about it.";
        return;
      }
      box.classList.add("sel");
      const at = this.boxes.indexOf(box);
      const reads = box.dataset.r?.split(" ").filter(Boolean).map(Number) ?? [at - 1];
      for (const source of [at, ...reads]) this.lines[source].classList.add("lit");
      details.textContent = says(box);
      rowOf(box)?.classList.add("lit");
      if (look) this.look(box);
    }
    look(box, target = this.moving()) {
      const place = this.places[this.boxes.indexOf(box)];
      const frame = one("rect", box).getBBox();
      const wanted = Math.max(this.scale, 1 / this.pixels());
      const scale = Math.min(wanted, this.zoom.scaleExtent()[1]);
      this.zoom.transform(target, this.around(
        place.x + frame.width / 2, place.y + frame.height / 2, scale));
    }
    // With a place in the middle, or as near to it as the drawing's edges allow.
    around(x, y, scale) {
      const { width, height } = this.box;
      const high = canvas.clientHeight / this.pixels(); // of the window, in the drawing's units
      const within = (at, half, end) => (2 * half > end ? end / 2 : Math.min(Math.max(at, half), end - half));
      const across = within(x, canvas.clientWidth / this.pixels() / scale / 2, width);
      const down = within(y, high / scale / 2, height);
      return d3.zoomIdentity.translate(width / 2, high / 2).scale(scale).translate(-across, -down);
    }
    step(by) {
      const count = this.boxes.length;
      const at = this.selected ? this.boxes.indexOf(this.selected) + by : by > 0 ? 0 : count - 1;
      this.select(this.boxes[(at + count) % count], { look: true });
    }
    nextMarked() {
      const from = this.boxes.indexOf(this.selected) + 1;
      const turned = [...this.boxes.slice(from), ...this.boxes.slice(0, from)];
      const next = turned.find((box) => box.matches(".kept, .blocker"));
      if (next) this.select(next, { look: true });
    }
  }

  const SAYS = {
    end: "where the network begins or ends",
    plain: "unchanged",
    edited: "edited: new weights or constants",
    bounds: "became max(x, c) or min(x, c), with one constant c per channel",
    kept: "kept",
    removed: "removed",
    carrier: "does the work of others, too",
    merged: "merged into another",
    // Where nothing has been done yet.
    ...(canvas?.dataset.planned === undefined ? {} : {
      edited: "would be edited: new weights or constants",
      bounds: "would become max(x, c) or min(x, c), with one constant c per channel",
      kept: "would stay",
      removed: "would go",
      carrier: "would do the work of others, too",
      merged: "would be merged into another",
    }),
  };
  const nameOf = (box) => one("title", box)?.textContent
    ?? `${one("text:not([class])", box).textContent} (${one(".k", box).textContent})`;

  // A box in words: its name, and what became of it.
  function says(box) {
    const kept = box.matches(".kept") ? `${SAYS.kept}: ` : "";
    const row = rowOf(box);
    const outcome = row ? kept + row.cells[4].textContent : SAYS[box.classList[1]];
    const blocks = box.matches(".blocker") ? "; keeps a BatchNorm in place" : "";
    return `${nameOf(box)}: ${outcome}${blocks}`;
  }

  function rowOf(box) {
    return box.dataset.item === undefined ? null : document.getElementById(`item-${box.dataset.item}`);
  }

  function show(name) {
    if (current?.svg.id === name) return;
    current?.select(null, { look: false });
    for (const svg of all(".network", canvas)) svg.classList.toggle("on", svg.id === name);
    for (const button of all("[data-do=before], [data-do=after]")) {
      button.setAttribute("aria-pressed", String(button.dataset.do === name));
    }
    const isNew = !drawings.has(name);
    if (isNew) drawings.set(name, new Network(document.getElementById(name)));
    current = drawings.get(name);
    if (isNew) {
      fit();
      begin();
    }
    current.words();
  }

  function fill(on) {
    section.classList.toggle("whole", on);
    for (const other of all("body > *, main > *")) {
      if (!other.contains(section)) other.inert = on;
    }
    one("[data-do=whole]").setAttribute("aria-pressed", String(on));
    current.words();
    if (!on) canvas.scrollIntoView({ block: "nearest" });
  }

  const actions = {
    before: () => show("before"),
    after: () => show("after"),
    kept: () => current.nextMarked(),
    in: () => current.by(1.5),
    out: () => current.by(1 / 1.5),
    all: () => current.whole(),
    whole: () => fill(!section.classList.contains("whole")),
  };

  function toTable() {
    const row = current.selected && rowOf(current.selected);
    if (!row) return;
    if (row.hidden) one(".filters")?.reset();
    fill(false);
    const target = one("button", row) ?? row;
    row.scrollIntoView({ block: "center" });
    target.focus({ preventScroll: true });
  }

  const keys = {
    ArrowLeft: () => current.pan(-1, 0),
    ArrowRight: () => current.pan(1, 0),
    ArrowUp: () => current.pan(0, -1),
    ArrowDown: () => current.pan(0, 1),
    "+": actions.in,
    "=": actions.in,
    "-": actions.out,
    0: actions.all,
    n: () => current.step(1),
    p: () => current.step(-1),
    k: actions.kept,
    b: () => show(current.svg.id === "before" ? "after" : "before"),
    w: actions.whole,
    Enter: toTable,
    Escape: () => (section.classList.contains("whole") ? fill(false) : current.select(null, { look: false })),
  };

  // As high as the drawing is, but no higher than would make words larger than those around it.
  const NARROW = 600;
  function fit() {
    if (canvas.clientWidth < NARROW) return;
    const { width, height } = current.box;
    const wanted = Math.min((canvas.clientWidth * height) / width, 1.25 * height);
    canvas.style.height = `${Math.max(200, Math.min(wanted, 0.75 * innerHeight, 800))}px`;
  }
  // The whole drawing, if its words can be read then; or else where something stays, or its start.
  function begin() {
    const pixels = current.pixels();
    if (pixels >= GLANCE) return;
    const marked = current.boxes.find((box) => box.matches(".kept, .blocker"));
    current.look(marked ?? current.boxes[0], d3.select(current.svg));
  }

  function startDrawing() {
    show("before");
    for (const button of all("[data-do]")) {
      button.addEventListener("click", () => actions[button.dataset.do]());
    }
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (!act) return;
      event.preventDefault();
      act();
    });
    section.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && section.classList.contains("whole")) fill(false);
    });
    canvas.addEventListener("click", (event) => {
      const box = event.target.closest(".n");
      if (box) current.select(box, { look: false });
    });
    canvas.addEventListener("dblclick", (event) => {
      const box = event.target.closest(".n");
      if (box) current.select(box, { look: false });
    });
    for (const row of all("#items tr[data-drawn]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "show";
      button.textContent = "show";
      button.setAttribute("aria-label", `show ${row.cells[0].textContent} in the drawing`);
      row.cells[0].append(button);
      button.addEventListener("click", () => {
        const wanted = `.n[data-item="${Number(row.id.slice("item-".length))}"]`;
        if (!one(wanted, current.svg)) show("before");
        current.select(one(wanted, current.svg), { look: true });
        canvas.scrollIntoView({ block: "center" });
        canvas.focus({ preventScroll: true });
      });
    }
    new ResizeObserver(() => {
      if (!section.classList.contains("whole")) fit();
      current.words();
    }).observe(canvas);
  }

  // ------------------------------------------------------------------ filters
  const form = one(".filters");
  const FILTERS = ["outcome", "reason", "kind"];

  function startFilters() {
    const rows = all("#items tbody tr").map((row) => {
      const texts = [...row.cells].map((cell) => cell.firstChild?.textContent ?? "");
      const facts = { outcome: texts[3], kind: texts[1], reason: row.dataset.reason };
      return { row, facts, text: texts.join("\n").toLowerCase() };
    });
    const count = one("#shown");
    let waiting = 0;

    function apply() {
      const query = form.elements.search.value.trim().toLowerCase();
      const wanted = FILTERS.map((name) => [name, form.elements[name]?.value ?? ""]);
      let shown = 0;
      const matched = new Set();
      for (const { row, facts, text } of rows) {
        const fits = text.includes(query)
          && wanted.every(([name, value]) => !value || facts[name] === value);
        row.hidden = !fits;
        if (fits) {
          shown += 1;
          matched.add(row.id);
        }
      }
      count.textContent = `${shown} of ${rows.length} shown`;
      const selecting = wanted.some(([, value]) => value);
      if (canvas) dim(query, selecting, matched);
    }

    // The drawing fades what the filter leaves out.
    function dim(query, selecting, matched) {
      const filtering = Boolean(query) || selecting;
      canvas.classList.toggle("filtering", filtering);
      if (!filtering) return;
      for (const box of all(".n", canvas)) {
        const listed = matched.has(`item-${box.dataset.item}`);
        const named = !selecting && nameOf(box).toLowerCase().includes(query);
        box.classList.toggle("hit", listed || named);
      }
    }

    const soon = () => {
      clearTimeout(waiting);
      waiting = setTimeout(apply, 60);
    };
    form.addEventListener("input", soon);
    form.addEventListener("reset", soon);
    form.addEventListener("submit", (event) => event.preventDefault());
    if (form.elements.search.value || FILTERS.some((name) => form.elements[name]?.value)) apply();
  }

  if (canvas) startDrawing();
  if (form) startFilters();
  // Two frames: the first is asked for before the drawing is painted, the second after.
  requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("shown")));
})();
