// The path from the digit to another one.

import { fromText, paint, toText } from "./pixels.js";
import { choose } from "./choice.js";
import { ask, latest } from "./service.js";

const SHOWN = 11;
const FRAME_MS = 90;
const element = (id) => document.getElementById(id);

export class Walk {
  constructor(size, failed) {
    Object.assign(this, { size, digit: null, end: null, rows: [], timer: null });
    this.call = latest(async (model, start, end, method) => {
      const answer = await ask("interpolate", { model, start: toText(start), end: toText(end), method });
      this.rows = answer.rows.map(fromText);
      this.show();
    }, failed);
    this.strip = Array.from({ length: SHOWN }, () => document.createElement("canvas"));
    element("strip").replaceChildren(...this.strip);
    for (const id of ["walk-model", "method"]) element(id).addEventListener("change", () => this.run());
    element("where").addEventListener("input", () => this.show());
    element("play").addEventListener("click", () => this.#play(this.timer === null));
  }

  setModels(models) {
    choose(element("walk-model"), models, "mnist-deep");
    this.run();
  }

  setDigit(row) {
    this.digit = row;
    this.run();
  }

  setEnd(row) {
    this.end = row;
    this.run();
  }

  run() {
    const model = element("walk-model").value;
    if (model && this.digit !== null && this.end !== null) this.call(model, this.digit, this.end, element("method").value);
  }

  show() {
    if (this.rows.length === 0) return;
    const last = this.rows.length - 1;
    const where = Number(element("where").value);
    element("where").max = last;
    element("where-text").textContent = `${Math.round((100 * where) / last)} %`;
    paint(element("frame"), this.rows[where], this.size);
    this.strip.forEach((canvas, number) => {
      const at = Math.round((number * last) / (SHOWN - 1));
      paint(canvas, this.rows[at], this.size);
      canvas.classList.toggle("here", Math.abs(at - where) <= 0.5);
    });
  }

  // There and back again.
  #play(on) {
    clearInterval(this.timer);
    element("play").ariaPressed = String(on);
    this.timer = null;
    if (!on) return;
    let step = 1;
    this.timer = setInterval(() => {
      const slider = element("where");
      const where = Number(slider.value);
      if (where + step > Number(slider.max) || where + step < 0) step = -step;
      slider.value = where + step;
      this.show();
    }, FRAME_MS);
  }
}
