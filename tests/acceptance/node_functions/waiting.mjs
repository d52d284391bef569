const { readFile } = await import('node:fs/promises');
const text = await readFile('data.txt', 'utf8');
export const handler = () => text;
