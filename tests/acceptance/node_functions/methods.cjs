module.exports = {
  helper: () => 'helped',
  handler() {
    return this.helper();
  },
  called(event, context, callback) {
    setTimeout(() => callback(null, this.helper()), 1);
  },
};
