function prepare() {
  throw new ReferenceError('no such thing');
}
prepare();
export const handler = () => 1;
