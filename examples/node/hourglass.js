// The service as promises and async iterables, with @grpc/grpc-js and the .proto files of this repository.

import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

import * as grpc from '@grpc/grpc-js';
import * as protoLoader from '@grpc/proto-loader';

const path = (relative) => fileURLToPath(new URL(relative, import.meta.url));
// Field names as in the .proto files; 64-bit integers as numbers (ids below 2^53); enums by name; `response` of a
// StreamResponse names the field that is set.
const definitions = protoLoader.loadSync(['autoencoder/v1/autoencoder.proto', 'error_details.proto'], {
  includeDirs: [path('../../proto'), path('.')],
  keepCase: true,
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true,
});
const { AutoencoderService } = grpc.loadPackageDefinition(definitions).autoencoder.v1;

/** A connection to the service. Close it in the end: an open one keeps the process alive. */
export class Hourglass {
  /**
   * `tls`: undefined for none, else `{ ca, cert, key }`, names of PEM files, each optional: whom to trust (else the roots of
   * Node), and who we are for mutual TLS. `token`: sent with every call, without TLS only where it stays on this machine.
   */
  constructor(address, { tls, token, timeoutSeconds = 30 } = {}) {
    const local = /^(localhost|127(\.\d+){3}|\[::1\]):\d+$|^unix:/.test(address);
    if (token && !tls && !local) {
      throw new Error(`token: sent without TLS only to a loopback address or a unix socket, not to ${address}`);
    }
    const file = (name) => (name ? readFileSync(name) : null);
    const credentials = tls
      ? grpc.credentials.createSsl(file(tls.ca), file(tls.key), file(tls.cert))
      : grpc.credentials.createInsecure();
    this.stub = new AutoencoderService(address, credentials, {
      'grpc.max_receive_message_length': -1, // the size of an answer follows from the rows that were sent
      'grpc.keepalive_time_ms': 330_000, // servers take more than one ping in five minutes for a flood
      'grpc.enable_http_proxy': local ? 0 : 1,
    });
    this.metadata = new grpc.Metadata();
    if (token) this.metadata.set('authorization', `Bearer ${token}`);
    this.timeoutSeconds = timeoutSeconds;
  }

  close() {
    this.stub.close();
  }

  /** The answer to one call, such as `call('Encode', { model: { name }, rows: toTensor(...) })`. */
  call(method, request) {
    const options = { deadline: Date.now() + this.timeoutSeconds * 1000 };
    return new Promise((resolve, reject) => {
      this.stub[method](request, this.metadata, options, (error, answer) => (error ? reject(error) : resolve(answer)));
    });
  }

  /**
   * Sends StreamRequests (any iterable) and yields the StreamResponses, in the order of completion. An answer may be an
   * `error`: of its request alone. Two things hold the sender back: the service, which reads no further than it keeps up with
   * (`write` is false then), and `inFlight`, the most requests that are unanswered, so that this process does not pile up
   * requests either. Whoever iterates slowly holds back the service in turn.
   */
  async *stream(requests, inFlight = 64) {
    const call = this.stub.Stream(this.metadata);
    let unanswered = 0;
    let answered = () => {};
    const send = async () => {
      for await (const request of requests) {
        while (unanswered >= inFlight) await new Promise((resolve) => (answered = resolve));
        unanswered += 1;
        // The time-out is of each request: a stream may live for days.
        if (!call.write({ timeout_seconds: this.timeoutSeconds, ...request })) await once(call, 'drain');
      }
      call.end();
    };
    // An error of the call reaches whoever iterates; one of `requests` ends the call and is thrown there.
    let broken;
    send().catch((error) => {
      broken = error;
      call.cancel();
    });
    try {
      for await (const answer of call) {
        unanswered -= 1;
        answered();
        yield answer;
      }
    } catch (error) {
      throw error.code === grpc.status.CANCELLED && broken ? broken : error;
    } finally {
      call.cancel();
    }
  }
}

/** What an error says, for people: status and text, then its details. Takes errors of calls and the `error` of a StreamResponse. */
export function describe(error) {
  const serialised = error.metadata?.get('grpc-status-details-bin')[0];
  // A google.rpc.Status, which StreamError is the same as on the wire.
  const details = serialised ? definitions['autoencoder.v1.StreamError'].deserialize(serialised).details : error.details;
  const lines = [`${grpc.status[error.code]}: ${error.metadata ? error.details : error.message}`];
  for (const { type_url, value } of Array.isArray(details) ? details : []) {
    const name = type_url.split('/').at(-1);
    const detail = definitions[name]?.deserialize(value);
    if (name === 'google.rpc.ErrorInfo') {
      const pairs = Object.entries(detail.metadata).map(([key, text]) => `, ${key}=${text}`);
      lines.push(`  reason ${detail.reason}${pairs.join('')}`);
    } else if (name === 'google.rpc.RetryInfo') {
      lines.push(`  retry after ${detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9} s`);
    }
  }
  return lines.join('\n');
}
