import { Response } from 'containerpub';
import semver from 'semver';

export function handler(event) {
  const { versions, range } = event.body ?? {};
  if (!Array.isArray(versions) || semver.validRange(range) === null) {
    return new Response(422, {}, { error: 'give a list of versions and a range' });
  }
  return { newest: semver.maxSatisfying(versions, range), sorted: semver.sort(versions.filter(semver.valid)) };
}
