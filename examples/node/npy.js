// Files of numpy (.npy): uint8 and float32, row-major.

import { readFileSync, writeFileSync } from 'node:fs';

import { floats } from './tensors.js';

const MAGIC = Buffer.from('\x93NUMPY', 'latin1');

/** `{ values, shape }` of a file; `values` is a Float32Array or a Uint8Array over the bytes that were read. */
export function read(path) {
  const file = readFileSync(path);
  if (!file.subarray(0, 6).equals(MAGIC)) throw new Error(`${path}: is no .npy file`);
  const [length, start] = file[6] === 1 ? [file.readUInt16LE(8), 10] : [file.readUInt32LE(8), 12];
  const header = file.toString('latin1', start, start + length);
  const [, type] = header.match(/'descr': *'([^']*)'/) ?? [];
  const [, shapeText] = header.match(/'shape': *\(([^)]*)\)/) ?? [];
  if (!['<f4', '|u1'].includes(type)) throw new Error(`${path}: must be of float32 or uint8; got ${type}`);
  if (!/'fortran_order': *False/.test(header)) throw new Error(`${path}: must be row-major`);
  const shape = shapeText.split(',').filter((each) => each.trim()).map(Number);
  const data = file.subarray(start + length);
  const wanted = shape.reduce((product, size) => product * size, type === '<f4' ? 4 : 1);
  if (!shape.length || !wanted) throw new Error(`${path}: must have at least one row; the shape is (${shapeText})`);
  if (data.length !== wanted) throw new Error(`${path}: must have ${wanted} bytes of data for its shape; got ${data.length}`);
  return { values: type === '<f4' ? floats(data) : data, shape };
}

/** Writes a Float32Array. */
export function write(path, { values, shape }) {
  const text = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(', ')}${shape.length === 1 ? ',' : ''}), }`;
  // The data begin at a multiple of 64 bytes.
  const header = Buffer.from(text.padEnd(Math.ceil((text.length + 11) / 64) * 64 - 11) + '\n', 'latin1');
  const length = Buffer.alloc(2);
  length.writeUInt16LE(header.length);
  const data = Buffer.from(values.buffer, values.byteOffset, values.byteLength);
  writeFileSync(path, Buffer.concat([MAGIC, Buffer.from([1, 0]), length, header, data]));
}
