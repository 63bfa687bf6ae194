"use strict";
(() => {
  document.documentElement.classList.add("js");
  const $ = (id) => document.getElementById(id);
  const form = $("form"), stage = $("stage"), canvas = $("canvas"), result = $("result"), strip = $("strip");
  const pen = canvas.getContext("2d");
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const CELLS = 12;
  const MAX_ATTEMPTS = 30;

  // ---- reading the animation while it arrives ---------------------------

  const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
  const crcTable = Array.from({ length: 256 }, (_, n) => {
    for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
    return n >>> 0;
  });
  function crc(bytes) {
    let c = 0xffffffff;
    for (const b of bytes) c = crcTable[(c ^ b) & 255] ^ (c >>> 8);
    return (c ^ 0xffffffff) >>> 0;
  }
  function chunk(type, data) {
    const out = new Uint8Array(12 + data.length);
    const view = new DataView(out.buffer);
    view.setUint32(0, data.length);
    for (let i = 0; i < 4; i++) out[4 + i] = type.charCodeAt(i);
    out.set(data, 8);
    view.setUint32(8 + data.length, crc(out.subarray(4, 8 + data.length)));
    return out;
  }

  // An animated PNG is a row of chunks. Each frame's data, given the header of
  // the whole, is a picture by itself.
  class FrameReader {
    constructor(onHeader, onFrame) {
      this.rest = new Uint8Array(0);
      this.onHeader = onHeader;
      this.onFrame = onFrame;
      this.started = false;
      this.complete = false;
      this.frames = 0;
    }
    push(bytes) {
      const all = new Uint8Array(this.rest.length + bytes.length);
      all.set(this.rest);
      all.set(bytes, this.rest.length);
      let at = 0;
      if (!this.started && all.length >= 8) {
        if (SIGNATURE.some((b, i) => all[i] !== b)) throw new Error("The answer is not an animation.");
        this.started = true;
        at = 8;
      }
      const view = new DataView(all.buffer);
      while (this.started && all.length - at >= 12) {
        const size = view.getUint32(at);
        if (all.length - at < 12 + size) break;
        const type = String.fromCharCode(...all.subarray(at + 4, at + 8));
        this.take(type, all.subarray(at + 8, at + 8 + size));
        at += 12 + size;
      }
      this.rest = all.slice(at);
    }
    take(type, data) {
      switch (type) {
        case "IHDR":
          this.header = data.slice();
          break;
        case "acTL": {
          const head = new DataView(this.header.buffer);
          const total = new DataView(data.buffer, data.byteOffset).getUint32(0);
          this.onHeader(head.getUint32(0), head.getUint32(4), total);
          break;
        }
        case "IDAT":
          this.emit(data);
          break;
        case "fdAT":
          this.emit(data.subarray(4));
          break;
        case "IEND":
          this.complete = true;
      }
    }
    emit(data) {
      const png = new Blob(
        [new Uint8Array(SIGNATURE), chunk("IHDR", this.header), chunk("IDAT", data), chunk("IEND", new Uint8Array(0))],
        { type: "image/png" });
      this.onFrame(png, this.frames++);
    }
  }

  // ---- showing it -------------------------------------------------------

  let objectURL = null;

  function say(text, bad = false) {
    $("status").textContent = text;
    $("status").parentElement.classList.toggle("bad", bad);
  }

  function reset() {
    if (objectURL) URL.revokeObjectURL(objectURL);
    objectURL = null;
    result.hidden = true;
    result.removeAttribute("src");
    canvas.style.visibility = "";
    $("pause").hidden = $("download").hidden = true;
    $("count").textContent = "";
    $("progress").value = 0;
    for (const id of ["seed", "model", "first", "all", "size"]) $("take-" + id).textContent = "–";
    for (const part of ["region", "cluster", "version", "commit", "digest"]) $("worker-" + part).textContent = "–";
    for (const error of form.querySelectorAll(".error")) error.textContent = "";
    for (const field of form.elements) field.removeAttribute("aria-invalid");
  }

  function identify(headers) {
    for (const part of ["region", "cluster", "version", "commit", "digest"]) {
      const value = headers.get("X-Omnivision-" + part) || "–";
      $("worker-" + part).textContent = $("worker-" + part).title = value;
      const own = headers.get("X-Omnivision-Ui-" + part);
      if (own) $("ui-" + part).textContent = $("ui-" + part).title = own;
    }
    $("take-seed").textContent = headers.get("X-Omnivision-Seed") || "–";
    $("take-model").textContent = headers.get("X-Omnivision-Model") || "–";
  }

  const probe = document.createElement("canvas");
  probe.width = probe.height = 1;
  const probePen = probe.getContext("2d", { willReadFrequently: true });

  function draw(bitmap, index, total) {
    pen.drawImage(bitmap, 0, 0);
    probePen.drawImage(bitmap, 0, 0, 1, 1);
    const [r, g, b] = probePen.getImageData(0, 0, 1, 1).data;
    stage.style.setProperty("--glow", `${r} ${g} ${b}`);
    const cells = strip.children.length;
    for (let k = 0; k < cells; k++) {
      if (Math.floor((k * total) / cells) !== index) continue;
      const cell = strip.children[k];
      cell.width = cell.height = 96;
      const side = Math.min(bitmap.width, bitmap.height);
      cell.getContext("2d").drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, 96, 96);
      cell.classList.add("filled");
    }
    $("progress").value = index + 1;
    $("count").textContent = `${index + 1} / ${total}`;
  }

  function layStrip(total) {
    strip.replaceChildren(...Array.from({ length: Math.min(CELLS, total) }, () => document.createElement("canvas")));
  }

  function play(on) {
    result.hidden = !on;
    canvas.style.visibility = on ? "hidden" : "";
    $("pause").textContent = on ? "Pause" : "Play";
  }

  const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

  async function receive(response, prompt, started) {
    identify(response.headers);
    stage.dataset.state = "busy";
    const parts = [];
    let total = Number(response.headers.get("X-Omnivision-Frames")) || 0;
    let bytes = 0;
    let drawn = Promise.resolve();
    const reader = new FrameReader(
      (width, height, frames) => {
        total = frames;
        canvas.width = width;
        canvas.height = height;
        stage.parentElement.style.setProperty("--ratio", width / height);
        $("progress").max = frames;
        layStrip(frames);
        say("Generating");
      },
      (png, index) => {
        if (index === 0) $("take-first").textContent = seconds(performance.now() - started);
        drawn = drawn.then(async () => {
          const bitmap = await createImageBitmap(png);
          draw(bitmap, index, total);
          bitmap.close();
        });
        drawn.catch(() => {}); // awaited below
      });
    const stream = response.body.getReader();
    let broken = null;
    try {
      for (;;) {
        const { done, value } = await stream.read();
        if (done) break;
        parts.push(value);
        bytes += value.length;
        reader.push(value);
      }
    } catch (err) {
      if (err.name === "AbortError") throw err;
      broken = err;
    }
    await drawn;
    if (broken || !reader.complete) {
      throw new Error(`The stream broke off after ${reader.frames} of ${total || "all"} frames. Generate again.`);
    }
    finish(new Blob(parts, { type: "image/apng" }), prompt, performance.now() - started, bytes, reader.frames);
  }

  async function finish(blob, prompt, took, bytes, frames) {
    objectURL = URL.createObjectURL(blob);
    result.src = objectURL;
    result.alt = `Animation generated for: ${prompt}`;
    await result.decode().catch(() => {});
    $("take-all").textContent = seconds(took);
    $("take-size").textContent = `${(bytes / 1e6).toFixed(1)} MB`;
    const link = $("download");
    link.href = objectURL;
    link.download = `omnivision-${$("take-seed").textContent}.png`;
    link.hidden = $("pause").hidden = false;
    play(!calm.matches); // who asked for less motion starts it by hand
    stage.dataset.state = "done";
    say(`Done, ${frames} frames`);
    $("count").textContent = "";
  }

  // ---- asking for it ----------------------------------------------------

  let running = null;

  function order() {
    const value = { prompt: form.elements.prompt.value, size: form.elements.size.value };
    for (const name of ["frames", "fps", "seed"]) {
      const text = form.elements[name].value.trim();
      if (text !== "") value[name] = Number(text);
    }
    return value;
  }

  function refuse(problem) {
    let first = null;
    for (const { field, detail } of problem.errors || []) {
      const input = form.elements[field === "width" || field === "height" ? "size" : field];
      const slot = input && $(input.id + "-error");
      if (!slot) continue;
      slot.textContent = `${input.labels[0].textContent} ${detail}`;
      input.setAttribute("aria-invalid", "true");
      first = first || input;
    }
    if (first) first.focus();
    say(first ? "Please correct the form" : `${problem.title}. ${problem.detail || ""}`, true);
  }

  // pause before asking again, counting down where the user can see it.
  function countdown(title, wait, signal) {
    return new Promise((resolve, reject) => {
      const end = performance.now() + wait * 1000;
      const stop = () => { clearInterval(timer); reject(new DOMException("cancelled", "AbortError")); };
      const tick = () => {
        const left = Math.ceil((end - performance.now()) / 1000);
        if (left > 0) return say(`${title}. Trying again in ${left} s`);
        clearInterval(timer);
        signal.removeEventListener("abort", stop);
        resolve();
      };
      const timer = setInterval(tick, 250);
      signal.addEventListener("abort", stop, { once: true });
      tick();
    });
  }

  async function generate(signal) {
    const wish = order();
    for (let attempt = 1; ; attempt++) {
      say("Waiting for a GPU");
      const started = performance.now();
      const response = await fetch(form.action, {
        method: "POST", signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify(wish),
      });
      if (response.ok) return receive(response, wish.prompt, started);
      const problem = await response.json().catch(() => ({ title: `The server answered ${response.status}` }));
      const wait = Number(response.headers.get("Retry-After"));
      if (!(wait > 0) || attempt >= MAX_ATTEMPTS) return refuse(problem);
      await countdown(problem.title, wait, signal);
    }
  }

  function busy(on) {
    $("generate").setAttribute("aria-disabled", String(on));
    $("generate").textContent = on ? "Generating…" : "Generate";
    $("cancel").hidden = !on;
    stage.setAttribute("aria-busy", String(on));
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    running = new AbortController();
    reset();
    busy(true);
    try {
      await generate(running.signal);
    } catch (err) {
      if (err.name === "AbortError") say("Cancelled");
      else say(err instanceof TypeError ? "The server cannot be reached. Check the connection and generate again." : err.message, true);
    } finally {
      if (stage.dataset.state === "busy") stage.dataset.state = "cut";
      running = null;
      busy(false);
    }
  });
  $("cancel").addEventListener("click", () => running && running.abort());
  $("pause").addEventListener("click", () => play(result.hidden));
  for (const button of document.querySelectorAll("[data-prompt]")) {
    button.addEventListener("click", () => {
      form.elements.prompt.value = button.dataset.prompt;
      form.elements.prompt.focus();
    });
  }
  form.elements.prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  layStrip(CELLS);
})();
