'use strict';
// Parses JavaScript files without running any of them.
//
// Runs as `node --no-warnings --experimental-vm-modules --eval SOURCE -- FILES` in the base image, whose Node.js is the one
// that will run them. FILES is a JSON object of texts by path: scripts, modules, and the package.json files that say which
// of the two a .js file is. Prints a JSON list of sentences, `file:line: what`, on stdout.

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path').posix;
const vm = require('node:vm');

const MOST = 20;
const WRAPPED = ['exports', 'require', 'module', '__filename', '__dirname'];
const detects = process.features.require_module !== undefined; // such versions find out by themselves

const files = JSON.parse(fs.readFileSync(process.argv[1], 'utf8'));

/** The `type` of the nearest package.json above, or undefined. */
function typeOf(name) {
  for (let folder = path.dirname(name); ; folder = path.dirname(folder)) {
    const manifest = files[folder === '.' ? 'package.json' : `${folder}/package.json`];
    if (manifest !== undefined) {
      try {
        return JSON.parse(manifest).type;
      } catch {
        return undefined;
      }
    }
    if (folder === '.') return undefined;
  }
}

function asModule(name, source) {
  new vm.SourceTextModule(source, { identifier: name });
}

function asScript(name, source) {
  vm.compileFunction(source.replace(/^#!.*/, ''), WRAPPED, { filename: name });
}

/** The sentence that says what is wrong, or null. */
function problem(name, source) {
  const extension = path.extname(name);
  const type = extension === '.mjs' ? 'module' : extension === '.cjs' ? 'commonjs' : typeOf(name);
  try {
    (type === 'module' ? asModule : asScript)(name, source);
    return null;
  } catch (error) {
    if (type === undefined && isModule(name, source)) {
      if (detects) return null;
      return `${name}:1: it is a module by its content: call it .mjs, or put "type": "module" into package.json`;
    }
    if (error instanceof RangeError) return `${name}:1: nested too deeply to be checked`;
    return `${name}:${lineOf(source, type === 'module' ? '.mjs' : '.cjs')}: ${error.name}: ${error.message}`;
  }
}

/** Where the first mistake is: only the command says so, for modules, at the beginning of its complaint. */
function lineOf(source, extension) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'check-'));
  try {
    const file = path.join(folder, `source${extension}`);
    fs.writeFileSync(file, source);
    const { stderr } = spawnSync(process.execPath, ['--check', file], { encoding: 'utf8', timeout: 10_000 });
    return /^[^\n]*:(\d+)\n/.exec(stderr)?.[1] ?? '1';
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

function isModule(name, source) {
  try {
    asModule(name, source);
    return true;
  } catch {
    return false;
  }
}

const errors = [];
for (const [name, source] of Object.entries(files)) {
  if (path.basename(name) === 'package.json') {
    try {
      JSON.parse(source);
    } catch (error) {
      errors.push(`${name}:1: it is not JSON: ${error.message}`);
    }
    continue;
  }
  const found = problem(name, source);
  if (found !== null) errors.push(found);
  if (errors.length >= MOST) break;
}
fs.writeSync(1, JSON.stringify(errors));
