// Tensor messages and typed arrays. A tensor's `data` are the elements as they lie in memory, row-major and little-endian.

import { endianness } from 'node:os';

if (endianness() !== 'LE') throw new Error('typed arrays have the order of the machine; tensors are little-endian');

/**
 * A Tensor message of `values`: Float32Array, or Uint8Array for pixels of 0 to 255. Its `data` is a view: nothing is copied,
 * so leave `values` alone until the call is answered. The first dimension of `shape` counts rows.
 */
export function toTensor(values, shape) {
  const dtype = values instanceof Uint8Array ? 'DATA_TYPE_UINT8' : 'DATA_TYPE_FLOAT32';
  return { dtype, shape, data: Buffer.from(values.buffer, values.byteOffset, values.byteLength) };
}

/** The numbers and the shape of a Tensor message of FLOAT32, which is what the service answers unless asked otherwise. */
export function fromTensor(tensor) {
  if (tensor.dtype !== 'DATA_TYPE_FLOAT32') throw new Error(`tensor: must be of FLOAT32; got ${tensor.dtype}`);
  return { values: floats(tensor.data), shape: tensor.shape };
}

/** The bytes of a Buffer as a Float32Array: a view where they lie on a multiple of four bytes, else a copy. */
export function floats(bytes) {
  const [buffer, offset] = bytes.byteOffset % 4 === 0 ? [bytes.buffer, bytes.byteOffset] : [Uint8Array.from(bytes).buffer, 0];
  return new Float32Array(buffer, offset, bytes.length / 4);
}

/** `values` row by row, each a view, to be sent with the shape `[1, ...shape.slice(1)]`. */
export function* rowsOf({ values, shape }) {
  const size = values.length / shape[0];
  for (let begin = 0; begin < values.length; begin += size) yield values.subarray(begin, begin + size);
}
