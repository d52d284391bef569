'use strict';
// What a handler returned, as JSON text.

const { types } = require('node:util');
const { printable } = require('./errors.cjs');

const SHAPED = Symbol.for('containerpub.response');
const NAME = /^[\p{ID_Start}$_][\p{ID_Continue}$]*$/u;
const NAME_CHARS = 100;
const PLACE_CHARS = 500;
const OF_PAIRS = ['URLSearchParams', 'Headers', 'FormData'];

/** What was returned cannot be said in JSON. */
class NotJSON extends Error {}

/** Whether `returned` is an HTTP answer, of the SDK or as fetch() makes them: it is read before it is encoded. */
function isAnswer(returned) {
  return returned !== null && typeof returned === 'object' && (returned[SHAPED] === true || isFetched(returned));
}

function isFetched(value) {
  return tagOf(value) === 'Response' && typeof value.arrayBuffer === 'function' && Number.isInteger(value.status);
}

/** An answer as JSON can say it: bytes that are not UTF-8 go as `body_base64` in place of `body`. */
async function documentOf(answer, room) {
  const { status, body } = answer;
  const fetched = answer[SHAPED] !== true;
  if (fetched && (status < 200 || status > 599)) throw new NotJSON(`result is a Response with the status ${status}`);
  if (fetched && answer.bodyUsed) throw new NotJSON('result is a Response whose body was read before it was returned');
  const headers = fetched ? shapedHeaders(answer.headers) : answer.headers;
  const bytes = await bytesOf(body, room);
  if (bytes === null) return { status, headers, body: fetched ? (body ?? '') : body };
  try {
    return { status, headers, body: new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes) };
  } catch {
    return { status, headers, body_base64: bytes.toString('base64') };
  }
}

/** Names to values, or pairs of both where a name is repeated. */
function shapedHeaders(headers) {
  const joined = typeof headers.raw !== 'function'; // node-fetch joins values, and has them apart in here
  const pairs = joined
    ? [...headers].flatMap(([name, value]) => (name === 'set-cookie' && !headers.getSetCookie
      // Releases of Node.js before 18.14, and builds without it, join cookies by commas, as none but dates have inside.
      ? value.split(/,\s*(?=[^\s;,=]+=)/).map((one) => [name, one])
      : [[name, value]]))
    : Object.entries(headers.raw()).flatMap(([name, values]) => values.map((value) => [name, value]));
  return new Set(pairs.map(([name]) => name)).size === pairs.length ? Object.fromEntries(pairs) : pairs;
}

/** What `body` consists of, or null if that is not bytes. Of a stream a little more than `room` bytes are read at most. */
async function bytesOf(body, room) {
  if (body === null || typeof body !== 'object') return null;
  if (ArrayBuffer.isView(body)) return Buffer.from(body.buffer, body.byteOffset, body.byteLength);
  if (types.isAnyArrayBuffer(body)) return Buffer.from(body);
  const source = typeof body.stream === 'function' && typeof body.arrayBuffer === 'function' ? body.stream() : body;
  if (typeof source[Symbol.asyncIterator] !== 'function') return null;
  const chunks = [];
  let size = 0;
  for await (const chunk of source) {
    chunks.push(Buffer.from(chunk));
    size += chunks.at(-1).length;
    if (size > room) break;
  }
  return Buffer.concat(chunks);
}

/**
 * JSON text of `result`; undefined is null. Throws NotJSON, which names the place, for what JSON cannot say and what
 * JSON.stringify would change without a word.
 */
function encode(result) {
  let text;
  try {
    text = JSON.stringify(result, sayable);
  } catch (error) {
    if (error instanceof RangeError && /call stack/.test(error.message)) throw new NotJSON('result is nested too deeply');
    locate(result, false);
    throw error;
  }
  if (text === undefined) return 'null';
  // JSON.stringify escapes half a character so, and nothing else but a backslash looks like it.
  if (text.includes('\\ud')) locate(result, true);
  return text;
}

