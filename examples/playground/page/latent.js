// The latent of the digit: on the map, as sliders, and decoded.

import { choose } from "./choice.js";
import { LatentMap } from "./map.js";
import { fromText, paint, toText } from "./pixels.js";
import { ask, latest } from "./service.js";

const SLIDERS = 12;
const element = (id) => document.getElementById(id);

export class Latent {
  constructor(digits, failed) {
    Object.assign(this, { digits, digit: null, models: [], map: null, mapped: null, latent: [] });
    this.view = new LatentMap(element("map"), (latent) => this.#set(latent));
    // The map first, where it is of another model; then the digit's own latent.
    this.load = latest(async (model, digit) => {
      if (this.mapped !== model) {
        this.map = await ask("map", { model: model.name });
        this.mapped = model;
        this.view.show(this.map, digits.labels);
        element("share").textContent = `they hold ${Math.round(100 * this.map.share)} % of the variance`;
        this.#buildSliders();
      }
      const { latent } = await ask("encode", { model: model.name, row: toText(digit) });
      this.#set(latent);
    }, failed);
    this.decode = latest(async (model, latent) => {
      const { row } = await ask("decode", { model: model.name, latent, shape: model.latent });
      paint(element("decoded"), fromText(row), digits);
    }, failed);
    element("latent-model").addEventListener("change", () => this.run());
    element("reset").addEventListener("click", () => this.run());
  }

  setModels(models) {
    this.models = models;
    this.mapped = null;
    choose(element("latent-model"), models, "mnist-undercomplete");
    this.run();
  }

  setDigit(row) {
    this.digit = row;
    this.run();
  }

  #model() {
    return this.models.find((model) => model.name === element("latent-model").value);
  }

  run() {
    const model = this.#model();
    if (model && this.digit !== null) this.load(model, this.digit);
  }

  #buildSliders() {
    this.sliders = this.map.spread.slice(0, SLIDERS).map((unit) => {
      const label = document.createElement("label");
      const text = document.createElement("output");
      const slider = document.createElement("input");
      const [low, high] = [this.map.low[unit], this.map.high[unit]];
      Object.assign(slider, { type: "range", min: low, max: high, step: (high - low) / 200 || 1 });
      slider.dataset.unit = unit;
      slider.addEventListener("input", () => {
        const latent = this.latent.slice();
        latent[unit] = Number(slider.value);
        this.#set(latent);
      });
      label.append(`unit ${unit}`, text, slider);
      return { unit, text, slider, label };
    });
    element("units").replaceChildren(...this.sliders.map(({ label }) => label));
  }

  #set(latent) {
    this.latent = latent;
    this.view.mark(latent);
    for (const { unit, text, slider } of this.sliders) {
      if (document.activeElement !== slider || Math.abs(Number(slider.value) - latent[unit]) > slider.step) slider.value = latent[unit];
      text.textContent = latent[unit].toFixed(2);
    }
    this.decode(this.mapped, latent);
  }
}
