// Run, Pause, Resume, Stop; how far the rounds are; and what went wrong.
const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const ICONS = {
  run: "M2 1 11 6 2 11Z", pause: "M2 1h3v10H2ZM7 1h3v10H7Z",
  resume: "M1 1h2v10H1ZM5 1l7 5-7 5Z", stop: "M1 1h10v10H1Z",
};
const TONES = { finished: "fjs-good", failed: "fjs-bad", stopped: "fjs-warn", paused: "fjs-warn" };

const clock = (seconds) => {
  const whole = Math.floor(seconds), pad = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(whole / 3600), minutes = Math.floor((whole % 3600) / 60);
  return (hours ? `${hours}:${pad(minutes)}` : String(minutes)) + `:${pad(whole % 60)}`;
};

function render({ model, el }) {
  const buttons = {};
  const row = make("div", { class: "fjs-row", role: "group", "aria-label": "Run control" });
  for (const name of ["run", "pause", "resume", "stop"]) {
    const button = make("button", { type: "button", "data-action": name });
    button.innerHTML = `<svg viewBox="0 0 12 12" aria-hidden="true"><path d="${ICONS[name]}"/></svg>`;
    button.append(name[0].toUpperCase() + name.slice(1));
    if (name === "run") button.classList.add("fjs-primary");
    button.addEventListener("click", () => model.send({ press: name }));
    buttons[name] = button;
    row.append(button);
  }
  const badge = make("span", { class: "fjs-badge" });
  const fill = make("div", { class: "fjs-fill" });
  const track = make("div", { class: "fjs-track", role: "progressbar", "aria-label": "Rounds finished",
    "aria-valuemin": "0" }, fill);
  const rounds = make("span", { class: "fjs-figure" });
  const time = make("span", { class: "fjs-figure fjs-soft" });
  row.append(track, rounds, time, badge);
  const message = make("p", { class: "fjs-soft", role: "status", style: "margin-top: 9px" });
  const alert = make("div", { class: "fjs-alert", role: "alert" });
  el.append(make("div", { class: "fjs fjs-controls" }, row, message, alert));

  let since = performance.now(), elapsed = -1;
  const tick = () => {
    const extra = model.get("ticking") ? (performance.now() - since) / 1000 : 0;
    time.textContent = clock(model.get("elapsed_seconds") + extra);
  };
  const show = () => {
    const done = model.get("round"), total = model.get("rounds"), state = model.get("state");
    const enabled = model.get("enabled");
    if (model.get("elapsed_seconds") !== elapsed) {
      elapsed = model.get("elapsed_seconds");
      since = performance.now();
    }
    for (const [name, button] of Object.entries(buttons)) button.disabled = !enabled.includes(name);
    badge.textContent = state;
    badge.className = `fjs-badge ${TONES[state] || "fjs-plain"}`;
    badge.dataset.state = state;
    fill.style.width = total ? `${(100 * done) / total}%` : "0";
    track.setAttribute("aria-valuemax", String(total));
    track.setAttribute("aria-valuenow", String(done));
    track.setAttribute("aria-valuetext", `round ${done} of ${total}`);
    rounds.textContent = `round ${done} of ${total}`;
    message.textContent = model.get("message");
    alert.textContent = model.get("error");
    alert.hidden = !model.get("error");
    tick();
  };
  const names = ["state", "round", "rounds", "enabled", "elapsed_seconds", "ticking", "message", "error"];
  for (const name of names) model.on(`change:${name}`, show);
  show();
  const interval = setInterval(tick, 500);
  return () => {
    clearInterval(interval);
    for (const name of names) model.off(`change:${name}`, show);
  };
}
export default { render };
