// The page: takes what the daemon tells once a second, shows it, and carries the operator's wishes back.

import { bytes, clock, duration, el, figure, inWords, keyed, mark, meter, micros, moment, percent, plot, plural, rows } from "/dashboard/draw.js";
import { Live, ask, keepToken, token } from "/dashboard/live.js";

const at = (id) => document.getElementById(id);
const now = {}; // the newest of every part
let access = { tokens: false, may_operate: true, scopes: [] };
let seen = null;

const LIVE_STATES = new Set(["queued", "running"]);
const STAGE_KINDS = { done: "ok", running: "warn", failed: "bad", cancelled: "bad" };
const STAGE_SIGNS = { done: "✓", running: "▸", failed: "✕", cancelled: "✕", skipped: "–" };
const JOB_KINDS = { succeeded: "ok", running: "warn", queued: "", failed: "bad", cancelled: "" };
const CHECK_KINDS = { pass: "ok", warn: "warn", fail: "bad" };
const TARGETS = { local: "here", vertex: "Vertex AI", queued_resource: "queued resource", process: "own process" };

function text(id, value) {
  const node = at(id);
  if (node.textContent !== value) node.textContent = value;
}

function tag(value, kind = "") {
  return el("span", { class: `tag ${kind}`, text: value });
}

// --- what is shown ---------------------------------------------------------------------------------------------

function showAbout({ version, host }) {
  text("about", `${version} on ${host}`);
}

function showState({ word, reason, level }) {
  at("state").dataset.level = level;
  at("state-mark").replaceChildren(mark(level));
  text("state-word", word);
  text("state-reason", reason);
  document.title = `${word} · ${now.about?.host ?? "continuon-brain"}`;
}

function showInference(part) {
  const { p50, p99, count } = part.total_us;
  const limit = 1000 * part.deadline_ms;
  const none = count === 0;
  at("latency-figures").replaceChildren(
    figure(none ? "–" : micros(p50), "p50"),
    figure(none ? "–" : micros(p99), "p99"),
    figure(part.deadline_ms < 1000 ? `${part.deadline_ms} ms` : duration(part.deadline_ms / 1000), "deadline"),
  );
  const bar = at("latency-bar");
  const late = p99 >= limit ? "bad" : p99 >= 0.5 * limit ? "warn" : "";
  bar.replaceChildren();
  if (!none) {
    bar.append(el("i", { class: `far ${late}`, width: `${Math.min(100, (100 * p99) / limit)}%` }));
    bar.append(el("i", { class: late === "bad" ? "bad" : "", width: `${Math.min(100, (100 * p50) / limit)}%` }));
  }
  bar.setAttribute("aria-label", none ? "No action was answered yet" : `p99 takes ${percent(p99 / limit, 1)} of the deadline`);
  text("latency-note", none ? "No action was answered since the start." : `p99 takes ${percent(p99 / limit, 1)} of the deadline, over the last ${Math.min(count, 1024)} answers.`);
  at("latency-more").replaceChildren(
    ...rows([
      ["answers", count.toLocaleString("en")],
      ["model alone, p99", none ? "–" : micros(part.compute_us.p99)],
      ["deadline misses", String(part.deadline_misses), part.deadline_misses ? "warn" : null],
      part.nonfinite_answers ? ["answers that were no numbers", String(part.nonfinite_answers), "warn"] : null,
      part.worker_restarts ? ["worker restarts", String(part.worker_restarts), "warn"] : null,
    ]),
  );
  showModel(part);
}

