// The drawing pad: a brush on the pixels of the digit itself.

import { paint } from "./pixels.js";

const BRUSH = 1.9;

export class Pad {
  constructor(canvas, size, changed) {
    Object.assign(this, { canvas, size, changed, erasing: false, last: null });
    this.row = new Uint8Array(size.height * size.width);
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.last = this.#at(event);
      this.#stroke(this.last);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (this.last !== null) this.#stroke(this.#at(event));
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { this.last = null; });
    this.show(this.row);
  }

  show(row) {
    this.row = row;
    paint(this.canvas, row, this.size);
  }

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.size.width,
      ((event.clientY - box.top) / box.height) * this.size.height,
    ];
  }

  // From the last point to this one, in steps of half a pixel.
  #stroke([x, y]) {
    const [fromX, fromY] = this.last;
    const steps = Math.max(1, Math.ceil(2 * Math.hypot(x - fromX, y - fromY)));
    const row = this.row.slice();
    for (let step = 0; step <= steps; step++) {
      this.#dab(row, fromX + ((x - fromX) * step) / steps, fromY + ((y - fromY) * step) / steps);
    }
    this.last = [x, y];
    this.show(row);
    this.changed(row);
  }

  #dab(row, x, y) {
    const { height, width } = this.size;
    for (let line = 0; line < height; line++) {
      for (let column = 0; column < width; column++) {
        const ink = Math.min(1, Math.max(0, BRUSH - Math.hypot(column + 0.5 - x, line + 0.5 - y))) * 255;
        const at = line * width + column;
        row[at] = this.erasing ? Math.min(row[at], 255 - ink) : Math.max(row[at], ink);
      }
    }
  }
}
