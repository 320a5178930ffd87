// Calls to the service, through the server of this page.

export class Away extends Error {}

export async function ask(call, question = {}) {
  let response;
  try {
    response = await fetch(`api/${call}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(question),
    });
  } catch {
    throw new Away("The playground itself does not answer. Was it stopped?");
  }
  const answer = await response.json();
  if (response.status === 503) throw new Away(answer.error);
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// Runs one call at a time and, of those that came meanwhile, only the last: a slider may move faster than answers come.
export function latest(task, failed) {
  let running = false, next = null;
  return async (...values) => {
    next = values;
    if (running) return;
    running = true;
    while (next !== null) {
      const now = next;
      next = null;
      try {
        await task(...now);
      } catch (error) {
        failed(error);
      }
    }
    running = false;
  };
}
