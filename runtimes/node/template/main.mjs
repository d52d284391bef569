/** `event` has body, query, headers, method and path; whatever JSON can say may be returned. */
export async function handler(event, context) {
  const name = event.body?.name ?? 'world';
  context.logger.info('greeting %s', name);
  return { greeting: `Hello, ${name}!` };
}
