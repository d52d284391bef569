export default {
  helper: () => 'helped',
  handler() {
    return this.helper();
  },
};
