// What functions return that is no plain JSON, by the name in the event's body.

import { Readable } from 'node:stream';
import { Response as Shaped } from 'containerpub';

const pairs = [['Set-Cookie', 'a=1'], ['Set-Cookie', 'b=2']];
const dates = [['Set-Cookie', 'a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Path=/'], ['Set-Cookie', 'b=2']];
const bytes = new Uint8Array([0xff, 0]);

const made = {
  map: () => new Map([[1, { deep: new Map([['x', new Set([1])]]) }]]),
  typedArrays: () => [new Float32Array([1, 2.5]), new Uint8Array([1, 2]), new Uint8Array([7]).buffer],
  boxes: () => [new Number(1), new String('text'), new Boolean(false)],
  query: () => new URLSearchParams('a=1&a=2&b=3'),
  headers: () => new Headers({ a: '1' }),
  address: () => new URL('http://example.org/'),
  ownClass: () => new (class Point { x = 1; })(),
  escaped: () => 'C:\\udata',
  fetched: () => new Response('hello', { status: 201, headers: { 'X-A': '1' } }),
  fetchedJson: () => Response.json({ a: 1 }),
  fetchedBytes: () => new Response(bytes),
  fetchedNothing: () => new Response(null, { status: 204 }),
  fetchedCookies: () => new Response('x', { headers: pairs }),
  fetchedDates: () => new Response('x', { headers: dates }),
  fetchedStream: () => new Response(Readable.toWeb(Readable.from([Buffer.from('a'), Buffer.from('b')]))),
  fetchedLarge: () => new Response('x'.repeat(2000)),
  shapedPairs: () => new Shaped(200, pairs, 'x'),
  shapedLists: () => new Shaped(200, { 'Set-Cookie': ['a=1', 'b=2'] }, 'x'),
  shapedMap: () => new Shaped(200, new Map([['A', 1]]), 'x'),
  shapedHeaders: () => new Shaped(200, new Headers({ a: '1' }), 'x'),
  shapedBytes: () => new Shaped(200, {}, bytes),
  shapedText: () => new Shaped(200, {}, Buffer.from('ü')),
  shapedStream: () => new Shaped(200, {}, Readable.from([Buffer.from('a'), Buffer.from('b')])),
  error: () => new Error('went wrong'),
  errorInside: () => ({ items: [1, new TypeError('no')] }),
  pattern: () => ({ a: /x/ }),
  stream: () => ({ a: Readable.from(['x']) }),
  webStream: () => new ReadableStream(),
  boxedNaN: () => [new Number(NaN)],
  arrayNaN: () => ({ 'a b': new Float64Array([1, NaN]) }),
  date: () => ({ at: [new Date(NaN)] }),
  twice: () => new Map([[1, 'a'], ['1', 'b']]),
  objectKey: () => new Map([[{}, 'a']]),
  circle: () => {
    const circle = { a: [] };
    circle.a.push(circle);
    return circle;
  },
  half: () => ({ a: ['\ud800'] }),
  promise: () => [Promise.resolve(1)],
  generator: () => (function* () { yield 1; })(),
  weak: () => ({ a: new WeakMap() }),
  responseInside: () => ({ a: new Response('x') }),
  readBefore: async () => {
    const response = new Response('x');
    await response.text();
    return response;
  },
};

export const handler = (event) => made[event.body]();
