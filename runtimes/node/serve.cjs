'use strict';
// The node runtime inside a sandbox: connects to the worker, imports the function, serves calls one by one.
//
// Started as a generic sandbox it connects, loads what most functions need, and waits to be told which function it is.
//
// Only what Node.js 18 brings. worker/sandbox/wire.py describes what is exchanged and worker/sandbox/attach.py how the
// connections are made. Function code shares this process: nothing kept here is secret from it, and the worker trusts
// nothing that comes from here.

const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const { Writable } = require('node:stream');
const { pathToFileURL } = require('node:url');
const { describe, printable, wishOf } = require('./errors.cjs');
const { findHandler } = require('./handler.cjs');
const { documentOf, encode, isAnswer } = require('./result.cjs');

const PREFIX = 'CONTAINERPUB_ATTACH_';
const READY_NONCE = '0'.repeat(16);
const REPORT_EVERY_MS = 50;
const REPORT_CHARS = 1024;
// More open files than after the import that a function may keep: clients that it opens lazily and uses again. One that
// leaks is replaced at this point, far from where opening fails.
const KEPT_DESCRIPTORS = 32;
// What a generic sandbox loads before it meets its function: what most functions import, or serving one needs. Each is Node.js's
// own, under names that a function's modules cannot have.
const MOST_WANTED = ['buffer', 'crypto', 'events', 'fs/promises', 'module', 'stream', 'timers/promises', 'util'];
const pause = new Int32Array(new SharedArrayBuffer(4));

/** Write all of `data` before returning, so that it is kept whatever ends the process next. */
function writeAll(fd, data) {
  let wait = 0.05;
  for (let at = 0; at < data.length; ) {
    try {
      at += fs.writeSync(fd, data, at);
      wait = 0.05;
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
      Atomics.wait(pause, 0, 0, wait);
      wait = Math.min(wait * 2, 2);
    }
  }
}

function connect(address, role, token) {
  const socket = net.connect(address);
  // A Unix socket is connected, or refused, when connect() returns; the event comes later.
  socket.on('error', () => process.reallyExit(1));
  writeAll(socket._handle.fd, Buffer.from(`${role.padEnd(7)} ${token}`));
  return socket;
}

/**
 * Connect, and be the descriptor `fd`: there is no dup2, but a new socket takes the lowest number that is free. So native
 * code, V8's last words and child processes that inherit it write there too. Blocking, as writers of it expect.
 */
function redirect(fd, address, role, token) {
  fs.closeSync(fd);
  const socket = connect(address, role, token);
  if (socket._handle.fd !== fd) throw new Error(`${role} became descriptor ${socket._handle.fd}`);
  socket._handle.setBlocking(true);
  socket.removeAllListeners('error');
  socket.on('error', () => {});
  // Takes the handle away from the event loop; libuv leaves descriptors up to 2 open.
  socket.destroy();
}

/** `process.stdout` and `process.stderr`: every write is through when it returns. */
function standardStream(name, fd) {
  let stream;
  Object.defineProperty(process, name, {
    configurable: true,
    enumerable: true,
    get() {
      stream ??= Object.assign(
        new Writable({
          decodeStrings: true,
          write(chunk, _, done) {
            try {
              writeAll(fd, chunk);
            } catch {
              // The function closed it, which is its good right.
            }
            done();
          },
          destroy(_, done) {
            done();
          },
        }),
        { fd, _isStdio: true },
      );
      return stream;
    },
  });
}

/** The control connection. */
class Channel {
  #socket;
  #fd;
  #received = Buffer.alloc(0);
  #waiting = [];
  #onFrame = null;

  constructor(socket) {
    this.#socket = socket;
    this.#fd = socket._handle.fd;
    // Whoever hangs up on us does not want anything any more.
    for (const event of ['end', 'close']) socket.on(event, () => process.reallyExit(0));
  }

