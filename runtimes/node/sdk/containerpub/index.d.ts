/** An HTTP answer shaped by the function. */
export class Response {
  /** A list of values, or pairs, where a name is repeated. The body is text, bytes, a stream of bytes, or any JSON. */
  constructor(
    status?: number,
    headers?: Record<string, string | string[]> | Iterable<readonly [string, string]>,
    body?: unknown,
  );
  readonly status: number;
  /** Pairs where a name is repeated. */
  readonly headers: Record<string, string> | [string, string][];
  readonly body: unknown;
}

/** Throw it to fail a call on purpose: the caller gets its message, without a stack. */
export class FunctionError extends Error {
  constructor(message?: string, options?: { retry?: boolean; retryAfterS?: number; cause?: unknown });
  /** False if trying again would be of no use. */
  retry: boolean;
  /** Seconds until the next attempt, a day at most. */
  retryAfterS?: number;
}

/** What a call was made with. */
export interface Event {
  body: any;
  query: Record<string, string>;
  headers: Record<string, string>;
  method: string;
  path: string;
}

/** Stored with the call, level by level; takes what `console.log` takes. */
export interface Logger {
  debug(...args: unknown[]): void;
  info(...args: unknown[]): void;
  warn(...args: unknown[]): void;
  error(...args: unknown[]): void;
}

/** Second argument of a handler. */
export interface Context {
  /** The same for every attempt, so it serves as an idempotency key. */
  readonly job_id: string;
  /** 1 for the first delivery of the job. */
  readonly attempt: number;
  readonly function: string;
  readonly version: number;
  /** Unix seconds after which the call is killed. */
  readonly deadline: number;
  readonly logger: Logger;
  /** Tell the job's subscribers how far the call is: from 0 to 1, and a few words. */
  progress(fraction: number, message?: string): void;
  /** Seconds until the deadline, never below zero. */
  remaining_s(): number;
}

/** What a handler that declares a third parameter may answer with. */
export type Callback = (error?: unknown, result?: unknown) => void;

export type Handler = (event: Event, context: Context, callback: Callback) => unknown;