function showModel(part) {
  text("model-name", part.active_model ?? { loading: "loading …", failed: "no model serves" }[part.state] ?? "no model yet");
  const notes = [];
  if (part.error) notes.push(part.error);
  if (part.safe_mode) notes.push(`Safe mode: ${part.safe_mode}`);
  if (part.backend) notes.push(`on ${part.backend}${part.standby ? `, ${part.standby} stands by` : ""}`);
  const trial = part.probation;
  if (trial && trial.model_id === part.active_model && !trial.outcome) notes.push(`on probation: ${trial.steps} steps in ${duration(trial.seconds)}`);
  if (part.canary) notes.push(`canary ${part.canary}`);
  notes.push(...part.warnings);
  text("model-note", notes.join("; "));
  keyed(
    at("model-why"),
    part.why,
    (why) => why.backend,
    () => el("li", {}, tag(""), el("p")),
    (node, why) => {
      node.firstChild.className = `tag ${why.used ? "ok" : ""}`;
      node.firstChild.textContent = `${why.backend}${why.used ? ", in use" : ""}`;
      node.lastChild.textContent = why.reason ?? "";
    },
  );
  text("rollback-note", part.previous_model ? `to ${part.previous_model}` : "There is no model before this one.");
  allow(at("rollback"), part.previous_model ? "" : "there is no model before this one");
}

function showSessions(part) {
  text("sessions-note", part.count ? `${part.count} of at most ${part.max}` : `No robot has a session; at most ${part.max} may.`);
  keyed(
    at("sessions"),
    part.latest,
    (session) => session.session_id,
    () => el("li", {}, tag(""), el("p", { class: "mono" }), el("p", { class: "quiet" })),
    (node, session) => {
      const acting = session.idle_s < 3;
      node.children[0].className = `tag ${acting ? "ok" : ""}`;
      node.children[0].textContent = acting ? "acting" : "waits";
      node.children[1].textContent = session.session_id;
      node.children[2].textContent = `step ${session.next_step} on ${session.model_id}, asked ${session.idle_s < 1 ? "just now" : `${duration(session.idle_s)} ago`}`;
    },
  );
}

function showCapture(part) {
  const known = part.free_bytes !== null && part.total_bytes;
  const full = part.free_bytes === null || part.free_bytes < part.min_free_bytes;
  const near = known && part.free_bytes < 4 * part.min_free_bytes;
  at("capture-figures").replaceChildren(
    figure(String(part.open_episodes), part.open_episodes === 1 ? "open episode" : "open episodes"),
    figure(duration(part.unsynced_s), "durable lag"),
    figure(`${(part.bytes_per_day / 1e6).toFixed(part.bytes_per_day < 1e8 ? 1 : 0)}`, "MB/day"),
  );
  const used = known ? 1 - part.free_bytes / part.total_bytes : null;
  at("capture-disk").replaceChildren(...meter("disk", known ? `${bytes(part.free_bytes)} free of ${bytes(part.total_bytes)}` : "cannot be looked at", used, full ? "bad" : near ? "warn" : "").children);
  at("capture-more").replaceChildren(
    ...rows([
      ["episodes", part.episodes.toLocaleString("en")],
      ["in no dataset yet", part.unconverted.toLocaleString("en")],
      ["written today", bytes(part.bytes_today)],
      ["kept in reserve", bytes(part.min_free_bytes)],
      part.damaged ? ["damaged", String(part.damaged), "warn"] : null,
      part.last_error ? ["fails", part.last_error, "warn"] : null,
    ]),
  );
}