/** Throws NotJSON at the first place of `result` that JSON cannot say, if there is one. */
function locate(result, halves) {
  const open = []; // the objects around a place, each with its name
  const nameOf = (last) => {
    const names = [...open.map((one) => one.name), last].slice(1);
    const place = names.map((one) => (typeof one === 'number' ? `[${one}]` : named(one))).join('');
    return printable(`result${place.length > PLACE_CHARS ? `…${place.slice(-PLACE_CHARS)}` : place}`);
  };
  JSON.stringify(result, function (key, value) {
    while (open.length > 0 && open.at(-1).value !== this) open.pop();
    const name = Array.isArray(this) ? Number(key) : key;
    let said;
    try {
      said = sayable.call(this, key, value);
      if (halves && typeof said === 'string') checkWhole(said);
      if (halves && !Array.isArray(this)) checkWhole(key);
      if (typeof said === 'object' && open.some((one) => one.value === said)) {
        throw new NotJSON('refers back to an object that it is in');
      }
    } catch (error) {
      if (error instanceof NotJSON) throw new NotJSON(`${nameOf(name)} ${error.message}`);
      throw error;
    }
    if (typeof said === 'object' && said !== null) open.push({ value: said, name });
    return said;
  });
}

function named(name) {
  if (NAME.test(name) && name.length <= NAME_CHARS) return `.${name}`;
  return `[${JSON.stringify(name.length > NAME_CHARS ? `${name.slice(0, NAME_CHARS)}…` : name)}]`;
}

function checkWhole(text) {
  if (printable(text) !== text) throw new NotJSON('has half a character (a lone surrogate)');
}

/** For JSON.stringify: `value` if it says that as it is, or what it has to say in its place; else NotJSON. */
function sayable(key, value) {
  switch (typeof value) {
    case 'number':
      if (!Number.isFinite(value)) throw new NotJSON(`is ${value}, which JSON does not have: return null or a text`);
      return value;
    case 'function':
      throw new NotJSON('is a function: return what it returns, or leave it out');
    case 'symbol':
      throw new NotJSON('is a symbol: return a text');
    case 'bigint':
      throw new NotJSON('is a bigint: return it as a text or a number');
    case 'object':
      break;
    default:
      return value;
  }
  if (value === null) {
    if (types.isDate(this[key])) throw new NotJSON('is an invalid Date');
    return value;
  }
  const parent = Object.getPrototypeOf(value);
  return parent === Object.prototype || parent === null || Array.isArray(value) ? value : converted(value);
}

/** What is said in the place of an object that is neither a plain one nor a list. */
function converted(value) {
  if (types.isMap(value)) return fromMap(value);
  if (types.isSet(value) || types.isTypedArray(value)) return Array.from(value);
  if (types.isAnyArrayBuffer(value)) return Array.from(new Uint8Array(value));
  if (types.isDataView(value)) return Array.from(new Uint8Array(value.buffer, value.byteOffset, value.byteLength));
  // What is in a box is judged like any other value.
  if (types.isBoxedPrimitive(value)) return sayable.call({}, '', value.valueOf());
  if (types.isNativeError(value) || value instanceof Error) {
    throw new NotJSON(`is an Error (${String(value.message).slice(0, 200)}): throw it to fail the call, or return a text`);
  }
  const tag = tagOf(value);
  if (OF_PAIRS.includes(tag) && typeof value[Symbol.iterator] === 'function') return fromPairs(value);
  if (types.isPromise(value)) throw new NotJSON('is a promise: await it');
  if (isFetched(value)) throw new NotJSON('is a Response: await its text() or json(), or return it as the whole result');
  if (typeof value.pipe === 'function' || typeof value.getReader === 'function' || Symbol.asyncIterator in value) {
    throw new NotJSON('is a stream: read it, and return what it has');
  }
  // An object of Node.js's own: what it holds is no member of it. A class of the function's may call itself anything.
  if (tag !== 'Object' && tag !== 'Module' && Object.keys(value).length === 0) {
    throw new NotJSON(`is a ${tag}, which JSON cannot say: return a text, a list or an object`);
  }
  return value;
}

function fromMap(map) {
  const members = Object.create(null);
  for (const [key, value] of map) {
    if (!['string', 'number', 'boolean', 'bigint'].includes(typeof key)) {
      throw new NotJSON(`is a Map with a key that is ${typeof key === 'symbol' ? 'a symbol' : 'an object'}: use texts`);
    }
    if (key in members) throw new NotJSON(`is a Map with two keys that read '${String(key).slice(0, NAME_CHARS)}'`);
    members[key] = value;
  }
  return members;
}

/** Repeated names have a list. */
function fromPairs(pairs) {
  const members = Object.create(null);
  for (const [name, value] of pairs) {
    if (!(name in members)) members[name] = value;
    else if (Array.isArray(members[name])) members[name].push(value);
    else members[name] = [members[name], value];
  }
  return members;
}

function tagOf(value) {
  return Object.prototype.toString.call(value).slice(8, -1);
}

module.exports = { NotJSON, documentOf, encode, isAnswer };
