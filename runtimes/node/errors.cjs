'use strict';
// What went wrong in a function, as its caller is told.

const { pathToFileURL } = require('node:url');

const MESSAGE_CHARS = 16 * 1024;
const STACK_CHARS = 64 * 1024;
const CAUSES = 8;
const MOST_WISHED_S = 86_400;
const EXPECTED = Symbol.for('containerpub.expected');
const LONE_SURROGATE = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** The function's code does not have the handler that it should have. */
class NoHandler extends Error {
  get name() {
    return 'NoHandler';
  }

  get [EXPECTED]() {
    return true;
  }
}

/** `text` with lone surrogates escaped, which no encoding of ours could carry. */
function printable(text) {
  return text.replace(LONE_SURROGATE, (unit) => `\\u${unit.charCodeAt(0).toString(16)}`);
}

/** Stack of `error` and of what caused it, with the function's own frames only. */
function stackOf(error, folder, depth = 0) {
  let stack = typeof error?.stack === 'string' ? error.stack : String(error);
  stack = stack
    .split('\n')
    .filter((line) => !/^\s+at /.test(line) || !(line.includes(`${__dirname}/`) || /[( ]node:/.test(line)))
    .join('\n')
    .replaceAll(pathToFileURL(folder).href, '/function')
    .replaceAll(folder, '/function');
  const causes = [error?.cause, ...(Array.isArray(error?.errors) ? error.errors.slice(0, CAUSES) : [])];
  for (const cause of depth < CAUSES ? causes : []) {
    if (cause instanceof Error) stack += `\ncaused by: ${stackOf(cause, folder, depth + 1)}`;
  }
  return stack;
}

/** `error` for the caller. It may be anything, and reading it may throw. */
function describe(error, folder) {
  const read = (get, otherwise) => {
    try {
      return printable(String(get()));
    } catch {
      return otherwise;
    }
  };
  const isError = read(() => error instanceof Error || typeof error?.stack === 'string', 'false') === 'true';
  const described = {
    type: read(() => (isError ? error.name : typeof error), 'Error').slice(0, 256),
    message: read(() => (isError ? error.message : error), '(the error has no readable message)').slice(
      0,
      MESSAGE_CHARS,
    ),
  };
  if (!isError || read(() => error[EXPECTED], '') !== 'true') {
    described.traceback = read(() => stackOf(error, folder), '').slice(0, STACK_CHARS);
  }
  return described;
}

/** What an expected failure says of another attempt: false for none, or seconds until it. Reading it may throw. */
function wishOf(error) {
  try {
    if (!error?.[EXPECTED]) return undefined;
    if (error.retry === false) return false;
    const seconds = error.retryAfterS;
    if (seconds === undefined || seconds === null) return undefined;
    if (typeof seconds === 'number' && seconds >= 0) return Math.min(seconds, MOST_WISHED_S);
    const given = typeof seconds === 'number' ? seconds : typeof seconds;
    process.stderr.write(`retryAfterS must be a number of seconds, not ${given}: the function's settings hold\n`);
    return undefined;
  } catch {
    return undefined;
  }
}

module.exports = { NoHandler, describe, printable, wishOf };
