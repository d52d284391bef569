import { execFileSync, spawn } from 'node:child_process';
import dns from 'node:dns/promises';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';

console.log('imported');

let count = 0;

const MIB = 1024 ** 2;

const tries = {
  write(path) {
    fs.writeFileSync(path, 'x');
    return 'written';
  },
  fill([path, megabytes]) {
    const file = fs.openSync(path, 'w');
    try {
      for (let done = 0; done < megabytes * MIB;) done += fs.writeSync(file, Buffer.alloc(MIB, 1), 0, MIB);
    } finally {
      fs.closeSync(file);
    }
    return 'written';
  },
  fill_folder([folder, megabytes]) {
    for (let number = 0; number < megabytes; number += 16) tries.fill([`${folder}/${number}`, 16]);
    return 'written';
  },
  files([folder, most]) {
    fs.mkdirSync(folder, { recursive: true });
    for (let number = 0; number < most; number++) {
      try {
        fs.writeFileSync(`${folder}/${number}`, '');
      } catch (error) {
        return [number, error.code];
      }
    }
    return [most, null];
  },
  exists: (path) => fs.existsSync(path),
  run_file(path) {
    fs.writeFileSync(path, '#!/bin/sh\nexit 0\n', { mode: 0o755 });
    execFileSync(path);
    return 0;
  },
  folder: () => process.cwd(),
  identity() {
    const user = os.userInfo();
    return { uid: user.uid, gid: user.gid, name: user.username, home: user.homedir };
  },
  environment: () => ({ ...process.env }),
  time: () => [Intl.DateTimeFormat().resolvedOptions().timeZone, Date.now() / 1000],
  stdin: () => fs.readFileSync(0, 'utf8'),
  async resolve(name) {
    try {
      const found = await dns.lookup(name, { all: true });
      return [...new Set(found.map((one) => one.address))].sort();
    } catch {
      return 'unknown';
    }
  },
  connect: ([host, port]) => new Promise((resolve, reject) => {
    const socket = net.connect({ host, port, timeout: 2000 });
    socket.once('connect', () => { socket.destroy(); resolve('connected'); });
    socket.once('error', reject);
    socket.once('timeout', () => { socket.destroy(); resolve('ETIMEDOUT'); });
  }),
  listen: () => new Promise((resolve, reject) => {
    const server = net.createServer((peer) => peer.once('data', (data) => {
      peer.destroy();
      server.close(() => resolve(data.toString()));
    }));
    server.once('error', reject);
    server.listen(0, 'localhost', () => net.connect(server.address().port, 'localhost').end('x'));
  }),
  async processes() {
    const started = [];
    const failed = await new Promise((resolve) => {
      const next = () => {
        if (started.length === 200) return resolve(null);
        try {
          const child = spawn('sleep', ['60'], { stdio: 'ignore' });
          child.once('error', (error) => resolve(error.code));
          child.once('spawn', () => { started.push(child); next(); });
        } catch (error) {
          resolve(error.code);
        }
      };
      next();
    });
    await Promise.all(started.map((child) => new Promise((resolve) => {
      child.once('exit', resolve);
      child.kill('SIGKILL');
    })));
    return [started.length, failed];
  },
  descriptors() {
    const opened = [];
    try {
      for (;;) opened.push(fs.openSync('/dev/null', 'r'));
    } catch (error) {
      return [opened.length, error.code];
    } finally {
      for (const one of opened) fs.closeSync(one);
    }
  },
  seen_processes: () => fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name)).map(Number).sort((a, b) => a - b),
  allocate: (megabytes) => Buffer.alloc(megabytes * MIB, 1).length,
  remember: () => ++count,
  async sleep_deaf(seconds) {
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) process.on(signal, () => console.log('warned'));
    console.log('sleeping');
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    return 'slept';
  },
  print() {
    console.log('to stdout');
    console.error('to stderr');
    return null;
  },
};

export async function handler(event) {
  try {
    return await tries[event.body.do](event.body.with);
  } catch (error) {
    if (!error.code) throw error;
    return error.code;
  }
}
