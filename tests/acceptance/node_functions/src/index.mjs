export const handler = (event) => ['in a folder', event.body];