function showLearning(part) {
  const curve = part.curve;
  const pause = at("pause");
  pause.textContent = part.paused ? "Resume learning" : "Pause learning";
  allow(pause, "");
  allow(at("train"), "");
  const notes = part.paused ? [`Learning is paused since ${moment(part.since_ns)}: ${part.reason}.`] : [];
  if (curve === null) {
    at("learning-figures").replaceChildren();
    at("learning-plot").replaceChildren();
    at("learning-table").hidden = true;
    text("learning-note", [...notes, "Nothing was trained yet. Record some episodes, then start a training."].join(" "));
    return;
  }
  const running = curve.state === "running";
  at("learning-figures").replaceChildren(
    figure(curve.loss === null || curve.loss === undefined ? "–" : String(Number(curve.loss.toPrecision(4))), "loss"),
    figure(curve.step === null ? "–" : `${curve.step} / ${curve.steps ?? "?"}`, "step"),
    figure(curve.steps_per_s === null ? "–" : String(Number(curve.steps_per_s.toPrecision(3))), "steps/s"),
    figure(!running ? { succeeded: "done", queued: "waits" }[curve.state] ?? curve.state : curve.paused ? "rests" : curve.eta_s === null ? "–" : duration(curve.eta_s), running ? "left" : "state"),
  );
  if (curve.paused && !part.paused) notes.push(`Rests: ${curve.paused}.`);
  notes.push(`${curve.kind} ${curve.job_id}, ${curve.state}. ${inWords(curve)}`);
  if (curve.held_out.length) notes.push("Solid: training loss. Dashed: held-out loss.");
  text("learning-note", notes.join(" "));
  plot(at("learning-plot"), curve);
  tableOf(curve);
}

function tableOf(curve) {
  at("learning-table").hidden = curve.points.length === 0;
  const every = Math.max(1, Math.ceil(curve.points.length / 12));
  const held = new Map(curve.held_out);
  const chosen = curve.points.filter((point, place) => place % every === 0 || place === curve.points.length - 1);
  at("learning-table").querySelector("tbody").replaceChildren(
    ...chosen.map(([step, loss]) => el("tr", {}, el("td", { text: step }), el("td", { text: loss }), el("td", { text: held.get(step) ?? "" }))),
  );
}

function showJobs(part) {
  at("jobs-none").hidden = part.list.length > 0 || Boolean(part.problem);
  if (part.problem) text("jobs-problem", part.problem);
  keyed(at("jobs"), part.list, (job) => job.job_id, makeJob, updateJob);
}

function makeJob(job) {
  const cancel = el("button", { type: "button", class: "plain", "data-act": true, text: "Cancel", "aria-label": `Cancel ${job.kind} ${job.job_id}` });
  const problem = el("p", { class: "problem", role: "alert" });
  cancel.addEventListener("click", () =>
    confirm(cancel, {
      title: `Cancel this ${job.kind}?`,
      words: `Job ${job.job_id} stops within seconds. What it had finished stays.`,
      yes: "Cancel the job",
      act: () => ask("DELETE", `/jobs/${job.job_id}`),
      problem,
    }),
  );
  return el(
    "li",
    {},
    el("p", { class: "job-head" }, el("b", { text: job.kind }), tag(""), tag(""), el("span", { class: "quiet" })),
    el("div"),
    el("div", { class: "stages" }),
    el("p", { class: "quiet" }),
    el("p", { class: "problem" }),
    el("div", { class: "act tight" }, cancel, problem),
  );
}

function updateJob(node, job) {
  const [head, bar, stages, details, error, act] = node.children;
  const live = LIVE_STATES.has(job.state);
  head.children[1].className = `tag ${JOB_KINDS[job.state] ?? ""}`;
  head.children[1].textContent = job.cancel_requested ? "stopping" : job.state;
  head.children[2].textContent = TARGETS[job.target] ?? job.target;
  const began = job.started_ns ?? job.created_ns;
  const took = job.finished_ns && job.started_ns ? `, took ${duration((job.finished_ns - job.started_ns) / 1e9)}` : "";
  head.children[3].textContent = `${job.started_ns ? "began" : "asked for"} ${moment(began)}${took}`;
  if (job.state === "running") {
    const rests = now.learning?.paused && job.target === "local";
    const left = job.eta_s === null || rests ? "" : `, about ${duration(job.eta_s)} left`;
    bar.className = "meter";
    bar.replaceChildren(...meter("progress", `${percent(job.progress)}${left}`, job.progress).children);
  } else bar.replaceChildren();
  stages.replaceChildren(
    ...job.stages.map((stage) =>
      el(
        "span",
        { class: `tag ${STAGE_KINDS[stage.status] ?? "wait"}` },
        STAGE_SIGNS[stage.status] ? el("span", { "aria-hidden": "true", text: STAGE_SIGNS[stage.status] }) : null,
        el("span", { text: stage.name }),
        el("span", { class: "hidden", text: stage.status }),
      ),
    ),
  );
  const telling = [...job.stages].reverse().find((stage) => stage.details && stage.status !== "failed");
  details.textContent = telling && job.state !== "failed" ? `${telling.name}: ${telling.details}` : "";
  error.textContent = job.error ?? "";
  act.hidden = !live;
  allow(act.firstChild, job.cancel_requested ? "it is stopping already" : "");
}

