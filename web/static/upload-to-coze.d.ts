/** What a page asks a token for. Sent to `POST /token`, or handed to `getToken`. Unset fields are left out. */
export interface TokenRequest {
  size: number;
  file_name: string;
  content_type?: string;
  sensitive?: boolean;
  subject?: string;
  route?: 'auto' | 'direct' | 'proxy';
}

/** The answer of `POST /token`, as it came. */
export interface TokenAnswer {
  route: Route;
  /** Why this route: `small_file`, `large_file`, `sensitive`, … */
  reason: string;
  upload_url: string;
  access_token: string;
  token_type?: string;
  /** Seconds from now. */
  expires_in?: number;
  /** Unix time, in seconds. */
  expires_at?: number;
  scope?: string;
  max_bytes?: number;
  /** Name of the form part that carries the file. */
  field?: string;
  /** With the direct route: where its `file_id` is reported for a receipt, and the credential for that. */
  upload_id?: string;
  complete_url?: string;
  complete_token?: string;
}

export type Route = 'direct' | 'proxy';

export interface RouteChoice {
  route: Route;
  /**
   * The broker's reason. After a fallback: `direct_unreachable` (no answer that the browser would show) or
   * `direct_failed` (Coze answered, but with trouble of its own or with the token).
   */
  reason: string;
  /** True when the direct route failed and the file now goes through the broker. */
  fallback: boolean;
  /** With `fallback`: what went wrong on the direct route. */
  cause?: UploadError;
}

export interface UploadProgress {
  /** Bytes of the file, without the form around it. Starts again from 0 with each attempt. */
  loaded: number;
  total: number;
  /** Whole number; 100 comes once, when the `file_id` is there. */
  percent: number;
}

export interface UploadOptions {
  /** Base URL of the broker. By default the origin that served this module. */
  broker?: string;
  /**
   * Fetches a token through the app's own back end, which calls `POST /token` with its API key. Resolves to the JSON
   * that the broker answered; a problem answer may be passed on as it is and becomes an `UploadError`.
   * Called again for each attempt: a token is good for one.
   */
  getToken?: (request: TokenRequest) => Promise<TokenAnswer>;
  /** For pages without a back end: a publishable key, bound to this page's origin. */
  publishableKey?: string;
  /** Never straight from the browser to Coze. */
  sensitive?: boolean;
  /** Whose file it is, as the app names its users. With `getToken` only: a publishable key can't vouch for anyone. */
  subject?: string;
  /** Wish for a route; the broker's policy decides. Default: auto. */
  route?: 'auto' | 'direct' | 'proxy';
  /** Name for a Blob without one; for a File, in place of its own. */
  fileName?: string;
  signal?: AbortSignal;
  onProgress?: (progress: UploadProgress) => void;
  /** Called once the route is known, and once more on a fallback. */
  onRoute?: (choice: RouteChoice) => void;
}

export interface UploadResult {
  file_id: string;
  file_name: string;
  bytes: number;
  route: Route;
  /**
   * Signed by the broker, for the app's back end, once Coze has confirmed the file. On the direct route it is asked for
   * after the upload, twice at most, 15 s each; `null` where none came, or the signal fired: the file is stored all the
   * same.
   */
  receipt: string | null;
  /** Unix time, in seconds. */
  created_at?: number;
  /** Only on the proxy route. */
  sha256?: string;
  /** Coze's name for its call. */
  logid?: string;
  /** The broker's name for its call. */
  request_id?: string;
}

export interface UploadErrorDetails {
  status?: number;
  retryable?: boolean;
  requestId?: string;
  retryAfterSeconds?: number;
  cause?: unknown;
}

/**
 * Why an upload failed. `message` is a sentence for the user. `code` is the broker's own, `coze_<number>` for a refusal
 * on the direct route, or one of:
 *
 * | code | meaning |
 * |---|---|
 * | `empty_file` | no bytes; nothing was sent |
 * | `unreadable_file` | a folder, or a file that was moved or changed |
 * | `no_credential` | neither `getToken` nor `publishableKey` was given |
 * | `token_failed` | `getToken` threw; see `cause` |
 * | `wrong_route` | a token for the direct route came for a file that must not take it |
 * | `token_used` | `getToken` gave a token that this page had sent before; nothing was sent |
 * | `cors_blocked` | another origin did not answer, or its CORS rules leave this page out: a browser does not tell which |
 * | `connection_lost` | the connection broke; the last byte had not left |
 * | `outcome_unknown` | the whole file was sent and no answer came, of Coze's or, three times over, of the broker's: Coze may hold the file |
 * | `bad_answer` | the answer was not the broker's or Coze's: often a gateway in between |
 * | `aborted` | the signal fired |
 */
export class UploadError extends Error {
  constructor(code: string, message: string, details?: UploadErrorDetails);
  readonly code: string;
  /** HTTP status; 0 where there was no answer. */
  readonly status: number;
  /** Trying again is safe and may help. */
  readonly retryable: boolean;
  /** Name it to support. From the broker, or Coze's log id. */
  readonly requestId?: string;
  readonly retryAfterSeconds?: number;
}

/**
 * Uploads one file to Coze and resolves to its `file_id`. Rejects with an {@link UploadError}.
 *
 * Sent again by itself, always with a fresh token:
 * - from the direct route: once, through the broker, unless Coze refused the file itself. A direct upload whose answer
 *   was lost goes through the broker, too, as the page would never get its `file_id`: Coze may then hold a copy that
 *   nobody uses;
 * - on the proxy route: at most twice, after the broker's own `retryable`, or when no answer came. By its
 *   `Idempotency-Key` it stays one file, however often it is sent.
 *
 * The wait between attempts follows `retry_after_seconds`, up to 10 s.
 */
export function uploadToCoze(file: Blob, options: UploadOptions): Promise<UploadResult>;
export default uploadToCoze;
