// A CommonJS module, since no package.json says otherwise.
const { Response } = require('containerpub');

exports.handler = (event, context) => ['plain', event.body, context.function];
exports.nested = { deep: { run(event) { return [this === exports.nested.deep, event.body]; } } };
exports.shaped = () => new Response(202, {}, 'text');
