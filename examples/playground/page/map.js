// The map of the latents: each digit as its label at its place on the two principal axes, and where one is now.

const COLOURS = ["#4c6ef5", "#e8590c", "#2f9e44", "#e03131", "#9c36b5", "#a0714f", "#d6336c", "#868e96", "#b08800", "#1098ad"];
const MARGIN = 14;

export class LatentMap {
  constructor(canvas, clicked) {
    Object.assign(this, { canvas, map: null, labels: [], latent: null });
    canvas.addEventListener("click", (event) => {
      if (this.map === null) return;
      const [first, second] = this.#place(event.offsetX, event.offsetY);
      const { mean, axes } = this.map;
      clicked(mean.map((value, unit) => value + first * axes[0][unit] + second * axes[1][unit]));
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  show(map, labels) {
    Object.assign(this, { map, labels, latent: null });
    const [xs, ys] = [0, 1].map((axis) => map.points.map((point) => point[axis]));
    this.low = [Math.min(...xs), Math.min(...ys)];
    this.high = [Math.max(...xs), Math.max(...ys)];
    this.draw();
  }

  mark(latent) {
    this.latent = latent;
    this.draw();
  }

  #side() {
    return this.canvas.clientWidth - 2 * MARGIN;
  }

  #pixel(point) {
    const [x, y] = point.map((value, axis) => (value - this.low[axis]) / (this.high[axis] - this.low[axis] || 1));
    return [MARGIN + x * this.#side(), MARGIN + (1 - y) * this.#side()];
  }

  #place(x, y) {
    const shares = [(x - MARGIN) / this.#side(), 1 - (y - MARGIN) / this.#side()];
    return shares.map((share, axis) => this.low[axis] + share * (this.high[axis] - this.low[axis]));
  }

  // Where a latent lies on the two axes.
  #project(latent) {
    return this.map.axes.map((axis) => axis.reduce((sum, value, unit) => sum + value * (latent[unit] - this.map.mean[unit]), 0));
  }

  draw() {
    if (this.map === null) return;
    const side = this.canvas.clientWidth, scale = devicePixelRatio;
    this.canvas.width = this.canvas.height = Math.round(side * scale);
    const context = this.canvas.getContext("2d");
    context.scale(scale, scale);
    context.font = "600 12px system-ui, 'Liberation Sans', sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    this.map.points.forEach((point, number) => {
      const label = this.labels[number];
      context.fillStyle = COLOURS[label % COLOURS.length];
      context.fillText(String(label), ...this.#pixel(point));
    });
    if (this.latent === null) return;
    const [x, y] = this.#pixel(this.#project(this.latent));
    context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
    context.lineWidth = 2.5;
    context.beginPath();
    context.arc(x, y, 9, 0, 2 * Math.PI);
    context.stroke();
  }
}