function showModels(list) {
  at("models-none").hidden = list.length > 0;
  at("models").hidden = list.length === 0;
  keyed(
    at("models").tBodies[0],
    list,
    (model) => model.model_id,
    (model) => {
      const serve = el("button", { type: "button", "data-act": true, text: "Serve", "aria-label": `Serve model ${model.model_id}` });
      serve.addEventListener("click", () =>
        confirm(serve, {
          title: `Serve model ${model.model_id}?`,
          words: "It is loaded, checked and tried beside the live sessions first. Sessions that run finish on their model.",
          yes: "Serve it",
          act: () => ask("POST", `/models/${model.model_id}/activate`),
          problem: at("models-problem"),
        }),
      );
      return el("tr", {}, el("td", {}, el("span", { class: "mono", text: model.model_id }), document.createTextNode(" "), tag("")), ...["made", "action error", "mean action", "skill"].map((name) => el("td", { "data-name": name })), el("td", {}, tag(""), el("p", { class: "quiet" })), el("td", {}, serve));
    },
    (row, model) => {
      const cells = row.cells;
      const role = cells[0].lastChild;
      role.textContent = { active: "serves", previous: "before" }[model.role] ?? "";
      role.className = `tag ${model.role === "active" ? "ok" : ""}`;
      role.hidden = !model.role;
      const found = model.evaluation ?? {};
      cells[1].textContent = model.created_ns ? moment(model.created_ns) : "–";
      cells[2].textContent = percent(found.relative_rmse, 1);
      cells[3].textContent = percent(found.baseline_relative_rmse, 1);
      cells[4].textContent = Number.isFinite(found.skill) ? found.skill.toFixed(2) : "–";
      const [word, kind, why] = verdict(model);
      cells[5].firstChild.textContent = word;
      cells[5].firstChild.className = `tag ${kind}`;
      cells[5].lastChild.textContent = why;
      cells[6].firstChild.hidden = model.role === "active" || Boolean(model.error);
      allow(cells[6].firstChild, "");
    },
  );
}

function verdict(model) {
  if (model.error) return ["damaged", "bad", model.error];
  if (model.rejected) return ["rejected", "bad", model.rejected];
  if (model.promotion) return [model.promotion.promoted ? "promoted" : "not promoted", model.promotion.promoted ? "ok" : "warn", model.promotion.reason ?? ""];
  if (!model.evaluation) return ["not evaluated", "", ""];
  return ["no rival", "", "there was no active model to compare it with"];
}

