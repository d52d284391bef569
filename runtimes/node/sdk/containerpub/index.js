'use strict';
// What a Node.js function may import from its platform. Nothing here is needed for a plain handler.
//
//     import { Response, FunctionError } from 'containerpub';
//
//     export function handler(event, context) {
//       if (!event.body) throw new FunctionError('a name is needed');
//       context.logger.info('greeting %s', event.body);
//       return new Response(201, { 'Content-Type': 'text/plain' }, `hello ${event.body}`);
//     }
//
// One CommonJS module, so that `import` and `require` see the same classes.

/**
 * An HTTP answer shaped by the function. Returned by a handler, it shapes the answer of the HTTP gateway; elsewhere it is
 * an object of its three members.
 */
class Response {
  /**
   * @param {number} status HTTP status, 200 to 599.
   * @param {Record<string, string | string[]> | Iterable<[string, string]>} headers names to values, with a list where a
   *   name is repeated; or pairs, as a list, a Map or fetch()'s Headers.
   * @param {unknown} body text, bytes, a stream of bytes, or anything that JSON can say.
   */
  constructor(status = 200, headers = {}, body = null) {
    if (!Number.isInteger(status) || status < 200 || status > 599) {
      throw new RangeError(`status is a number from 200 to 599, not ${String(status)}`);
    }
    this.status = status;
    this.headers = shaped(headers ?? {});
    this.body = body;
  }

  // How the runtime knows one, whichever copy of this class made it.
  get [Symbol.for('containerpub.response')]() {
    return true;
  }
}

/** Names to values, or a list of pairs of both where a name is repeated. */
function shaped(headers) {
  if (typeof headers !== 'object') throw new TypeError('headers are an object of names and values, or pairs of both');
  const pairs = [];
  for (const pair of typeof headers[Symbol.iterator] === 'function' ? headers : Object.entries(headers)) {
    if (!Array.isArray(pair) || pair.length !== 2) throw new TypeError('each header is a pair of a name and a value');
    const [name, value] = pair;
    for (const one of Array.isArray(value) ? value : [value]) pairs.push([String(name), String(one)]);
  }
  const names = new Set(pairs.map(([name]) => name.toLowerCase()));
  return names.size === pairs.length ? Object.fromEntries(pairs) : pairs;
}

/**
 * Throw it to fail a call on purpose: the caller gets its message, without a stack.
 *
 * What it says of another attempt goes before what the function's settings say, within their `max_attempts`; it is for
 * accepted jobs, not for calls that are waited for.
 */
class FunctionError extends Error {
  /**
   * @param {string} message
   * @param {{ retry?: boolean, retryAfterS?: number, cause?: unknown }} options `retry: false` if trying again would be
   *   of no use; `retryAfterS` for the seconds until the next attempt, a day at most.
   */
  constructor(message, options = {}) {
    super(message, options);
    this.retry = options.retry ?? true;
    this.retryAfterS = options.retryAfterS;
  }

  get name() {
    return 'FunctionError';
  }

  get [Symbol.for('containerpub.expected')]() {
    return true;
  }
}

exports.Response = Response;
exports.FunctionError = FunctionError;
