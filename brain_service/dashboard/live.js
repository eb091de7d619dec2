// The way to the daemon: the live stream with its reconnects, requests with the token, and the token itself.

const TOKEN = "continuon-brain.token";
const SILENT_MS = 6000; // a frame comes each second
const FIRST_WAIT_MS = 500;
const LAST_WAIT_MS = 5000;
const HIDDEN_MS = 60000; // a page that nobody looks at costs the robot nothing

export function token() {
  return sessionStorage.getItem(TOKEN) ?? "";
}

export function keepToken(value) {
  if (value) sessionStorage.setItem(TOKEN, value);
  else sessionStorage.removeItem(TOKEN);
}

function headers(more = {}) {
  return token() ? { ...more, Authorization: `Bearer ${token()}` } : more;
}

async function problemOf(response) {
  try {
    const document = await response.json();
    return document.detail || document.title || `status ${response.status}`;
  } catch {
    return `the daemon answered with status ${response.status}`;
  }
}

/** Ask for a change; returns the answer's JSON, throws an Error with the daemon's own words. */
export async function ask(method, path, body, key) {
  let response;
  const options = { method, headers: headers({ Accept: "application/json" }), cache: "no-store" };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  if (key) options.headers["Idempotency-Key"] = key;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the daemon cannot be reached; it may have taken this all the same, look before you repeat it");
  }
  if (!response.ok) throw new Error(await problemOf(response));
  return response.status === 204 ? null : response.json();
}

/** Follow the status for ever. `heard(event, data)` gets each event, `told(state, text)` how the line is. */
export class Live {
  constructor(heard, told) {
    this.heard = heard;
    this.told = told;
    this.abort = null;
    this.wait = FIRST_WAIT_MS;
    this.timer = 0;
    this.hiding = 0;
    this.running = false;
    document.addEventListener("visibilitychange", () => this.look());
    addEventListener("online", () => this.again());
  }

  start() {
    this.running = true;
    this.again();
  }

  stop() {
    this.running = false;
    clearTimeout(this.timer);
    this.abort?.abort();
  }

  again() {
    if (!this.running || document.hidden) return;
    clearTimeout(this.timer);
    this.abort?.abort();
    this.run();
  }

  look() {
    clearTimeout(this.hiding);
    if (document.hidden) this.hiding = setTimeout(() => this.abort?.abort(), HIDDEN_MS);
    else if (this.abort === null) this.again();
  }

  async run() {
    const mine = new AbortController();
    this.abort = mine;
    let why = "";
    try {
      await this.read(mine);
    } catch (error) {
      why = error.refused ? error.message : "";
      if (error.refused === 401 || error.refused === 403) {
        this.abort = null;
        this.stop();
        this.told("refused", error.message);
        return;
      }
    }
    if (this.abort !== mine) return; // another attempt has taken over
    this.abort = null;
    if (!this.running || document.hidden) return;
    this.told("lost", why);
    this.timer = setTimeout(() => this.again(), this.wait);
    this.wait = Math.min(this.wait * 2, LAST_WAIT_MS);
  }

  async read(mine) {
    let watchdog = setTimeout(() => mine.abort(), SILENT_MS);
    try {
      const response = await fetch("/status/stream", { headers: headers(), cache: "no-store", signal: mine.signal });
      if (!response.ok) {
        const error = new Error(await problemOf(response));
        error.refused = response.status;
        throw error;
      }
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let held = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        clearTimeout(watchdog);
        watchdog = setTimeout(() => mine.abort(), SILENT_MS);
        held += value;
        const frames = held.split("\n\n");
        held = frames.pop();
        for (const frame of frames) this.take(frame);
      }
    } finally {
      clearTimeout(watchdog);
    }
  }

  take(frame) {
    let name = "message";
    let data = "";
    for (const line of frame.split("\n")) {
      if (line.startsWith("event: ")) name = line.slice(7);
      if (line.startsWith("data: ")) data += line.slice(6);
    }
    if (!data) return;
    this.wait = FIRST_WAIT_MS;
    this.told("live", "");
    this.heard(name, JSON.parse(data));
  }
}
