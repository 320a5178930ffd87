// The page: one digit, and three views of what the models make of it.

import { Denoising } from "./denoising.js";
import { Latent } from "./latent.js";
import { Pad } from "./pad.js";
import { fromText, paint } from "./pixels.js";
import { Away, ask } from "./service.js";
import { Walk } from "./walk.js";

const RETRY_MS = 2000;
const GALLERY = 20;
const element = (id) => document.getElementById(id);

let digits = null;
let views = [];
let models = [];
let retry = null;

function failed(error) {
  element("banner").textContent = error.message;
  element("banner").hidden = false;
  if (error instanceof Away) {
    element("status").dataset.state = "away";
    element("status").textContent = "the service is away; trying again";
    retry ??= setTimeout(connect, RETRY_MS);
  } else if (!(error instanceof Error && error.message)) {
    throw error;
  }
}

// Ask for the models; everything is shown anew, as the service may be another one by now.
async function connect() {
  retry = null;
  try {
    const answer = await ask("models");
    models = answer.models;
    element("status").dataset.state = "up";
    element("status").textContent = `${models.length} models at ${answer.address}`;
    element("banner").hidden = models.length > 0;
    element("banner").textContent = `The service has no model for pictures of ${digits.height}x${digits.width}.`;
    for (const view of views) view.setModels(models);
  } catch (error) {
    failed(error);
  }
}

// Buttons with small pictures, one of which is pressed.
function thumbnails(parent, numbers, chosen) {
  parent.replaceChildren(...numbers.map((number) => {
    const button = document.createElement("button");
    const canvas = document.createElement("canvas");
    button.className = "thumb";
    button.ariaPressed = "false";
    button.ariaLabel = `a ${digits.labels[number]}`;
    button.append(canvas);
    paint(canvas, digits.rows[number], digits);
    button.addEventListener("click", () => {
      for (const other of parent.children) other.ariaPressed = String(other === button);
      chosen(digits.rows[number]);
    });
    return button;
  }));
}

// The digit of that rank in each class, class by class.
function ofEachClass(rank) {
  const classes = [...new Set(digits.labels)].sort((a, b) => a - b);
  return classes.map((label) => {
    const members = [...digits.labels.keys()].filter((number) => digits.labels[number] === label);
    return members[rank % members.length];
  });
}

function start() {
  const pad = new Pad(element("pad"), digits, (row) => {
    for (const button of element("gallery").children) button.ariaPressed = "false";
    for (const view of views) view.setDigit(row);
  });
  const show = (row) => {
    pad.show(row);
    for (const view of views) view.setDigit(row);
  };
  const walk = new Walk(digits, failed);
  views = [new Denoising(digits, failed), walk, new Latent(digits, failed)];

  let rank = 0;
  const fill = () => thumbnails(element("gallery"), [...ofEachClass(rank), ...ofEachClass(rank + 1)].slice(0, GALLERY), show);
  fill();
  thumbnails(element("ends"), ofEachClass(3), (row) => walk.setEnd(row));
  element("gallery").children[3 % element("gallery").children.length].click();
  element("ends").children[element("ends").children.length - 2].click();
  element("another").addEventListener("click", () => {
    rank += 2;
    fill();
    const { children } = element("gallery");
    children[Math.floor(Math.random() * children.length)].click();
  });
  element("clear").addEventListener("click", () => {
    for (const button of element("gallery").children) button.ariaPressed = "false";
    show(new Uint8Array(digits.height * digits.width));
  });
  element("erase").addEventListener("click", () => {
    pad.erasing = !pad.erasing;
    element("erase").ariaPressed = String(pad.erasing);
  });
}

try {
  digits = await ask("digits");
  digits.rows = digits.rows.map(fromText);
  start();
  await connect();
} catch (error) {
  failed(error);
}
