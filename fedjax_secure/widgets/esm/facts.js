// Who sees what, where the time goes, the ledger, what no guarantee covers, and the same in Python.
const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const seconds = (s) => s >= 100 ? `${s.toFixed(0)} s` : s >= 1 ? `${s.toFixed(2)} s` : `${(1000 * s).toFixed(1)} ms`;

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // no clipboard outside a secure context: the older way
    const area = make("textarea", { style: "position: fixed; opacity: 0" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function render({ model, el }) {
  const panels = make("div", { class: "fjs-panels" });
  const panel = (title, wide, ...content) => {
    const node = make("section", wide ? { class: "fjs-wide" } : {}, make("h3", {}, title), ...content);
    return node;
  };
  const sees = make("dl", { class: "fjs-sees" });
  const stack = make("div", { class: "fjs-stack", "aria-hidden": "true" });
  const table = make("table", { "aria-label": "Time of each part of a round" });
  const noTime = make("p", { class: "fjs-soft" }, "No round has finished yet.");
  const ledger = make("dl", { class: "fjs-sees" });
  const outside = make("ul"), outsideNote = make("p", { class: "fjs-soft", style: "margin-bottom: 6px" });
  const code = make("code"), button = make("button", { type: "button", class: "fjs-small fjs-push" }, "Copy");
  button.setAttribute("aria-label", "Copy the Python code");
  button.addEventListener("click", () => copy(model.get("code"), button));
  const threat = panel("Who sees what", false, sees);
  const right = make("div", { style: "display: grid; gap: 22px; align-content: start; min-width: 0" },
    panel("Where the time goes", false, noTime, stack, table), panel("Ledger and traffic", false, ledger),
    panel("Outside the guarantee", false, outsideNote, outside));
  panels.append(threat, right, make("section", { class: "fjs-wide" },
    make("div", { class: "fjs-head", style: "margin-bottom: 8px" },
      make("h3", { style: "margin: 0" }, "The same in Python"), button),
    make("pre", { tabindex: "0", "aria-label": "Python code" }, code)));
  el.append(make("div", { class: "fjs fjs-facts" }, panels));

  const show = () => {
    sees.replaceChildren(...model.get("threat").flatMap(([term, text], k, all) => [
      make("dt", { class: "fjs-key" }, k && all[k - 1][0] === term ? "" : term), make("dd", {}, text)]));
    const timings = model.get("timings"), whole = timings.reduce((sum, row) => sum + row.median, 0);
    stack.hidden = !whole;
    stack.replaceChildren(...timings.map((row, k) => make("div", {
      style: `width: ${(100 * row.median) / (whole || 1)}%; background: var(--fjs-c${k % 8})` })));
    const head = make("tr", {}, ...["part", "median round", "share", "all rounds, with compiling"].map((text) =>
      make("th", { scope: "col" }, text)));
    table.replaceChildren(make("thead", {}, head), make("tbody", {}, ...timings.map((row, k) => make("tr", {},
      make("th", { scope: "row" }, make("span", { class: "fjs-key-dot", style: `background: var(--fjs-c${k % 8})` }), row.part),
      make("td", {}, seconds(row.median)),
      make("td", {}, `${Math.round((100 * row.median) / (whole || 1))}%`),
      make("td", {}, seconds(row.total))))));
    table.hidden = !timings.length;
    noTime.hidden = Boolean(timings.length);
    ledger.replaceChildren(...model.get("ledger").flatMap(([term, text, hash]) => [
      make("dt", {}, term), make("dd", {}, hash ? make("code", { class: "fjs-hash" }, text) : text)]));
    outsideNote.textContent = model.get("outside_note");
    outside.replaceChildren(...model.get("outside").map((text) => make("li", {}, text)));
    code.textContent = model.get("code");
  };
  const names = ["threat", "timings", "ledger", "outside", "outside_note", "code"];
  for (const name of names) model.on(`change:${name}`, show);
  show();
  return () => { for (const name of names) model.off(`change:${name}`, show); };
}
export default { render };
