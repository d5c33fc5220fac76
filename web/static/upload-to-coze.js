/**
 * Sends a file to Coze by the route of the broker's choice; the `.d.ts` tells when it is sent again.
 *
 * @import { UploadOptions, UploadResult, UploadErrorDetails, TokenAnswer } from './upload-to-coze.js'
 * @typedef {UploadOptions & { file: Blob, name: string, broker: string, key: string }} Job
 * @typedef {{ url: string, status: number, body?: any, id?: string, moved?: boolean, sent?: boolean }} Answer
 * @typedef {{ result?: UploadResult, error?: any, again?: boolean }} Verdict
 */

/** @type {Record<number, string>} */
const REFUSALS = {
  4000: 'Coze did not accept the name or content of the file. Does the extension match?',
  4302: 'The file is too large for Coze.',
  4303: 'Coze does not take this type of file.',
  4304: 'Coze cannot read the file.',
};
/** Token, quota or Coze itself: the broker may do better. */
const TROUBLE = [4008, 4009, 4013, 4100, 4101, 4102, 5000, 700012006];

/** Tokens of the proxy route, each good once. */
const spent = new Set();

export class UploadError extends Error {
  /** @param {string} code @param {string} message @param {UploadErrorDetails} [details] */
  constructor(code, message, { status = 0, retryable = false, requestId, retryAfterSeconds, cause } = {}) {
    super(message, { cause });
    Object.assign(this, { name: 'UploadError', code, status, retryable, requestId, retryAfterSeconds });
  }
}

/** @param {Blob} file @param {UploadOptions} options @returns {Promise<UploadResult>} */
export async function uploadToCoze(file, options) {
  const total = file.size;
  if (!total) throw new UploadError('empty_file', 'The file is empty.');
  const broker = (options.broker ?? new URL(import.meta.url).origin).replace(/\/+$/, '');
  const name = options.fileName || /** @type {File} */ (file).name || 'upload';
  const key = crypto.getRandomValues(new Uint32Array(4)).join('-');
  const job = { ...options, file, name, broker, key };

  let doubt;
  try {
    let grant = await mint(job, job.route);
    job.onRoute?.({ route: grant.route, reason: grant.reason, fallback: false });
    for (let retries = 0; ; ) {
      const direct = grant.route === 'direct';
      const answer = await send(job, grant);
      const { result, error, again } = (direct ? readDirect : readProxy)(answer, job);
      if (result) {
        if (grant.complete_url) {
          const request = JSON.stringify({ file_id: result.file_id });
          // Stored is stored, with a receipt or without.
          const { body } = await post(job, grant.complete_url, grant.complete_token, request).catch(() => ({}));
          result.receipt = body?.receipt ?? null;
        }
        job.onProgress?.({ loaded: total, total, percent: 100 });
        return result;
      }
      if (error.code === 'outcome_unknown') doubt = error;
      if (!again || retries > 1) throw error;
      if (!direct) await pause(job, ++retries, error.retryAfterSeconds);
      grant = await mint(job, 'proxy');
      const reason = answer.status ? 'direct_failed' : 'direct_unreachable';
      if (direct) job.onRoute?.({ route: 'proxy', reason, fallback: true, cause: error });
    }
  } catch (error) {
    throw error.code === 'aborted' ? error : doubt ?? error;
  }
}

export default uploadToCoze;

/** @param {Job} job @param {UploadOptions['route']} route @returns {Promise<TokenAnswer>} */
async function mint(job, route) {
  const { file, name, broker, getToken, publishableKey, sensitive, subject } = job;
  await file.slice(0, 1).arrayBuffer().catch((cause) => {
    throw new UploadError('unreadable_file', 'The browser cannot read this file. Is it a folder, or was it changed?', { cause });
  });
  const { size, type } = file;
  const request = JSON.stringify({ size, file_name: name, content_type: type || undefined, sensitive, route, subject });
  const url = `${broker}/token`;
  let answer = /** @type {Answer} */ ({ url, status: 200 });
  if (getToken) {
    try {
      answer.body = await abortable(job, (resolve, reject) => void getToken(JSON.parse(request)).then(resolve, reject));
    } catch (cause) {
      if (cause instanceof UploadError) throw cause;
      throw new UploadError('token_failed', 'The app could not get an upload token.', { cause });
    }
  } else if (publishableKey) {
    answer = await post(job, url, publishableKey, request);
  } else throw new UploadError('no_credential', 'uploadToCoze needs getToken or publishableKey.');

  const { body: grant, status } = answer;
  if (!status) throw unreachable(answer);
  if (!grant?.access_token || !grant.upload_url) throw refusal(answer, status >= 500);
  if (grant.route === 'direct') {
    if (!sensitive && route !== 'proxy') return grant;
    throw new UploadError('wrong_route', 'The token is for the direct route, which is ruled out.');
  }
  if (spent.has(grant.access_token)) throw new UploadError('token_used', 'getToken gave a token that was used before.');
  spent.add(grant.access_token);
  return grant;
}

/** Twice if need be; status 0 is no answer. @param {Job} job @param {string} url @param {string} key @param {string} body @returns {Promise<Answer>} */
async function post(job, url, key, body) {
  const headers = { Authorization: `Bearer ${key}`, 'Content-Type': 'application/json' };
  const ask = () => abortable(job, (resolve) => {
    fetch(url, { method: 'POST', headers, body, credentials: 'omit', signal: AbortSignal.timeout(15_000) })
      .then(async (response) => {
        const id = response.headers.get('x-request-id');
        resolve({ url, status: response.status, body: parse(await response.text()), id });
      })
      .catch(() => resolve({ url, status: 0 }));
  });
  const answer = await ask();
  if (answer.status && answer.status !== 503) return answer;
  await pause(job, 1, answer.body?.retry_after_seconds);
  return ask();
}

