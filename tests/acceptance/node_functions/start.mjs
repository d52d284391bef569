// What a function sees of the way it was started.

import fs from 'node:fs';
import path from 'node:path';
import v8 from 'node:v8';

export const describe = () => ({
  env: { ...process.env },
  cwd: process.cwd(),
  argv: process.argv,
  execArgv: process.execArgv,
  heap: v8.getHeapStatistics().heap_size_limit,
  hour: new Date(0).getHours(),
  globals: Object.getOwnPropertyNames(globalThis).sort(),
  listeners: process.eventNames().map(String).sort(),
});

function walk(folder, found) {
  for (const entry of fs.readdirSync(folder, { withFileTypes: true })) {
    const file = path.join(folder, entry.name);
    if (entry.isDirectory()) walk(file, found);
    else found[file] = [fs.statSync(file).mode, fs.statSync(file).uid === process.getuid()];
  }
  return found;
}

export const files = () => walk('/function', walk('/node_modules', {}));