  /** From now on `onFrame` gets what arrives. The worker sends nothing before the last frame was answered. */
  listen(onFrame) {
    const first = this.#onFrame === null;
    this.#onFrame = onFrame;
    if (!first) return;
    this.#socket.on('data', (data) => {
      this.#waiting.push(data);
      let size = this.#received.length;
      for (const part of this.#waiting) size += part.length;
      const head = this.#received.length >= 4 ? this.#received : (this.#received = this.#join());
      if (head.length < 4 || size < 4 + head.readUInt32BE(0)) return;
      const whole = this.#join();
      const end = 4 + whole.readUInt32BE(0);
      this.#received = whole.subarray(end);
      this.#onFrame(JSON.parse(whole.toString('utf8', 4, end)));
    });
  }

  #join() {
    const whole = Buffer.concat([this.#received, ...this.#waiting]);
    this.#waiting = [];
    return whole;
  }

  /** `meta` must begin with its nonce; `result` is JSON text. */
  send(meta, result = null) {
    const head = JSON.stringify(meta);
    const text = result === null ? head : `${head}\n${result}`;
    const size = Buffer.byteLength(text);
    const frame = Buffer.allocUnsafe(4 + size);
    frame.writeUInt32BE(size, 0);
    frame.write(text, 4);
    writeAll(this.#fd, frame);
  }
}

/** Where `context.logger` writes: frames of the call that runs, up to its log limit. */
class CallLog {
  nonce = '';
  room = 0;
  #channel;
  reportedAt = -Infinity;

  constructor(channel) {
    this.#channel = channel;
    this.logger = Object.freeze({
      debug: (...args) => this.#write('debug', args),
      info: (...args) => this.#write('info', args),
      warn: (...args) => this.#write('warning', args),
      error: (...args) => this.#write('error', args),
    });
  }

  #write(level, args) {
    // The message that passes the limit is still sent (cut): from it the worker knows that something is missing.
    if (this.room < 0 || !this.nonce) return;
    const message = printable(require('node:util').format(...args)).slice(0, this.room + 1);
    this.room -= Math.max(message.length, 1);
    this.#channel.send({ nonce: this.nonce, kind: 'log', level, message });
  }

  report(fraction, message = '') {
    if (!(fraction >= 0 && fraction <= 1)) {
      throw new RangeError(`progress is a fraction from 0 to 1, not ${fraction}`);
    }
    const now = performance.now();
    if (!this.nonce || (now - this.reportedAt < REPORT_EVERY_MS && fraction < 1)) return;
    this.reportedAt = now;
    const words = printable(String(message)).slice(0, REPORT_CHARS);
    this.#channel.send({ nonce: this.nonce, kind: 'progress', fraction: Number(fraction), message: words });
  }
}

/** Notices what calls leave behind that would disturb later ones. What is there after the import may stay. */
class Residue {
  #processes = new Set(processes());
  #newest = newestProcess();
  #descriptors = openDescriptors();

