'use strict';
// The function's handler: how it is found, and how it is called.

const fs = require('node:fs');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const { isPromise } = require('node:util').types;
const { NoHandler } = require('./errors.cjs');

const EXTENSIONS = ['.mjs', '.js', '.cjs'];
const DEFAULT_MODULES = ['main', 'index'];
// A list of parameters whose first two have defaults, which keeps the third from being counted.
const THIRD_AFTER_DEFAULTS =
  /^(?:async\b)?\s*(?:function\b\s*)?[\w$]*\s*\(\s*[\w$]+\s*(?:=[^,()]*)?,\s*[\w$]+\s*(?:=[^,()]*)?,\s*[\w$]+\s*[,)=]/;

/** The file that `module` names in `folder`, or null. */
function findFile(folder, module) {
  const names = EXTENSIONS.includes(path.extname(module)) ? [module] : EXTENSIONS.map((one) => module + one);
  names.push(...EXTENSIONS.map((one) => `${module}/index${one}`));
  for (const name of names) {
    const file = path.join(folder, name);
    if (file.startsWith(folder + path.sep) && fs.statSync(file, { throwIfNoEntry: false })?.isFile()) return file;
  }
  return null;
}

/**
 * What `module:name` means, to be called with event and context. Without a name it is the export `handler`, or else the
 * default one.
 */
async function findHandler(setting, folder) {
  const at = setting.lastIndexOf(':');
  const wanted = at < 0 ? setting : setting.slice(0, at);
  const name = at < 0 ? '' : setting.slice(at + 1);
  const modules = wanted ? [wanted] : DEFAULT_MODULES;
  const module = modules.find((one) => findFile(folder, one) !== null);
  if (module === undefined) {
    throw new NoHandler(`there is no module '${modules[0]}' for the handler '${setting}' in the function's folder`);
  }
  const places = placesOf(await import(pathToFileURL(findFile(folder, module))));
  const found = places.map((place) => member(place, name || 'handler')).filter((one) => typeof one[1] === 'function');
  if (found.length > 0) {
    const [[owner, handler]] = found;
    // A method of what the module exports is found as an export by itself too, where `this` would be lost.
    const whole = owner === places[0] ? found.slice(1).find((one) => one[1] === handler)?.[0] : owner;
    return asCalled(handler, whole);
  }
  const bare = places.find((one) => typeof one === 'function');
  if (bare !== undefined && (name === '' || name === 'handler')) return asCalled(bare, undefined);
  const what = name ? `function '${name}'` : "function that is called 'handler' or the default";
  throw new NoHandler(`the module '${module}' exports no ${what}`);
}

/**
 * Where a module's exports may be. What a CommonJS module exports is the default; some of it has names as well. If compilers or
 * bundlers made it of an ES module, the default export is a member of that.
 */
function placesOf(exported) {
  const whole = exported.default;
  return [exported, whole, whole?.default].filter((one) => one !== null && one !== undefined);
}

/** What the dotted `name` says in `place`, and what that is a member of. */
function member(place, name) {
  let [owner, found] = [undefined, place];
  for (const part of name.split('.')) [owner, found] = [found, found?.[part]];
  return [owner, found];
}

/** `handler`, as a method of `owner`, with event and context. */
function asCalled(handler, owner) {
  if (handler.length >= 3 || THIRD_AFTER_DEFAULTS.test(Function.prototype.toString.call(handler))) {
    return (event, context) => calledBack(handler, owner, event, context);
  }
  return owner === undefined ? handler : (event, context) => handler.call(owner, event, context);
}

/**
 * A handler that declares a callback: its result is what that gets first, or what a promise that it returns is fulfilled with.
 * A timer, a request or a boolean that it returns by the way is no result; an object, a list or a text is one.
 */
function calledBack(handler, owner, event, context) {
  return new Promise((done, failed) => {
    const callback = (error, result) => (error === null || error === undefined ? done(result) : failed(error));
    const returned = handler.call(owner, event, context, callback);
    if (isResult(returned)) done(returned);
  });
}

function isResult(value) {
  if (typeof value === 'string' || Array.isArray(value) || isPromise(value)) return true;
  if (value === null || typeof value !== 'object') return false;
  const parent = Object.getPrototypeOf(value);
  return (
    parent === Object.prototype ||
    parent === null ||
    typeof value.then === 'function' ||
    Symbol.for('containerpub.response') in value ||
    Object.prototype.toString.call(value) === '[object Response]'
  );
}

module.exports = { findHandler };