function showMachine(part) {
  const heat = part.temperature_c;
  const most = part.max_temperature_c;
  const memory = part.memory_used_bytes / part.memory_total_bytes;
  const list = [
    heat === null
      ? meter("heat", "no sensor", null)
      : meter("heat", `${heat.toFixed(0)} °C${most ? `, learning rests at ${most.toFixed(0)} °C` : ""}`, heat / 100, most && heat >= most ? "bad" : most && heat >= most - 5 ? "warn" : "", most ? most / 100 : null),
    meter("memory", `${bytes(part.memory_used_bytes)} of ${bytes(part.memory_total_bytes)}`, memory, memory > 0.9 ? "bad" : memory > 0.75 ? "warn" : ""),
    meter("processor", `${part.cpu_percent.toFixed(0)} % of ${plural(part.cpus, "core")}`, part.cpu_percent / 100),
  ];
  const weak = part.under_voltage;
  const supply = el("div", { class: "cap" }, el("span", { text: "voltage" }), weak === null ? el("span", { text: "no sensor" }) : tag(weak ? "too weak" : "strong enough", weak ? "bad" : "ok"));
  list.push(el("div", { class: "meter" }, supply));
  if (part.battery_share !== null) {
    const least = part.min_battery_share;
    const low = least !== null && part.battery_share < least && !part.mains;
    list.push(meter("battery", `${percent(part.battery_share)}${part.mains ? ", charging" : ""}`, part.battery_share, low ? "warn" : "", least));
  }
  at("machine").replaceChildren(...list);
}

function showHealth(checks) {
  const order = { fail: 0, warn: 1, pass: 2 };
  const list = Object.entries(checks).sort((one, other) => order[one[1].status] - order[other[1].status]);
  keyed(
    at("health"),
    list,
    ([name]) => name,
    () => el("li", {}, tag(""), el("p"), el("p", { class: "quiet" })),
    (node, [name, check]) => {
      node.children[0].className = `tag ${CHECK_KINDS[check.status]}`;
      node.children[0].textContent = check.status;
      node.children[1].textContent = `${name}${valueOf(check)}`;
      node.children[2].textContent = check.output;
    },
  );
}

function valueOf(check) {
  const value = check.observed_value;
  if (value === null || value === undefined || value === "") return "";
  if (check.observed_unit === "bytes") return `: ${bytes(value)}`;
  if (check.observed_unit === "us") return `: ${micros(value)}`;
  return `: ${typeof value === "number" ? Number(value.toPrecision(5)) : value} ${check.observed_unit}`;
}

function showEvents(events) {
  const kinds = { info: "", warning: "warn", error: "bad" };
  keyed(
    at("events"),
    events,
    (event) => event.seq,
    (event) =>
      el(
        "li",
        {},
        el("time", { text: moment(event.t_ns), datetime: new Date(event.t_ns / 1e6).toISOString() }),
        tag(event.kind, kinds[event.level]),
        el("span", { text: `${event.text}${event.times > 1 ? ` (${event.times} times)` : ""}` }),
      ),
    () => {},
  );
}

const SHOW = {
  about: showAbout,
  state: showState,
  inference: showInference,
  sessions: showSessions,
  capture: showCapture,
  learning: showLearning,
  jobs: showJobs,
  models: showModels,
  machine: showMachine,
  health: showHealth,
  events: showEvents,
};

// --- what the operator may do ----------------------------------------------------------------------------------

/** Let a button act, or say why not; one that must not stays reachable, so that its reason can be read. */
function allow(button, obstacle) {
  const reason = access.may_operate ? obstacle : "this token may look and not act: that needs scope operate";
  if (reason) button.setAttribute("aria-disabled", "true");
  else button.removeAttribute("aria-disabled");
  button.title = reason;
}

function barred(button, problem) {
  if (button.getAttribute("aria-disabled") !== "true") return false;
  problem.textContent = button.title;
  return true;
}

/** Carry out a wish of a button; what goes wrong stands beside it. */
async function attempt(button, problem, act) {
  if (button.getAttribute("aria-busy") === "true") return false;
  button.setAttribute("aria-busy", "true");
  problem.textContent = "";
  try {
    await act();
    return true;
  } catch (error) {
    problem.textContent = error.message;
    return false;
  } finally {
    button.removeAttribute("aria-busy");
  }
}

let wish = null;

function confirm(button, { title, words, yes, act, problem }) {
  if (barred(button, problem)) return;
  problem.textContent = "";
  text("ask-title", title);
  text("ask-text", words);
  text("ask-yes", yes);
  text("ask-problem", "");
  wish = act;
  at("ask").showModal();
}

