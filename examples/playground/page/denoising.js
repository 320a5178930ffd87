// The digit with noise, and what each model makes of it.

import { noisy, paint, psnr, fromText, toText } from "./pixels.js";
import { ask, latest } from "./service.js";

const element = (id) => document.getElementById(id);

class Tile {
  constructor(parent, name, about, note) {
    const figure = document.createElement("figure");
    this.canvas = document.createElement("canvas");
    this.caption = document.createElement("figcaption");
    this.figures = document.createElement("small");
    const line = document.createElement("small");
    line.textContent = about;
    this.caption.append(name, line, this.figures);
    figure.title = note;
    figure.append(this.canvas, this.caption);
    figure.dataset.name = name;
    parent.append(figure);
    this.figure = figure;
  }

  show(row, size, text) {
    paint(this.canvas, row, size);
    this.figures.className = "";
    this.figures.textContent = text;
  }

  fail(text) {
    this.figures.className = "failed";
    this.figures.textContent = text;
  }
}

export class Denoising {
  constructor(size, failed) {
    Object.assign(this, { size, failed, digit: null, tiles: [], seed: 1 });
    for (const id of ["kind", "level"]) element(id).addEventListener("input", () => this.run());
    element("fresh").addEventListener("click", () => {
      this.seed = (Math.random() * 2 ** 31) | 0;
      this.run();
    });
    this.#build([]);
  }

  #build(models) {
    element("tiles").replaceChildren();
    this.noise = new Tile(element("tiles"), "with noise", "as it is sent", "");
    this.noise.figure.classList.add("lead");
    const ordered = [...models].sort((a, b) => b.denoises - a.denoises);
    this.tiles = ordered.map((model) => {
      const trained = model.corruption ? `denoises ${model.corruption.kind} ${model.corruption.level.toPrecision(2)}` : "rebuilds";
      const tile = new Tile(element("tiles"), model.name, trained, model.description);
      tile.figure.dataset.call = model.denoises ? "denoise" : "reconstruct";
      const call = latest(async (spoilt, digit) => {
        const answer = await ask(tile.figure.dataset.call, { model: model.name, row: toText(spoilt) });
        const row = fromText(answer.row);
        tile.show(row, this.size, `${psnr(row, digit).toFixed(1)} dB · ${answer.milliseconds.toPrecision(2)} ms`);
      }, (error) => {
        tile.fail("no answer");
        this.failed(error);
      });
      return call;
    });
  }

  setModels(models) {
    this.#build(models);
    this.run();
  }

  setDigit(row) {
    this.digit = row;
    this.run();
  }

  run() {
    const level = Number(element("level").value);
    element("level-text").textContent = level.toFixed(2);
    if (this.digit === null) return;
    const spoilt = noisy(this.digit, element("kind").value, level, this.seed);
    this.noise.show(spoilt, this.size, `${psnr(spoilt, this.digit).toFixed(1)} dB`);
    for (const call of this.tiles) call(spoilt, this.digit);
  }
}
