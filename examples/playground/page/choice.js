// Fill a list with the models, and keep what is chosen where it is still there.

export function choose(select, models, usual) {
  const names = models.map((model) => model.name);
  const chosen = [select.value, usual, names[0]].find((name) => names.includes(name));
  select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
}
