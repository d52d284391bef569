export default async function (event) {
  return ['default', event.body];
}
