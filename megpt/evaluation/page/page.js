"use strict";
// The page's own program: no library, nothing fetched. `megpt.add` takes studies (from scripts beside the page when there
// are many), `megpt.start` draws. Study: {id, split, prompt, reference, refMarks…}, see payload.py for every field.
const megpt = (() => {
  const ROW = 34, AROUND = 12;
  const KINDS = ["agreed", "invented", "missed", "side", "doubted"], LETTERS = "AIMSD";
  const SAID = { "1": "yes", "0": "no", "-1": "maybe" };
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const studies = [], at = id => document.getElementById(id);
  let films = 0, shown = [], chosen = null, sorting = { key: "id", way: 1 };

  // ---- small helpers -------------------------------------------------------------------------------------------
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElementNS(/^(svg|rect|path|title|filter|fe\w+)$/.test(tag) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml", tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== undefined) node.setAttribute(name, value);
    node.append(...children.filter(child => child !== null && child !== undefined));
    return node;
  };
  const number = value => value === null || value === undefined ? "–" : value.toFixed(3);
  const words = text => text ? text.split(/\s+/).filter(Boolean).length : 0;
  const add = part => { for (const study of typeof part === "string" ? JSON.parse(part) : part) studies.push(study); };

  const prepare = study => {
    study.low = [study.id, study.reference ?? "", ...study.reports.map(report => report.text ?? "")].join("\n").toLowerCase();
    study.said = [];  // [words of a mention, status] in any of the texts
    const collect = (text, mentions) => { for (const [start, end, finding, status] of mentions) study.said.push([`${text.slice(start, end)} ${page.findings[finding]}`.toLowerCase(), String(status)]); };
    if (study.reference) collect(study.reference, study.reports[0].refMentions);
    for (const report of study.reports) if (report.text) collect(report.text, report.mentions);
    study.values = { id: study.id, split: study.split ?? "", prompt: study.prompt ?? -1, words: words(study.reports[0].text), differences: study.reports[0].kinds.filter(([, kind]) => kind > 0).length };
    page.scores.forEach((name, i) => { study.values[name] = study.reports[0].scores[i]; });
  };

  // ---- what is shown -------------------------------------------------------------------------------------------
  // Search: words, "phrases", -excluded, no WORD (denied), WORD:yes|no|maybe.
  const parse = text => {
    const tests = [];
    const parts = text.toLowerCase().match(/-?"[^"]*"|\S+/g) ?? [];
    for (let i = 0; i < parts.length; i++) {
      let part = parts[i];
      const stated = /^(.+):(yes|no|maybe)$/.exec(part);
      if (stated) { tests.push(study => study.said.some(([about, status]) => SAID[status] === stated[2] && about.includes(stated[1]))); continue; }
      if (part === "no" && i + 1 < parts.length) { const what = parts[++i].replaceAll('"', ""); tests.push(study => study.said.some(([about, status]) => status === "0" && about.includes(what))); continue; }
      const without = part.startsWith("-") && part.length > 1;
      part = (without ? part.slice(1) : part).replaceAll('"', "");
      if (part) tests.push(study => study.low.includes(part) !== without);
    }
    return tests;
  };
  const FIELDS = ["q", "finding", "kind", "split", "prompt", "state", "score", "low", "high"];
  const filter = () => {
    const value = Object.fromEntries(FIELDS.map(name => [name, at(name).value]));
    const tests = parse(value.q);
    const finding = value.finding === "" ? null : Number(value.finding), kind = value.kind === "" ? null : Number(value.kind);
    if (kind !== null) tests.push(study => study.reports.some(report => report.kinds.some(([name, is]) => is === kind && (finding === null || name === finding))));
    else if (finding !== null) tests.push(study => study.reports.some(report => report.kinds.some(([name]) => name === finding)));
    if (value.split) tests.push(study => study.split === value.split);
    if (value.prompt) tests.push(study => String(study.prompt) === value.prompt);
    const states = { failed: study => study.reports.some(r => r.text === null), written: study => study.reports.every(r => r.text !== null), cut: study => study.reports.some(r => r.finish === "length"), unreferenced: study => study.reference === null };
    if (value.state) tests.push(states[value.state]);
    if (value.score) {
      const low = value.low === "" ? -Infinity : Number(value.low), high = value.high === "" ? Infinity : Number(value.high);
      tests.push(study => { const v = study.values[value.score]; return v !== null && v !== undefined && v >= low && v <= high; });
    }
    shown = studies.filter(study => tests.every(test => test(study)));
    const { key, way } = sorting;
    shown.sort((a, b) => { const x = a.values[key], y = b.values[key]; if (x === y) return 0; if (x === null || x === undefined) return 1; if (y === null || y === undefined) return -1; return (x < y ? -1 : 1) * way; });
    at("shown").textContent = `${shown.length.toLocaleString("en")} of ${studies.length.toLocaleString("en")} studies.`;
  };

  // ---- the list: only rows near the window exist ---------------------------------------------------------------
  const columns = () => [["id", "study"], ["differences", "differences"], ...page.scores.map(name => [name, page.titles[name] ?? name]), ["words", "words"], ...(page.splits.length > 1 ? [["split", "split"]] : []), ...(page.hasPrompts ? [["prompt", "prompt"]] : [])];
  const cell = (study, key) => {
    if (key === "id") return make("th", { scope: "row", title: study.id }, study.id);
    if (key === "differences") return make("td", {}, study.reports.map(r => r.text === null ? "failed" : r.kinds.filter(([, k]) => k > 0).map(([, k]) => LETTERS[k]).join("") || "–").join(" | "));
    const value = study.values[key];
    return make("td", {}, page.scores.includes(key) ? number(value) : value === -1 || value === "" ? "–" : String(value));
  };
  const drawList = () => {
    const box = at("list"), first = Math.max(0, Math.floor(box.scrollTop / ROW) - AROUND);
    const last = Math.min(shown.length, first + Math.ceil(box.clientHeight / ROW) + 2 * AROUND);
    const names = columns(), space = count => make("tr", { class: "space", "aria-hidden": "true" }, make("td", { colspan: names.length }));
    const rows = [];
    const above = space(), below = space();
    above.firstChild.style.height = `${first * ROW}px`;
    below.firstChild.style.height = `${(shown.length - last) * ROW}px`;
    for (let i = first; i < last; i++) {
      const study = shown[i], row = make("tr", { "data-row": i, "aria-selected": study === chosen ? "true" : null }, ...names.map(([key]) => cell(study, key)));
      rows.push(row);
    }
    at("rows").replaceChildren(...(first ? [above] : []), ...rows, ...(last < shown.length ? [below] : []));
  };
  const drawHead = () => {
    at("columns").replaceChildren(...columns().map(([key, title]) => {
      const mine = sorting.key === key;
      const button = make("button", { type: "button" }, title + (mine ? (sorting.way > 0 ? " ▲" : " ▼") : ""));
      button.addEventListener("click", () => { sorting = { key, way: mine ? -sorting.way : 1 }; update(); });
      return make("th", { scope: "col", "aria-sort": mine ? (sorting.way > 0 ? "ascending" : "descending") : null }, button);
    }));
  };

  // ---- one study -----------------------------------------------------------------------------------------------
  const marked = (text, mentions, from, to) => {
    const nodes = [];
    let position = from;
    for (const [start, end, finding, , kind] of mentions) {
      if (kind < 0 || start < position || end > to) continue;
      if (start > position) nodes.push(text.slice(position, start));
      nodes.push(make("mark", { class: KINDS[kind], title: `${page.findings[finding]}: ${page.kinds[kind]}` }, text.slice(start, end), make("sup", {}, LETTERS[kind])));
      position = end;
    }
    if (position < to) nodes.push(text.slice(position, to));
    return nodes;
  };
  const reportCell = (report, from, to) => report.text === null
    ? make("td", { class: "failed" }, `failed: ${report.error ?? "no report"}`)
    : make("td", {}, ...marked(report.text, report.mentions, from, to));
  const texts = study => {
    const heading = report => (report.name ?? "generated") + (report.finish === "length" ? " (cut at the token limit)" : "");
    const head = make("tr", {}, ...study.reports.map(r => make("th", { scope: "col" }, heading(r))), make("th", { scope: "col" }, "reference"));
    const body = make("tbody"), one = study.reports[0];
    if (study.reports.length === 1 && one.rows) {
      for (const [a, b, c, d] of one.rows) body.append(make("tr", {}, a < 0 ? make("td") : reportCell(one, a, b), c < 0 ? make("td") : make("td", {}, ...marked(study.reference, one.refMentions, c, d))));
    } else {
      const reference = study.reference === null ? make("td", { class: "dim" }, "none") : make("td", {}, ...marked(study.reference, one.refMentions, 0, study.reference.length));
      body.append(make("tr", {}, ...study.reports.map(r => reportCell(r, 0, (r.text ?? "").length)), reference));
    }
    return make("table", { class: "texts" }, make("thead", {}, head), body);
  };
  const chips = report => make("ul", { class: "chips" }, ...report.kinds.map(([finding, kind]) => make("li", { class: KINDS[kind] }, `${page.findings[finding]}: ${page.kinds[kind]}`)));
  const draw = study => {
    const many = study.reports.length > 1;
    const numbers = report => make("span", { class: "dim" }, (many ? `${report.name}: ` : "") + page.scores.map((name, i) => `${page.titles[name] ?? name} ${number(report.scores[i])}`).join("  "));
    const facts = [study.split, study.prompt === null ? null : `prompt ${study.prompt}`].filter(Boolean).join(", ");
    const films = make("div", { class: "films" }, ...study.films.map((source, i) => film(source, `film ${i + 1} of study ${study.id}`)));
    if (!study.films.length) films.append(make("p", { class: "dim" }, "no film at hand"));
    return [make("header", {}, make("h3", {}, study.id), make("span", { class: "dim" }, facts), ...study.reports.map(numbers)), ...study.reports.map(chips), films, texts(study)];
  };
  const choose = (study, { focus = false, scroll = true } = {}) => {
    chosen = study;
    at("study").replaceChildren(...(study ? draw(study) : [make("p", { class: "dim" }, studies.length ? "No study fits these filters." : "There is no study.")]));
    at("study").scrollTop = 0;
    const row = shown.indexOf(study), box = at("list");
    if (scroll && row >= 0) {
      const top = row * ROW, height = box.clientHeight - 2 * ROW;
      if (top < box.scrollTop || top > box.scrollTop + height) box.scrollTop = Math.max(0, top - height / 2);
    }
    drawList();
    if (focus) at("study").focus({ preventScroll: true });
    remember();
  };
  const step = by => { if (shown.length) choose(shown[Math.min(shown.length - 1, Math.max(0, shown.indexOf(chosen) + by))]); };

  // ---- films: zoom and pan by wheel, drag and pinch; window and level by the sliders or with shift ----------------
  const film = (source, alt) => {
    const image = make("img", { src: source, alt, loading: "lazy", draggable: "false" }), stage = make("div", { class: "stage" }, image);
    const slider = (label, value, min, max) => make("input", { type: "range", min, max, value, "aria-label": `${label} of ${alt}` });
    const level = slider("level", 128, 1, 255), width = slider("window", 256, 8, 512);
    const view = { scale: 1, x: 0, y: 0 }, held = new Map(), name = `window-${++films}`;
    const channels = ["R", "G", "B"].map(letter => make(`feFunc${letter}`, { type: "linear" }));
    const shades = make("svg", { class: "hidden", "aria-hidden": "true" }, make("filter", { id: name, "color-interpolation-filters": "sRGB" }, make("feComponentTransfer", {}, ...channels)));
    const show = () => { image.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`; };
    const shade = () => {
      const slope = 255 / Number(width.value), offset = 0.5 - slope * Number(level.value) / 255;
      for (const channel of channels) { channel.setAttribute("slope", slope); channel.setAttribute("intercept", offset); }
      image.style.filter = Number(width.value) === 256 && Number(level.value) === 128 ? "" : `url(#${name})`;
    };
    const reset = () => { Object.assign(view, { scale: 1, x: 0, y: 0 }); level.value = 128; width.value = 256; show(); shade(); };
    const zoom = factor => { view.scale = Math.min(12, Math.max(1, view.scale * factor)); if (view.scale === 1) view.x = view.y = 0; show(); };
    for (const input of [level, width]) input.addEventListener("input", shade);
    stage.addEventListener("wheel", event => { if (!event.ctrlKey && !event.altKey && view.scale === 1 && event.deltaY > 0) return; event.preventDefault(); zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2); }, { passive: false });
    stage.addEventListener("pointerdown", event => { stage.setPointerCapture(event.pointerId); held.set(event.pointerId, event); });
    stage.addEventListener("pointermove", event => {
      const before = held.get(event.pointerId);
      if (!before) return;
      const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
      if (held.size === 2) {
        const other = [...held.entries()].find(([id]) => id !== event.pointerId)[1];
        const was = Math.hypot(before.clientX - other.clientX, before.clientY - other.clientY), is = Math.hypot(event.clientX - other.clientX, event.clientY - other.clientY);
        if (was > 0) zoom(is / was);
      } else if (event.shiftKey || event.buttons === 2) { width.value = Number(width.value) + dx; level.value = Number(level.value) - dy; shade(); } else { view.x += dx; view.y += dy; show(); }
      held.set(event.pointerId, event);
    });
    for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, event => held.delete(event.pointerId));
    stage.addEventListener("contextmenu", event => event.preventDefault());
    const button = (text, label, action) => { const node = make("button", { type: "button", "aria-label": `${label} ${alt}` }, text); node.addEventListener("click", action); return node; };
    const figure = make("figure", { class: "film" }, stage, shades);
    figure.append(make("figcaption", {}, button("+", "enlarge", () => zoom(1.4)), button("−", "shrink", () => zoom(1 / 1.4)), make("label", {}, "level", level), make("label", {}, "window", width), button("Reset", "reset", reset), button("Full screen", "full screen for", () => document.fullscreenElement ? document.exitFullscreen() : figure.requestFullscreen?.())));
    figure.reset = reset;
    return figure;
  };

  // ---- charts --------------------------------------------------------------------------------------------------
  const plot = (title, ...nodes) => make("figure", { class: "plot" }, make("figcaption", {}, title), make("svg", { viewBox: "0 0 200 80", preserveAspectRatio: "none", role: "group", "aria-label": title }, ...nodes));
  const axis = (low, high) => make("p", { class: "dim" }, `${low} … ${high}`);
  const histogram = (title, values, others, pick) => {
    const known = [...values, ...others].filter(v => v !== null && v !== undefined);
    if (!known.length) return null;
    const low = known.reduce((a, b) => Math.min(a, b)), high = known.reduce((a, b) => Math.max(a, b)), bins = 20, size = (high - low) / bins || 1;
    const count = list => { const bars = new Array(bins).fill(0); for (const v of list) if (v !== null && v !== undefined) bars[Math.min(bins - 1, Math.floor((v - low) / size))]++; return bars; };
    const mine = count(values), theirs = count(others), most = Math.max(...mine, ...theirs, 1), wide = 200 / bins;
    const bars = mine.map((n, i) => {
      const from = low + i * size, to = from + size, label = `${title}: ${n} studies from ${from.toPrecision(3)} to ${to.toPrecision(3)}`;
      const bar = make("rect", { x: i * wide + 0.5, y: 80 - 78 * n / most, width: wide - 1, height: 78 * n / most, ...(pick && n ? { role: "button", tabindex: 0, "aria-label": label } : {}) }, make("title", {}, label));
      if (pick && n) { const act = () => pick(from, i === bins - 1 ? high : to); bar.addEventListener("click", act); bar.addEventListener("keydown", event => { if (event.key === "Enter") act(); }); }
      return bar;
    });
    const outlines = others.length ? theirs.map((n, i) => make("rect", { class: "other", x: i * wide + 0.5, y: 80 - 78 * n / most, width: wide - 1, height: 78 * n / most })) : [];
    const figure = plot(title, ...bars, ...outlines);
    figure.append(axis(Number(low.toPrecision(3)), Number(high.toPrecision(3))));
    return figure;
  };
  const drawCharts = () => {
    const pick = name => (low, high) => { at("score").value = name; at("low").value = low; at("high").value = high; update(); at("studies").scrollIntoView(); };
    const boxes = [histogram("words: generated (bars), reference (outlines)", studies.map(s => s.reports[0].text === null ? null : s.values.words), studies.map(s => s.reference === null ? null : words(s.reference)), pick("words")),
      ...page.scores.map(name => histogram(page.titles[name] ?? name, studies.map(s => s.values[name]), [], pick(name)))];
    at("histograms").append(...boxes.filter(Boolean));
    if (at("curves")) at("curves").append(...page.curves.map(({ title, points }) => {
      const xs = points.map(p => p[0]), ys = points.map(p => p[1]), span = list => [Math.min(...list), Math.max(...list)];
      const [x0, x1] = span(xs), [y0, y1] = span(ys);
      const path = points.map(([x, y], i) => `${i ? "L" : "M"}${(200 * (x - x0) / (x1 - x0 || 1)).toFixed(1)} ${(78 - 76 * (y - y0) / (y1 - y0 || 1)).toFixed(1)}`).join("");
      const figure = plot(title, make("path", { d: path }));
      figure.append(axis(`steps ${x0} to ${x1}`, `from ${Number(y0.toPrecision(3))} to ${Number(y1.toPrecision(3))}`));
      return figure;
    }));
  };

  // ---- tables to take away -------------------------------------------------------------------------------------
  const grid = table => [...table.rows].map(row => [...row.cells].map(cell => cell.textContent.trim().replace(/\s+/g, " ")));
  const FORMATS = {
    CSV: rows => rows.map(row => row.map(v => /[",\n]/.test(v) ? `"${v.replaceAll('"', '""')}"` : v).join(",")).join("\n"),
    Markdown: rows => rows.map((row, i) => `| ${row.map(v => v.replaceAll("|", "\\|")).join(" | ")} |` + (i ? "" : `\n| ${row.map(() => "---").join(" | ")} |`)).join("\n"),
    LaTeX: rows => { const tex = v => v.replace(/[&%$#_{}]/g, "\\$&").replaceAll("–", "--"); return `\\begin{tabular}{l${"r".repeat(rows[0].length - 1)}}\n\\hline\n${rows.map((row, i) => row.map(tex).join(" & ") + " \\\\" + (i ? "" : "\n\\hline")).join("\n")}\n\\hline\n\\end{tabular}`; },
  };
  const copy = (text, button) => {
    const done = () => { const was = button.textContent; button.textContent = "Copied"; setTimeout(() => { button.textContent = was; }, 1200); };
    const byHand = () => { const field = make("textarea"); field.value = text; document.body.append(field); field.select(); document.execCommand("copy"); field.remove(); done(); };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, byHand); else byHand();
  };
  const addCopies = () => {
    for (const table of document.querySelectorAll("table[data-copy]")) {
      const tools = make("p", { class: "tools" }, ...Object.entries(FORMATS).map(([name, format]) => { const button = make("button", { type: "button", "aria-label": `copy ${table.dataset.copy} as ${name}` }, `Copy ${name}`); button.addEventListener("click", () => copy(format(grid(table)), button)); return button; }));
      table.closest(".scroll").after(tools);
    }
    for (const button of document.querySelectorAll("[data-copies]")) button.addEventListener("click", () => copy(at(button.dataset.copies).textContent, button));
  };

  // ---- the address holds the state -----------------------------------------------------------------------------
  const remember = () => {
    const state = new URLSearchParams();
    for (const name of FIELDS) if (at(name).value) state.set(name, at(name).value);
    if (sorting.key !== "id" || sorting.way < 0) state.set("sort", (sorting.way < 0 ? "-" : "") + sorting.key);
    if (chosen && chosen !== shown[0]) state.set("study", chosen.id);
    history.replaceState(null, "", state.size ? `#?${state}` : location.pathname + location.search);
  };
  const recall = () => {
    if (!location.hash.startsWith("#?")) return null;
    const state = new URLSearchParams(location.hash.slice(2));
    for (const name of FIELDS) at(name).value = state.get(name) ?? "";
    const sort = state.get("sort");
    if (sort) sorting = { key: sort.replace(/^-/, ""), way: sort.startsWith("-") ? -1 : 1 };
    return state.get("study");
  };
  const update = wanted => {
    filter();
    drawHead();
    const study = typeof wanted === "string" ? shown.find(s => s.id === wanted) : null;
    choose(study ?? (shown.includes(chosen) ? chosen : shown[0] ?? null));
  };

  // ---- paper ---------------------------------------------------------------------------------------------------
  const toPaper = () => at("paper").replaceChildren(...shown.map(study => { const box = make("article", { class: "study" }, ...draw(study)); for (const image of box.querySelectorAll("img")) image.loading = "eager"; return box; }));

  const options = (id, first, pairs) => at(id).replaceChildren(make("option", { value: "" }, first), ...pairs.map(([value, text]) => make("option", { value }, text)));
  const start = () => {
    if (page.studies) add(page.studies);
    studies.forEach(prepare);
    page.splits = [...new Set(studies.map(s => s.split).filter(Boolean))].sort();
    const prompts = [...new Set(studies.map(s => s.prompt).filter(p => p !== null))].sort((a, b) => a - b);
    page.hasPrompts = prompts.length > 0;
    options("finding", "any", page.findings.map((name, i) => [i, name]));
    options("kind", "any", page.kinds.map((name, i) => [i, name]));
    options("split", "all", page.splits.map(name => [name, name]));
    options("prompt", "all", prompts.map(id => [String(id), String(id)]));
    options("score", "any", [...page.scores.map(name => [name, page.titles[name] ?? name]), ["words", "words"]]);
    at("filters").addEventListener("input", () => update());
    at("filters").addEventListener("submit", event => event.preventDefault());
    at("filters").addEventListener("reset", () => setTimeout(update));
    at("list").addEventListener("scroll", drawList, { passive: true });
    at("list").addEventListener("keydown", event => { if (event.key === "ArrowDown" || event.key === "ArrowUp") { event.preventDefault(); step(event.key === "ArrowDown" ? 1 : -1); } });
    at("rows").addEventListener("click", event => { const row = event.target.closest("[data-row]"); if (row) choose(shown[Number(row.dataset.row)], { scroll: false }); });
    for (const row of document.querySelectorAll("#prompt-rows tr")) {
      const of = studies.filter(s => String(s.prompt) === row.dataset.prompt && s.films.length).slice(0, 3);
      row.querySelector(".films").append(...of.map(s => make("img", { class: "thumb", src: s.films[0], alt: `film of study ${s.id}`, loading: "lazy" })));
    }
    document.addEventListener("keydown", event => {
      const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
      if (event.key === "Escape" && event.target.id === "q") event.target.blur();
      if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
      const keys = { j: () => step(1), k: () => step(-1), "/": () => { event.preventDefault(); at("q").focus(); at("q").select(); }, "?": () => at("help").showModal(), f: () => document.querySelector("#study .film")?.requestFullscreen?.(), 0: () => { for (const figure of document.querySelectorAll("#study .film")) figure.reset(); } };
      keys[event.key]?.();
    });
    window.addEventListener("hashchange", () => { if (location.hash.startsWith("#?")) update(recall()); });
    window.addEventListener("beforeprint", toPaper);
    window.addEventListener("afterprint", () => at("paper").replaceChildren());
    addCopies();
    update(recall());
    setTimeout(drawCharts);
  };
  return { add, start, parse };
})();
