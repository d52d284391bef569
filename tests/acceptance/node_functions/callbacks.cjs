// Handlers that answer by a callback, in all the ways in which they are declared.

const later = (done, ...given) => setTimeout(() => done(...given), 10);

exports.handler = (event, context, callback) => {
  later(callback, null, { ok: true });
};
exports.timer = (event, context, callback) => setTimeout(() => callback(null, event.body), 10);
exports.atOnce = function (event, context, callback) {
  return callback(null, 'at once');
};
exports.withDefault = (event, context, callback = () => {}) => {
  later(callback, undefined, 'default');
};
exports.withDefaults = (event, context = {}, callback) => {
  later(callback, null, 'defaults');
};
exports.nothing = (event, context, callback) => {
  later(callback);
};
exports.twice = (event, context, callback) => {
  callback(null, 'first');
  callback(null, 'second');
};
exports.unused = (event, context, callback) => ({ returned: true });
exports.promised = async (event, context, callback) => 'promised';
exports.fails = (event, context, callback) => {
  later(callback, new TypeError('told'));
};
exports.failsByText = (event, context, callback) => {
  later(callback, 'only text');
};
exports.throws = (event, context, callback) => {
  throw new RangeError('thrown');
};
