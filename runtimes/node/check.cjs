'use strict';
// Parses JavaScript files without running any of them.
//
// Runs as `node --no-warnings --experimental-vm-modules --eval SOURCE -- FILES ENTRY` in the base image, whose Node.js is the one
// that will run them. FILES is a JSON object of texts by path: scripts, modules, and the package.json files that say which
// of the two a .js file is. Prints two lines on stdout, each a JSON list of sentences, `file:line: what`: errors of ENTRY, which is
// the handler's file, and of what is imported together with it; then warnings of all others, which may never be run.

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path').posix;
const vm = require('node:vm');

const MOST = 20;
const WRAPPED = ['exports', 'require', 'module', '__filename', '__dirname'];
const detects = process.features.require_module !== undefined; // such versions find out by themselves

const EXTENSIONS = ['', '.js', '.cjs', '.mjs', '/index.js', '/index.cjs', '/index.mjs'];
// A statement of a script that begins its line is run with the script; what is indented may be inside a function.
const REQUIRED = /^(?![\s/*]).*?\brequire\(\s*(['"])(\.[^'"\n]*)\1\s*\)/gm;

// Without the names that every object has: a file may be called like one.
const files = Object.assign(Object.create(null), JSON.parse(fs.readFileSync(process.argv[1], 'utf8')));
const entry = process.argv[2];

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
  return new vm.SourceTextModule(source, { identifier: name });
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

/** The files that are imported together with `name`, itself and the package.json files that are read for it included. */
function neededBy(name) {
  const needed = new Set();
  const pending = [name];
  while (pending.length > 0) {
    const one = pending.pop();
    if (files[one] === undefined || needed.has(one)) continue;
    needed.add(one);
    for (let folder = path.dirname(one); ; folder = path.dirname(folder)) {
      const manifest = path.join(folder, 'package.json');
      if (files[manifest] !== undefined) {
        needed.add(manifest);
        break;
      }
      if (folder === '.') break;
    }
    for (const wanted of importsOf(one, files[one])) {
      if (!/^\.{1,2}(\/|$)/.test(wanted)) continue;
      const base = path.join(path.dirname(one), wanted);
      const found = EXTENSIONS.map((extension) => base + extension).find((file) => files[file] !== undefined);
      if (found !== undefined) pending.push(found);
    }
  }
  return needed;
}

/** What a file names that it imports, whenever it is run itself. */
function importsOf(name, source) {
  try {
    const module = asModule(name, source);
    const imports = module.moduleRequests?.map((one) => one.specifier) ?? module.dependencySpecifiers;
    if (imports.length > 0) return imports;
  } catch {
    // A script, or neither.
  }
  return [...source.matchAll(REQUIRED)].map((found) => found[2]);
}

/** The sentence that says what is wrong with a file, or null. */
function check(name) {
  if (path.basename(name) !== 'package.json') return problem(name, files[name]);
  try {
    JSON.parse(files[name]);
    return null;
  } catch (error) {
    return `${name}:1: it is not JSON: ${error.message}`;
  }
}

/** The sentences about `names`, a line of JSON. */
function tell(names) {
  const found = [];
  for (const name of names) {
    const sentence = check(name);
    if (sentence !== null) found.push(sentence);
    if (found.length >= MOST) break;
  }
  fs.writeSync(1, `${JSON.stringify(found)}\n`);
}

const needed = neededBy(entry);
tell(needed);
tell(Object.keys(files).filter((name) => !needed.has(name)));
