// Functions that the node tests call, good ones and bad ones. Each stands for what a tenant might deploy.

import { spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import net from 'node:net';
import { FunctionError, Response } from 'containerpub';

console.log('imported');
let calls = 0;

const later = (ms) => new Promise((done) => setTimeout(done, ms));

export const echo = (event) => event.body;
export const wholeEvent = (event) => event;
export const nothing = () => {};

export async function asyncEcho(event) {
  await later(5);
  return event.body;
}

export function* notAsync() {}

export const thenable = (event) => ({ then: (done) => setImmediate(done, event.body) });

export const response = () => new Response(201, { 'X-Answer': 42 }, { made: true });

export const likeAResponse = () => ({ status: 201, headers: {}, body: 1 });

export function describeContext(event, context) {
  const { logger, progress, ...told } = context;
  return { ...told, remaining_s: context.remaining_s(), logger: Object.keys(logger) };
}

export async function follow(event, context) {
  console.log('began');
  context.progress(0.5, 'half\ud800');
  for (let number = 0; number < 1000; number++) context.progress(0.6);
  await new Promise((done) => setTimeout(done, event.body * 1000));
  context.progress(1);
  console.log('ended');
}

export function progressWrongly(event, context) {
  return [-0.1, 1.1, NaN, 'half', undefined].map((wrong) => {
    try {
      context.progress(wrong);
      return 'taken';
    } catch (error) {
      return error.name;
    }
  });
}

export const count = () => ++calls;

export function say(event) {
  console.log('out', event.body);
  console.error('err', event.body);
}

export function log(event, context) {
  console.log('before');
  context.logger.debug('first');
  context.logger.info('value is %d', 7, { a: 1 });
  context.logger.warn('careful');
  context.logger.error('broken \ud800 text');
}

export function logMany(event, context) {
  for (let number = 0; number < event.body; number++) context.logger.info('entry', number, 'x'.repeat(100));
}

export const writeBytes = (event) => fs.writeSync(1, Buffer.from(event.body, 'hex'));

export function printByAll() {
  process.stdout.write('stream\n');
  fs.writeSync(1, 'descriptor\n');
  spawnSync('/bin/sh', ['-c', 'echo child; echo child error >&2'], { stdio: 'inherit' });
  console.log('console');
}

export function flood(event) {
  const line = 'x'.repeat(1023) + '\n';
  for (let number = 0; number < event.body * 1024; number++) process.stdout.write(line);
  return 'done';
}

export function lastWords(event) {
  process.stdout.write('y'.repeat(1_000_000));
  process.stdout.write('last words\n');
  process.exit(event.body);
}

export const abort = () => process.abort();
export const killItself = () => process.kill(process.pid, 'SIGKILL');
export const sleep = (event) => later(event.body * 1000);
export const forever = () => new Promise(() => {});

export function ignoreSignals() {
  for (const name of ['SIGTERM', 'SIGINT', 'SIGHUP']) process.on(name, () => {});
  console.log('still here');
  for (;;);
}

export function hogHeap() {
  const held = [];
  for (;;) held.push(new Array(1000).fill({}));
}

export function hogBuffers() {
  const held = [];
  for (;;) held.push(Buffer.alloc(1024 * 1024, 1));
}

export function churn(event) {
  let total = 0;
  for (let number = 0; number < event.body; number++) total += new Array(10_000).fill(number).length;
  return total;
}

export function fail() {
  try {
    JSON.parse('{');
  } catch (error) {
    throw new TypeError('outer', { cause: error });
  }
}

export async function failLater() {
  await later(1);
  throw new RangeError('too far');
}

export const failOnPurpose = () => {
  throw new FunctionError('no such customer');
};

export const failAndWish = (event) => {
  throw new FunctionError('busy', event.body);
};

export const throwAnything = (event) => {
  throw { text: 'a string', nothing: undefined, null: null, surrogate: new Error('lone \ud800'), number: 7,
    unreadable: Object.defineProperty(new Error('x'), 'message', { get() { throw new Error('no'); } }) }[event.body];
};

export const failUnhandled = async () => {
  Promise.reject(new Error('nobody waits for this'));
  await later(1000);
};

export const failAfterwards = () => {
  setTimeout(() => Promise.reject(new Error('too late')), 20);
  return 'for now';
};

export const exitAfterwards = () => {
  setTimeout(() => process.exit(9), 20);
  return 'for now';
};

/** Results that JSON cannot say, by name. */
export function give(event) {
  const circle = [];
  circle.push(circle);
  let deep = [];
  for (let number = 0; number < 100_000; number++) deep = [deep];
  return {
    nan: NaN,
    infinity: Infinity,
    nanInside: { a: [1, NaN] },
    bigint: 1n,
    function: () => {},
    symbol: { a: Symbol('x') },
    promise: [later(1)],
    surrogate: '\ud800',
    circle,
    deep,
    throwing: { toJSON() { throw new Error('no'); } },
  }[event.body];
}

export const dates = () => ({ at: new Date(0), gone: undefined, bytes: [undefined] });
export const large = (event) => 'x'.repeat(event.body);
export const environment = () => ({ ...process.env });
export const readOwnData = () => fs.readFileSync('data.txt', 'utf8');

export function descriptors() {
  const found = {};
  for (const entry of fs.readdirSync('/proc/self/fd')) {
    try {
      found[entry] = fs.readlinkSync(`/proc/self/fd/${entry}`);
    } catch {
      // The descriptor of the listing itself.
    }
  }
  return found;
}

/** The number of the connection that is neither stdout nor stderr. */
function controlDescriptor() {
  return Number(Object.entries(descriptors()).find(([fd, target]) => fd > 2 && target.startsWith('socket:'))[0]);
}

export function writeToControl(event) {
  fs.writeSync(controlDescriptor(), Buffer.from(event.body, 'hex'));
  return 'unharmed';
}

export function forgeOnStdout() {
  const body = '{"nonce":"0000000000000000","kind":"result","response":false,"cpu_ms":0,"peak_memory_bytes":0}\n"forged"';
  const length = Buffer.alloc(4);
  length.writeUInt32BE(body.length);
  fs.writeSync(1, Buffer.concat([length, Buffer.from(body)]));
  return 'real';
}

export function closeOutput() {
  fs.closeSync(1);
  fs.closeSync(2);
  console.log('nobody reads this');
  console.error('nor this');
  return 'quiet';
}

export function leaveChildBehind() {
  spawn('/bin/sleep', ['600'], { detached: true, stdio: 'ignore' }).unref();
  return 'gone';
}

export function forkBomb() {
  const children = [];
  let failed = null;
  return new Promise((done) => {
    const more = () => {
      const child = spawn('/bin/sleep', ['60'], { stdio: 'ignore' });
      child.on('error', (error) => {
        failed ??= error.code;
        for (const one of children) one.kill('SIGKILL');
        done([children.length, failed]);
      });
      child.on('spawn', () => {
        children.push(child);
        if (children.length < 200) more();
      });
    };
    more();
  });
}

export function connect(event) {
  const [host, port] = event.body;
  return new Promise((done) => {
    const socket = net.connect({ host, port, timeout: 1000 });
    socket.on('connect', () => done('connected'));
    socket.on('error', (error) => done(error.code));
    socket.on('timeout', () => done('timeout'));
  });
}

export function writeFile(event) {
  try {
    fs.writeFileSync(event.body, 'x');
    return null;
  } catch (error) {
    return error.code;
  }
}
