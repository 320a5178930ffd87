// Rows as Uint8Array of H*W pixels, 0 to 255: to and from text, on canvases, with noise.

export function fromText(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

export function toText(row) {
  return btoa(String.fromCharCode(...row));
}

function colour(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

const painted = new Map();

// Ink on paper, in the colours of the theme.
export function paint(canvas, row, { height, width }) {
  painted.set(canvas, [row, { height, width }]);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const paper = colour("--paper"), ink = colour("--ink");
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let at = 0; at < row.length; at++) {
    const share = row[at] / 255;
    for (let channel = 0; channel < 3; channel++) {
      image.data[4 * at + channel] = paper[channel] + share * (ink[channel] - paper[channel]);
    }
    image.data[4 * at + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const [canvas, [row, size]] of painted) {
    if (canvas.isConnected) paint(canvas, row, size);
    else painted.delete(canvas);
  }
});

// Peak signal-to-noise ratio in dB.
export function psnr(row, clean) {
  let sum = 0;
  for (let at = 0; at < row.length; at++) sum += ((row[at] - clean[at]) / 255) ** 2;
  return -10 * Math.log10(Math.max(sum / row.length, 1e-6));
}

// A small seeded generator (mulberry32), so that the level can be turned while the noise stays the same.
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

// gaussian: the level is the standard deviation; masking and salt-and-pepper: the share of pixels that are spoilt.
export function noisy(row, kind, level, seed) {
  const random = generator(seed);
  return Uint8Array.from(row, (value) => {
    const first = random(), second = random();
    if (kind === "gaussian") {
      const normal = Math.sqrt(-2 * Math.log(1 - first)) * Math.cos(2 * Math.PI * second);
      return Math.min(255, Math.max(0, Math.round(value + 255 * level * normal)));
    }
    if (first >= level) return value;
    return kind === "masking" || second < 0.5 ? 0 : 255;
  });
}
