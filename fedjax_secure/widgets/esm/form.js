// The form of a federation: native inputs, help below each, and the error in its place.
const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
let forms = 0;

function render({ model, el }) {
  const prefix = `fjs-form-${++forms}`;
  const inputs = {}, helps = {}, errors = {};
  const fieldset = make("fieldset", { class: "fjs-fields", "aria-labelledby": `${prefix}-title` });
  let timer = null;

  const send = () => {
    clearTimeout(timer);
    const values = {};
    for (const [name, input] of Object.entries(inputs)) values[name] = input.value;
    model.set("values", values);
    model.save_changes();
  };

  for (const field of model.get("fields")) {
    const id = `${prefix}-${field.name}`;
    const input = field.choices.length ? make("select", { id }) : make("input", {
      id, type: "text", inputmode: "decimal", autocomplete: "off", spellcheck: "false" });
    for (const [value, text] of field.choices) input.append(make("option", { value }, text));
    input.setAttribute("aria-describedby", `${id}-help ${id}-error`);
    input.dataset.field = field.name;
    input.addEventListener("change", send);
    input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(send, 300); });
    inputs[field.name] = input;
    helps[field.name] = make("div", { id: `${id}-help`, class: "fjs-help" }, field.help);
    errors[field.name] = make("div", { id: `${id}-error`, class: "fjs-error", role: "alert" });
    fieldset.append(make("div", { class: "fjs-field" }, make("label", { for: id }, field.label),
      input, helps[field.name], errors[field.name]));
  }
  const other = make("div", { class: "fjs-alert", role: "alert" });
  const note = make("span", { class: "fjs-soft fjs-push" });
  const root = make("div", { class: "fjs fjs-form" },
    make("div", { class: "fjs-head" }, make("h3", { id: `${prefix}-title` }, "Federation"), note),
    fieldset, other);

  const show = () => {
    const values = model.get("values"), texts = model.get("errors");
    const unused = model.get("unused"), locked = model.get("locked");
    for (const [name, input] of Object.entries(inputs)) {
      // what somebody is typing is theirs until the kernel has seen it
      if (input !== document.activeElement || input.tagName === "SELECT") {
        if (input.value !== values[name]) input.value = values[name];
      }
      input.disabled = locked || unused.includes(name);
      const text = texts[name] || "";
      input.setAttribute("aria-invalid", String(Boolean(text)));
      if (errors[name].textContent !== text) errors[name].textContent = text;
      errors[name].hidden = !text;
      helps[name].hidden = Boolean(text);
    }
    other.hidden = !texts[""];
    other.textContent = texts[""] || "";
    note.textContent = locked ? "Settings are fixed while rounds run." : "";
  };
  for (const name of ["values", "errors", "unused", "locked"]) model.on(`change:${name}`, show);
  show();
  el.append(root);
  return () => {
    clearTimeout(timer);
    for (const name of ["values", "errors", "unused", "locked"]) model.off(`change:${name}`, show);
  };
}
export default { render };
