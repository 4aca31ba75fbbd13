// A figure of merit by round, one line a client and the mean: SVG, redrawn at each finished round.
const SVG = "http://www.w3.org/2000/svg";
const draw = (tag, attributes = {}, text = "") => {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text) node.textContent = text;
  return node;
};
const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const DASHES = ["", "7 3", "2 3", "9 3 2 3"];
const HEIGHT = 310, LEFT = 60, RIGHT = 172, TOP = 12, BOTTOM = 44;

function ticks(low, high, wanted) {
  const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5, 10].find((m) => m * power >= raw) || 10);
  const out = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9; k++) out.push(k * step);
  return out;
}

function render({ model, el }) {
  const toggles = make("div", { class: "fjs-row fjs-push", role: "group", "aria-label": "Figure shown" });
  const title = make("h3"), note = make("span", { class: "fjs-badge fjs-warn" });
  const svg = draw("svg", { role: "img", tabindex: "0", height: HEIGHT });
  const tip = make("div", { class: "fjs-tip" });
  const plot = make("div", { class: "fjs-plot" }, svg, tip);
  const root = make("div", { class: "fjs fjs-chart" },
    make("div", { class: "fjs-head" }, title, note, toggles), plot);
  let place = null, at = null;

  const colour = (line, index) => line.mean ? "var(--fjs-ink)" : `var(--fjs-c${index % 8})`;

  function show() {
    const figures = model.get("figures"), metric = model.get("metric");
    const rounds = model.get("rounds_done"), lines = (figures[metric] || {}).lines || [];
    const label = (figures[metric] || {}).label || metric;
    title.textContent = `${label} on held-out records`;
    note.textContent = (figures[metric] || {}).note || "";
    note.hidden = !note.textContent;
    toggles.replaceChildren(...Object.entries(figures).map(([name, figure]) => {
      const button = make("button", { type: "button", class: "fjs-small",
        "aria-pressed": String(name === metric) }, figure.label);
      button.addEventListener("click", () => { model.set("metric", name); model.save_changes(); });
      return button;
    }));
    const width = Math.max(plot.clientWidth, 320);
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.replaceChildren();
    const values = lines.flatMap((line) => line.values).filter((v) => v !== null);
    const last = Math.max(model.get("total_rounds"), ...rounds, 1);
    const low = values.length ? Math.max(0, Math.floor(Math.min(...values) * 10 - 0.3) / 10) : 0;
    const right = width - RIGHT, bottom = HEIGHT - BOTTOM;
    const x = (r) => last > 1 ? LEFT + 8 + ((r - 1) / (last - 1)) * (right - LEFT - 16) : (LEFT + right) / 2;
    const y = (v) => bottom - ((v - low) / (1 - low)) * (bottom - TOP);
    for (const v of ticks(low, 1, 5)) {
      svg.append(draw("line", { class: "fjs-grid", x1: LEFT, x2: right, y1: y(v), y2: y(v) }),
        draw("text", { x: LEFT - 8, y: y(v) + 4, "text-anchor": "end" }, v.toFixed(2)));
    }
    const marks = last < 2 ? [1] : ticks(1, last, Math.min(10, last - 1)).filter(Number.isInteger);
    if (marks[0] !== 1) marks.unshift(1);
    for (const r of marks) {
      svg.append(draw("text", { x: x(r), y: bottom + 18, "text-anchor": "middle" }, String(r)));
    }
    svg.append(draw("text", { x: (LEFT + right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "round"),
      draw("text", { transform: `translate(12 ${(TOP + bottom) / 2}) rotate(-90)`,
        "text-anchor": "middle" }, label.toLowerCase() === "auc" ? "AUC" : label.toLowerCase()));
    if (!values.length) {
      svg.append(draw("text", { x: (LEFT + right) / 2, y: (TOP + bottom) / 2, "text-anchor": "middle" },
        "No round has finished yet."));
    }
    const ends = [];
    lines.forEach((line, index) => {
      const points = line.values.map((v, k) => v === null ? null : [x(rounds[k]), y(v)]);
      let path = "", pen = "M";
      for (const point of points) {
        if (point) { path += `${pen}${point[0].toFixed(1)} ${point[1].toFixed(1)}`; pen = "L"; } else pen = "M";
      }
      const stroke = colour(line, index);
      svg.append(draw("path", { d: path, fill: "none", style: `stroke: ${stroke}`, "data-line": line.name,
        "stroke-width": line.mean ? 3.2 : 1.8, "stroke-linejoin": "round", "stroke-linecap": "round",
        "stroke-dasharray": line.mean ? "" : DASHES[index % 4] }));
      const seen = points.filter(Boolean);
      if (seen.length) {  // where the line has come to; a single round is no line yet
        svg.append(draw("circle", { cx: seen.at(-1)[0], cy: seen.at(-1)[1], r: line.mean ? 4 : 3,
          style: `fill: ${stroke}` }));
      }
      if (seen.length) {
        const value = line.values.filter((v) => v !== null).at(-1);
        ends.push({ name: line.name, value, index, stroke, mean: line.mean, y: seen.at(-1)[1] });
      }
    });
    ends.sort((a, b) => a.y - b.y);
    ends.forEach((end, k) => { end.y = Math.max(end.y, k ? ends[k - 1].y + 17 : TOP + 4); });
    for (let k = ends.length - 1, floor = bottom; k >= 0; k--, floor -= 17) ends[k].y = Math.min(ends[k].y, floor);
    for (const end of ends) {
      const name = end.name.length > 14 ? `${end.name.slice(0, 13)}…` : end.name;
      svg.append(
        draw("line", { x1: right + 8, x2: right + 26, y1: end.y, y2: end.y, style: `stroke: ${end.stroke}`,
          "stroke-width": end.mean ? 3.2 : 2, "stroke-dasharray": end.mean ? "" : DASHES[end.index % 4] }),
        draw("text", { class: "fjs-end", x: right + 31, y: end.y + 4, style: `fill: ${end.stroke}` },
          `${end.value.toFixed(2)} ${name}`));
    }
    svg.setAttribute("aria-label", !values.length ? `${label} by round: no round has finished yet.` :
      `${label} by round. After round ${rounds.at(-1)}: ` +
      ends.map((end) => `${end.name} ${end.value.toFixed(3)}`).join(", ") +
      ". Left and right arrow keys read single rounds.");
    place = { x, y, rounds, lines, right, bottom, width };
    point();
  }

  function point() {
    svg.querySelector(".fjs-cursor")?.remove();
    tip.hidden = at === null || !place || !place.rounds.includes(at);
    if (tip.hidden) return;
    const k = place.rounds.indexOf(at), px = place.x(at);
    svg.append(draw("line", { class: "fjs-grid fjs-cursor", x1: px, x2: px, y1: TOP, y2: place.bottom }));
    tip.replaceChildren(make("strong", {}, `round ${at}`), ...place.lines.map((line, index) => {
      const name = make("span", { style: `color: ${colour(line, index)}` }, line.name);
      return make("div", {}, name, line.values[k] === null ? "–" : line.values[k].toFixed(3));
    }));
    const scale = plot.clientWidth / place.width;
    tip.style.left = px > place.width / 2 ? "auto" : `${px * scale + 12}px`;
    tip.style.right = px > place.width / 2 ? `${(place.width - px) * scale + 12}px` : "auto";
  }
  svg.addEventListener("mousemove", (event) => {
    if (!place?.rounds.length) return;
    const px = (event.offsetX / plot.clientWidth) * place.width;
    at = place.rounds.reduce((a, b) => Math.abs(place.x(b) - px) < Math.abs(place.x(a) - px) ? b : a);
    point();
  });
  svg.addEventListener("mouseleave", () => { at = null; point(); });
  svg.addEventListener("blur", () => { at = null; point(); });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !place?.rounds.length) return;
    event.preventDefault();
    event.stopPropagation();
    const k = at === null ? place.rounds.length : place.rounds.indexOf(at) + step;
    at = place.rounds[Math.min(Math.max(k, 0), place.rounds.length - 1)];
    point();
  });
  el.append(root);
  const names = ["figures", "metric", "rounds_done", "total_rounds"];
  for (const name of names) model.on(`change:${name}`, show);
  let shown = 0;
  const observer = new ResizeObserver(() => {
    if (Math.abs(plot.clientWidth - shown) > 1) { shown = plot.clientWidth; show(); }
  });
  observer.observe(plot);
  show();
  return () => {
    observer.disconnect();
    for (const name of names) model.off(`change:${name}`, show);
  };
}
export default { render };
