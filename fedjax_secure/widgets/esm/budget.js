// Epsilon spent of the target, as a number, a meter and the terms that give it its meaning.
const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

function render({ model, el }) {
  const label = make("span", { class: "fjs-badge fjs-push" });
  const value = make("span"), target = make("small");
  const fill = make("div", { class: "fjs-fill" });
  const meter = make("div", { class: "fjs-meter", role: "meter", "aria-label": "Privacy budget spent",
    "aria-valuemin": "0" }, fill);
  const summary = make("p", { class: "fjs-soft" }), terms = make("dl");
  const figure = make("div", {}, make("div", { class: "fjs-big" }, value, target), meter);
  el.append(make("div", { class: "fjs fjs-budget" },
    make("div", { class: "fjs-head" }, make("h3", {}, "Privacy budget"), label), figure, summary, terms));

  const show = () => {
    const epsilon = model.get("epsilon"), goal = model.get("target"), active = model.get("active");
    const share = goal > 0 ? epsilon / goal : 0;
    label.textContent = model.get("label");
    label.className = `fjs-badge fjs-push ${model.get("label").startsWith("secure") ? "fjs-good" : "fjs-warn"}`;
    label.hidden = !model.get("label");
    figure.hidden = !active;
    value.textContent = `ε ${epsilon.toFixed(epsilon < 10 ? 2 : 1)}`;
    target.textContent = ` of ${goal}`;
    fill.style.width = `${Math.min(100, 100 * share)}%`;
    meter.className = `fjs-meter ${share > 1 ? "fjs-over" : ""}`;
    meter.setAttribute("aria-valuemax", String(goal));
    meter.setAttribute("aria-valuenow", String(epsilon));
    meter.setAttribute("aria-valuetext", model.get("summary"));
    summary.textContent = model.get("summary");
    terms.replaceChildren(...model.get("terms").flatMap(([term, text]) => [
      make("dt", {}, term), make("dd", {}, text)]));
  };
  const names = ["epsilon", "target", "active", "label", "summary", "terms"];
  for (const name of names) model.on(`change:${name}`, show);
  show();
  el.dataset.view = "budget";
  return () => { for (const name of names) model.off(`change:${name}`, show); };
}
export default { render };