at("ask-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (wish && (await attempt(at("ask-yes"), at("ask-problem"), wish))) at("ask").close();
});

for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());

at("rollback").addEventListener("click", () =>
  confirm(at("rollback"), {
    title: "Roll back?",
    words: `Model ${now.inference?.previous_model} serves again instead of ${now.inference?.active_model}. Sessions that run finish on their model, or move as the settings say.`,
    yes: "Roll back",
    act: () => ask("POST", "/models/rollback"),
    problem: at("rollback-problem"),
  }),
);

at("pause").addEventListener("click", () => {
  const button = at("pause");
  const problem = at("learning-problem");
  if (barred(button, problem)) return;
  const paused = now.learning?.paused;
  attempt(button, problem, async () => {
    const held = await ask("POST", paused ? "/jobs/resume" : "/jobs/pause", paused ? undefined : { reason: "paused on the page" });
    take("changes", { learning: { ...now.learning, ...held } });
  });
});

let key = "";

at("train").addEventListener("click", () => {
  if (barred(at("train"), at("learning-problem"))) return;
  text("learning-problem", "");
  text("training-problem", "");
  // One key a dialog: pressing twice, or again after a lost answer, starts one training.
  key = [...crypto.getRandomValues(new Uint8Array(16))].map((part) => part.toString(16).padStart(2, "0")).join("");
  at("training").showModal();
});

at("training-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = { preset: at("training-preset").value };
  if (at("training-target").value !== "local") body.target = at("training-target").value;
  if (at("training-steps").value) body.steps = Number(at("training-steps").value);
  const button = event.submitter ?? event.target.querySelector("[type=submit]");
  const path = `/${at("training-kind").value}`;
  if (await attempt(button, at("training-problem"), () => ask("POST", path, body, key))) at("training").close();
});

// --- the line to the daemon ------------------------------------------------------------------------------------

function take(name, data) {
  if (name === "access") {
    access = data;
    at("token-open").hidden = !data.tokens;
    at("readonly").hidden = data.may_operate;
    text("readonly", `This token may look and not act (scopes: ${data.scopes.join(", ")}). Acting needs one with scope operate.`);
    return;
  }
  seen = new Date();
  for (const part of Object.keys(data)) now[part] = data[part];
  for (const part of Object.keys(SHOW)) if (part in data) SHOW[part](now[part]);
}

function told(state, why) {
  const link = at("link");
  link.dataset.link = state;
  document.body.classList.toggle("stale", state !== "live");
  if (state === "live") {
    text("link-text", `live ${clock(new Date())}`);
    at("lost").hidden = true;
    if (at("token").open) at("token").close();
  } else if (state === "refused") {
    text("link-text", "token needed");
    at("lost").hidden = true;
    text("token-problem", token() ? why : "");
    at("token-open").hidden = false;
    if (!at("token").open) at("token").showModal();
  } else {
    const last = seen ? `last seen ${clock(seen)}` : "never seen since this page was opened";
    text("link-text", "lost");
    text("lost", `Connection lost, ${last}${why ? ` (${why})` : ""}. Trying again.`);
    at("lost").hidden = false;
    text("state-word", "Unknown");
    text("state-reason", `connection lost, ${last}; what is below is old`);
    at("state").dataset.level = "bad";
    at("state-mark").replaceChildren(mark("bad"));
    document.title = "Connection lost";
  }
}

const live = new Live(take, told);

at("token-open").addEventListener("click", () => {
  text("token-problem", "");
  at("token").showModal();
});
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(at("token-value").value.trim());
  at("token-value").value = "";
  at("token").close();
  live.stop();
  live.start();
});
at("token-forget").addEventListener("click", () => {
  keepToken("");
  location.reload();
});

new ResizeObserver(() => {
  if (now.learning?.curve) plot(at("learning-plot"), now.learning.curve);
}).observe(at("learning-plot"));

at("token-open").hidden = true;
live.start();
