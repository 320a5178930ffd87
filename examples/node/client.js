// A client of Hourglass on the command line. `node client.js --help` explains it.

import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';

import { describe, Hourglass } from './hourglass.js';
import * as npy from './npy.js';
import { fromTensor, rowsOf, toTensor } from './tensors.js';

const HELP = `usage: node client.js COMMAND [FLAGS] [IN.npy OUT.npy]

  models                    the models that are ready
  encode IN.npy OUT.npy     rows to latents
  denoise IN.npy OUT.npy    corrupted rows to clean rows; prints how far each moved
  interpolate IN.npy OUT.npy
                            the path from each row to the next, through the latent space
  stream IN.npy OUT.npy     encode, over one stream with a message a row

IN.npy has uint8 (0 to 255) or float32 (0 to 1), the first dimension counts rows; OUT.npy gets float32.

  --model NAME              which model, with /VERSION or /LABEL for another than the latest (default: mnist-conv, denoise:
                            mnist-denoising-conv)
  --address HOST:PORT       the service (default: HOURGLASS_ADDRESS, else 127.0.0.1:50051)
  --tls                     encrypt, and trust the roots of Node
  --tls-ca FILE             encrypt, and trust these roots (PEM)
  --tls-cert FILE, --tls-key FILE
                            who we are, for mutual TLS (PEM)
  --token-file FILE         a bearer token (default: HOURGLASS_TOKEN, else none)
  --timeout SECONDS         after which a call, or a message of a stream, is given up (default: 30)
  --steps N                 interpolate: points of each path, both ends included (default: 9)
  --in-flight N             stream: the most messages that are unanswered (default: 64)
`;
const STRING = { type: 'string' };
const FLAGS = {
  help: { type: 'boolean' },
  model: STRING,
  address: { ...STRING, default: process.env.HOURGLASS_ADDRESS || '127.0.0.1:50051' },
  tls: { type: 'boolean' },
  'tls-ca': STRING,
  'tls-cert': STRING,
  'tls-key': STRING,
  'token-file': STRING,
  timeout: { ...STRING, default: '30' },
  steps: { ...STRING, default: '9' },
  'in-flight': { ...STRING, default: '64' },
};

async function models(client) {
  const { models } = await client.call('ListModels', {});
  for (const { name, version, input, latent, operations } of models) {
    const can = operations.map((operation) => operation.replace('OPERATION_', '').toLowerCase());
    console.log(`${name}/${version}  ${input.row_shape.join('x')} -> ${latent.row_shape.join('x')}  ${can.join(',')}`);
  }
}

async function encode(client, model, rows) {
  const { latents } = await client.call('Encode', { model, rows: toTensor(rows.values, rows.shape) });
  return fromTensor(latents);
}

async function denoise(client, model, rows) {
  const answer = await client.call('Denoise', { model, rows: toTensor(rows.values, rows.shape) });
  answer.distances.forEach((distance, row) => console.log(`row ${row} moved by ${distance.toFixed(4)}`));
  return fromTensor(answer.rows);
}

/** `[rows - 1, steps, ...row shape]`: a path for each pair of neighbours. */
async function interpolate(client, model, { values, shape }, { steps }) {
  const [count, ...rowShape] = shape;
  if (count < 2) throw new Error(`interpolate: needs at least two rows; got ${count}`);
  const size = values.length / count;
  const start = toTensor(values.subarray(0, -size), [count - 1, ...rowShape]);
  const end = toTensor(values.subarray(size), [count - 1, ...rowShape]);
  const answer = await client.call('Interpolate', { model, rows: { start, end }, steps });
  return fromTensor(answer.rows);
}

async function stream(client, model, rows, { inFlight }) {
  const shape = [1, ...rows.shape.slice(1)];
  function* requests() {
    let id = 0;
    for (const row of rowsOf(rows)) yield { id: id++, encode: { model, rows: toTensor(row, shape) } };
  }
  const latents = new Array(rows.shape[0]);
  let encoded = 0;
  for await (const answer of client.stream(requests(), inFlight)) {
    if (answer.response === 'error') {
      console.error(`row ${answer.id}: ${describe(answer.error)}`);
    } else {
      latents[answer.id] = fromTensor(answer.encode.latents);
      encoded += 1;
    }
  }
  if (encoded < latents.length) throw new Error(`${latents.length - encoded} of ${latents.length} rows have no latent`);
  const [{ values, shape: latentShape }] = latents;
  const all = new Float32Array(latents.length * values.length);
  latents.forEach((each, row) => all.set(each.values, row * values.length));
  return { values: all, shape: [latents.length, ...latentShape.slice(1)] };
}

/** A flag's positive whole number. */
function count(flags, name) {
  const number = Number(flags[name]);
  if (!Number.isInteger(number) || number < 1) throw new Error(`--${name}: must be a whole number of at least 1; got ${flags[name]}`);
  return number;
}

async function main() {
  const { values: flags, positionals } = parseArgs({ options: FLAGS, allowPositionals: true });
  const [command, source, target] = positionals;
  const operation = { encode, denoise, interpolate, stream }[command];
  if (flags.help || positionals.length !== (command === 'models' ? 1 : 3) || (command !== 'models' && !operation)) {
    (flags.help ? process.stdout : process.stderr).write(HELP);
    return flags.help ? 0 : 2;
  }
  const timeoutSeconds = Number(flags.timeout);
  if (!(timeoutSeconds > 0)) throw new Error(`--timeout: must be a positive number of seconds; got ${flags.timeout}`);
  const options = { steps: count(flags, 'steps'), inFlight: count(flags, 'in-flight') };
  const [name, version] = (flags.model ?? (command === 'denoise' ? 'mnist-denoising-conv' : 'mnist-conv')).split('/');
  const token = flags['token-file'] ? readFileSync(flags['token-file'], 'utf8').trim() : process.env.HOURGLASS_TOKEN;
  const tls = { ca: flags['tls-ca'], cert: flags['tls-cert'], key: flags['tls-key'] };
  const client = new Hourglass(flags.address, {
    tls: flags.tls || Object.values(tls).some(Boolean) ? tls : undefined,
    token,
    timeoutSeconds,
  });
  try {
    if (command === 'models') {
      await models(client);
      return 0;
    }
    const result = await operation(client, { name, version }, npy.read(source), options);
    npy.write(target, result);
    console.log(`${target}: ${result.shape.join('x')} float32`);
    return 0;
  } finally {
    client.close();
  }
}

try {
  process.exitCode = await main();
} catch (error) {
  // An error of gRPC has the status as its code; a system error a word.
  console.error(Number.isInteger(error.code) ? describe(error) : error.message);
  process.exitCode = 1;
}