/** One attempt. @param {Job} job @param {TokenAnswer} grant @returns {Promise<Answer>} */
function send(job, grant) {
  return abortable(job, (resolve) => {
    const url = new URL(grant.upload_url, `${job.broker}/`).href;
    const total = job.file.size;
    const xhr = new XMLHttpRequest();
    let sent = false;
    let loaded = 0;
    let timer = 0;
    const progress = (/** @type {number} */ share) => {
      // Given up when nothing moves.
      clearTimeout(timer);
      timer = setTimeout(() => xhr.abort(), (grant.route === 'direct' ? 20_000 : 60_000) * (sent ? 3 : 1));
      loaded = Math.max(loaded, Math.floor(share * total));
      job.onProgress?.({ loaded, total, percent: Math.min(99, Math.floor((loaded / total) * 100)) });
    };
    xhr.upload.onprogress = (event) => progress(event.loaded / event.total);
    xhr.upload.onload = () => {
      sent = true;
      progress(1);
    };
    xhr.onloadend = () => {
      clearTimeout(timer);
      // Unlike getResponseHeader, silent on what CORS hides.
      const id = /^x-(?:tt-logid|request-id): *(.+)/im.exec(xhr.getAllResponseHeaders())?.[1];
      resolve({ url, status: xhr.status, body: parse(xhr.responseText), id, sent, moved: loaded > 0 && !sent });
    };
    const form = new FormData();
    form.append(grant.field || 'file', job.file, job.name);
    xhr.open('POST', url);
    xhr.setRequestHeader('Authorization', `Bearer ${grant.access_token}`);
    if (grant.route !== 'direct') xhr.setRequestHeader('Idempotency-Key', job.key);
    progress(0);
    xhr.send(form);
    return () => xhr.abort();
  });
}

/** Coze's code says more than the status. @param {Answer} answer @param {Job} job @returns {Verdict} */
function readDirect(answer, { file, name }) {
  const { status, body } = answer;
  const { code, data, msg } = body ?? {};
  if (!status) return { error: unreachable(answer), again: true };
  if (code === 0 && data?.id && typeof data.id === 'string' && (data.bytes ?? file.size) === file.size) {
    const { id, file_name, created_at } = data;
    return { result: { file_id: id, file_name: file_name ?? name, bytes: file.size, created_at, route: 'direct', logid: answer.id, receipt: null } };
  }
  if (!(code > 0)) return { error: refusal(answer), again: true };
  const error = new UploadError(`coze_${code}`, REFUSALS[code] ?? `Coze refused the upload: ${msg || code}`, { status, requestId: answer.id });
  const trouble = status >= 500 || [401, 403, 429].includes(status) || TROUBLE.includes(+code);
  return { error, again: trouble && !/^4(000|3..)$/.test(code) };
}

/** @param {Answer} answer @param {Job} job @returns {Verdict} */
function readProxy(answer, { file }) {
  const { status, body } = answer;
  if (!status) {
    const sentence = 'The file was sent, but no answer came. Coze may hold it.';
    return { error: answer.sent ? new UploadError('outcome_unknown', sentence) : unreachable(answer), again: true };
  }
  if (body?.file_id && typeof body.file_id === 'string' && body.bytes === file.size) return { result: { receipt: null, ...body, route: 'proxy' } };
  const error = refusal(answer);
  // A browser may send twice by itself, hence `token_used`.
  return { error, again: error.retryable || error.code === 'token_used' };
}

/** @param {Answer} answer @param {boolean} [retryable] */
function refusal({ url, status, body, id }, retryable) {
  if (typeof body?.code === 'string') {
    const { code, title, detail = title, request_id: requestId = id, retry_after_seconds: retryAfterSeconds } = body;
    return new UploadError(code, detail, { status, requestId, retryAfterSeconds, ...body });
  }
  return new UploadError('bad_answer', `${new URL(url).origin} gave an unusable answer (HTTP ${status}).`, { status, retryable, requestId: id });
}

/** A browser does not tell CORS from a dead network. @param {Answer} answer */
function unreachable({ url, moved }) {
  const { origin } = new URL(url);
  const here = location.origin;
  if (moved || origin === here) {
    return new UploadError('connection_lost', `The connection to ${origin} was lost.`, { retryable: true });
  }
  const sentence = `The browser blocked or lost the connection to ${origin}. If the server is up, add this page's origin ${here} to its allowed origins (CORS).`;
  return new UploadError('cors_blocked', sentence, { retryable: true });
}

/** @param {Job} job @param {number} nth @param {number} [seconds] as the broker asked */
function pause(job, nth, seconds) {
  const delay = Math.min(seconds || 2 ** nth / 4, 10) + Math.random() / 4;
  return abortable(job, (resolve) => {
    const timer = setTimeout(resolve, delay * 1000);
    return () => clearTimeout(timer);
  });
}

/**
 * A promise that an abort ends; `start` may return what stops the work.
 * @param {Job} job @param {(resolve: (value?: any) => void, reject: (error: any) => void) => any} start @returns {Promise<any>}
 */
function abortable({ signal }, start) {
  let onAbort = () => {};
  return new Promise((resolve, reject) => {
    let stop = /** @type {any} */ (undefined);
    onAbort = () => {
      reject(new UploadError('aborted', 'The upload was cancelled.'));
      stop?.();
    };
    if (signal?.aborted) return onAbort();
    signal?.addEventListener('abort', onAbort);
    stop = start(resolve, reject);
  }).finally(() => signal?.removeEventListener('abort', onAbort));
}

/** @param {string} text */
function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
