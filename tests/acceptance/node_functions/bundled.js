// As a bundler makes CommonJS of an object that is exported by default: with a getter for each export.
var exported = {};
var define = (target, all) => {
  for (var name in all) Object.defineProperty(target, name, { get: all[name], enumerable: true });
};
define(exported, { default: () => main_default });
module.exports = Object.defineProperty(exported, '__esModule', { value: true });
var main_default = {
  helper: () => 'bundled',
  handler() {
    return this.helper();
  },
};