  /** What kind of thing the last call left, or null. */
  found() {
    // Most calls start nothing, which is cheaper to see than what there is.
    const newest = newestProcess();
    if (newest === '' || newest !== this.#newest) {
      const family = [String(process.pid), String(process.ppid)];
      for (const one of processes()) {
        if (!this.#processes.has(one) && family.includes(parentOf(one))) return 'processes';
      }
      this.#newest = newest;
    }
    return openDescriptors() > this.#descriptors + KEPT_DESCRIPTORS ? 'descriptors' : null;
  }
}

function read(file) {
  try {
    return fs.readFileSync(file, 'latin1');
  } catch {
    return ''; // there is no such process any more, or no /proc
  }
}

function list(folder) {
  try {
    return fs.readdirSync(folder);
  } catch {
    return [];
  }
}

const openDescriptors = () => list('/proc/self/fd').length;
const processes = () => list('/proc').filter((name) => name >= '1' && name < ':');
/** Its number is the last word in this file; threads have numbers too. */
const newestProcess = () => read('/proc/loadavg').trim().split(' ').pop();
/** The name before the last parenthesis may hold anything; state and parent follow it. */
const parentOf = (pid) => read(`/proc/${pid}/stat`).split(')').pop().split(' ')[2];

/** CPU time of this process in ms. */
function cpuMs() {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/** Run one call; the frame to send for it. */
async function answer(handler, call, context, folder) {
  const meta = { nonce: call.nonce, kind: 'error' };
  let result = null;
  const before = cpuMs();
  try {
    let returned = await handler(call.event, context);
    try {
      meta.response = isAnswer(returned);
      if (meta.response) returned = await documentOf(returned, call.max_result_bytes);
      result = encode(returned);
      meta.kind = 'result';
    } catch (error) {
      const message = `the result is not JSON: ${describe(error, folder).message}`;
      Object.assign(meta, { reason: 'invalid_result', error: { type: 'InvalidResult', message } });
    }
    const size = result === null ? 0 : Buffer.byteLength(result);
    if (size > call.max_result_bytes) {
      const message = `the result has ${size} bytes, the limit is ${call.max_result_bytes}`;
      Object.assign(meta, { kind: 'error', reason: 'result_too_large', error: { type: 'ResultTooLarge', message } });
      result = null;
    }
  } catch (error) {
    Object.assign(meta, { reason: 'handler_error', error: describe(error, folder) });
    const wish = wishOf(error);
    if (wish !== undefined) meta.retry = wish;
  }
  meta.cpu_ms = Math.max(0, cpuMs() - before);
  meta.peak_memory_bytes = process.resourceUsage().maxRSS * 1024;
  return [meta, result];
}

/** Take the names that are the platform's out of an environment. */
function takeGiven(environment) {
  const given = {};
  for (const name of Object.keys(environment)) {
    if (!name.startsWith(PREFIX)) continue;
    given[name.slice(PREFIX.length)] = environment[name];
    delete environment[name];
  }
  return given;
}

/** Wait as a generic sandbox; then the environment is the function's, and the names that are the platform's are returned. */
async function beSpecialized(channel) {
  for (const name of MOST_WANTED) require(`node:${name}`);
  await import(pathToFileURL(path.join(__dirname, 'warm.mjs')));
  const environment = await new Promise((resolve) => {
    channel.listen((told) => {
      if (told.kind === 'look') {
        const seen = Object.fromEntries(told.paths.map((one) => [one, read(one).slice(0, 256)]));
        channel.send({ nonce: READY_NONCE, kind: 'seen', seen });
      } else {
        resolve(told.environment);
      }
    });
  });
  const given = takeGiven(environment);
  process.chdir(given.FOLDER ?? '/function');
  // What the engine and the shell have set.
  for (const [name, value] of [['HOSTNAME', process.env.HOSTNAME], ['PWD', process.cwd()]]) {
    if (name in process.env) environment[name] ??= value;
  }
  for (const name of Object.keys(process.env)) if (!(name in environment)) delete process.env[name];
  Object.assign(process.env, environment);
  return given;
}

async function main() {
  let given = takeGiven(process.env);
  const control = connect(given.ADDRESS, 'control', given.TOKEN);
  redirect(1, given.ADDRESS, 'stdout', given.TOKEN);
  redirect(2, given.ADDRESS, 'stderr', given.TOKEN);
  standardStream('stdout', 1);
  standardStream('stderr', 2);

  const channel = new Channel(control);
  if ('GENERIC' in given) given = await beSpecialized(channel);
  const folder = given.FOLDER ?? '/function';
  const log = new CallLog(channel);
  let handler;
  try {
    handler = await findHandler(given.HANDLER, folder);
  } catch (error) {
    // Whatever it is, each call reports it.
    handler = () => {
      throw error;
    };
  }
  const residue = new Residue();
  channel.listen(serve);
  channel.send({ nonce: READY_NONCE, kind: 'ready' });

  async function serve(call) {
    log.nonce = call.nonce;
    log.room = call.max_log_bytes;
    log.reportedAt = -Infinity;
    const context = {
      job_id: call.job_id,
      attempt: call.attempt,
      function: given.FUNCTION,
      version: Number(given.VERSION),
      deadline: call.deadline,
      logger: log.logger,
      progress: (fraction, message) => log.report(fraction, message),
      remaining_s: () => Math.max(0, call.deadline - Date.now() / 1000),
    };
    const [meta, result] = await answer(handler, call, context, folder);
    log.nonce = '';
    const left = residue.found();
    if (left !== null) meta.residue = left;
    channel.send(meta, result);
  }
}

main();
