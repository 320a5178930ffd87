// `node --test examples/node/client.test.js`, with HOURGLASS_ADDRESS; any model that takes 28x28 will do, `mnist-conv` is asked.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Hourglass } from './hourglass.js';
import { floats, fromTensor, rowsOf, toTensor } from './tensors.js';

const address = process.env.HOURGLASS_ADDRESS;
const COUNT = 1000;
const shape = [1, 28, 28];
const row = new Float32Array(28 * 28).map((_, pixel) => pixel / (28 * 28));
const request = (id) => ({ id, encode: { model: { name: 'mnist-conv' }, rows: toTensor(row, shape) } });

function connected(name, body) {
  test(name, { skip: !address && 'HOURGLASS_ADDRESS names no service' }, async () => {
    const client = new Hourglass(address);
    try {
      await body(client);
    } finally {
      client.close();
    }
  });
}

test('a tensor is a view of the array, and an answer of aligned bytes', () => {
  const tensor = toTensor(row, shape);
  row[5] = 0.25;
  assert.equal(tensor.data.readFloatLE(20), 0.25);
  const back = fromTensor(tensor);
  assert.equal(back.values.buffer, row.buffer);
  assert.deepEqual(back.values, row);
});

test('bytes that are not aligned are copied', () => {
  const bytes = Buffer.alloc(9);
  bytes.writeFloatLE(0.5, 1);
  bytes.writeFloatLE(-2, 5);
  const values = floats(bytes.subarray(1));
  assert.notEqual(values.buffer, bytes.buffer);
  assert.deepEqual([...values], [0.5, -2]);
});

test('rows are views', () => {
  const values = Float32Array.of(1, 2, 3, 4, 5, 6);
  assert.deepEqual([...rowsOf({ values, shape: [3, 2] })].map((each) => [...each]), [[1, 2], [3, 4], [5, 6]]);
});

for (const inFlight of [1, 64]) {
  connected(`no more than ${inFlight} requests of a stream are unanswered`, async (client) => {
    const asked = new Set();
    let most = 0;
    function* requests() {
      for (let id = 0; id < COUNT; id += 1) {
        asked.add(id);
        most = Math.max(most, asked.size);
        yield request(id);
      }
    }
    for await (const answer of client.stream(requests(), inFlight)) {
      assert.equal(answer.response, 'encode');
      assert.ok(asked.delete(answer.id), 'each is answered once');
    }
    assert.equal(asked.size, 0);
    // One more is made before it waits for its turn, one is answered and not handed out yet.
    assert.ok(most <= inFlight + 2, `${most} were unanswered`);
  });
}

connected('whoever stops reading ends the stream, and the connection goes on', async (client) => {
  let made = 0;
  function* requests() {
    for (;;) yield request((made += 1));
  }
  let read = 0;
  for await (const answer of client.stream(requests(), 8)) {
    assert.equal(answer.response, 'encode');
    if ((read += 1) === 100) break;
  }
  assert.ok(made <= 100 + 10, `${made} requests were made`);
  const answer = await client.call('Encode', request(0).encode);
  assert.deepEqual(answer.latents.shape, [1, 8, 4, 4]);
});

connected('an error of whoever makes the requests is thrown to whoever reads the answers', async (client) => {
  function* requests() {
    yield request(1);
    throw new Error('no more');
  }
  await assert.rejects(async () => {
    for await (const answer of client.stream(requests())) assert.equal(answer.id, 1);
  }, /no more/);
});
