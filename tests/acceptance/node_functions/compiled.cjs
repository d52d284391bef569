// As compilers make CommonJS of `export default`.
Object.defineProperty(exports, '__esModule', { value: true });
exports.default = async () => 'compiled';
exports.named = async () => 'named';
